"""What a machine asked of the proxy: decisions that are to be logged, and counts for its run's status.

Both are bounded whatever a guest asks for: a line for each host, port, verdict and minute, a number of lines a minute,
and a number of hosts that are counted apart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from workflows.runs.messages import HostUse, NetworkUse

Outcome = Literal["allowed", "blocked", "failed"]

#: Seconds in which one host, port and verdict is told once.
TOLD_SECONDS = 60.0
#: Lines of one machine in that time; what is more is told by its number.
TOLD_MOST = 100
#: Lines that wait to be drained.
_WAITING_MOST = 1000
#: Hosts that a status names, and hosts that are counted apart.
NAMED_MOST = 20
_COUNTED_MOST = 200


@dataclass(frozen=True)
class Decision:
    """What became of ``count`` requests for a host and port. ``reason`` is a sentence for the run's log.

    The one without a host says how many more there were than are told.
    """

    time: datetime
    host: str
    port: int
    verdict: Outcome
    reason: str
    count: int = 1


@dataclass
class HostCount:
    """What went to and from one host and port, counted on the proxy's loop."""

    host: str
    port: int
    allowed: int = 0
    blocked: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    reason: str | None = None

    @property
    def asked(self) -> int:
        return self.allowed + self.blocked


@dataclass
class _Window:
    """A minute of one host, port and verdict: since when it is told, and how often it came up since."""

    since: float
    untold: Decision | None = None


@dataclass
class MachineTraffic:
    """Decisions and counts of one machine. ``record`` and ``count`` are the loop's; the rest works from any thread."""

    total: HostCount = field(default_factory=lambda: HostCount("", 0))
    changed: bool = False
    _hosts: dict[tuple[str, int], HostCount] = field(default_factory=dict)
    _windows: dict[tuple[str, int, Outcome], _Window] = field(default_factory=dict)
    _waiting: list[Decision] = field(default_factory=list)
    _more: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def record(self, host: str, port: int, verdict: Outcome, reason: str) -> HostCount:
        """Note a decision, and give what the connection's bytes are to be counted in."""
        with self._lock:
            self.changed = True
            self._tell(Decision(datetime.now(UTC), host, port, verdict, reason))
            own = self._hosts.get((host, port))
            if own is None:
                self._make_place()
                own = self._hosts[host, port] = HostCount(host, port)
            for count in (own, self.total):
                if verdict == "allowed":
                    count.allowed += 1
                elif verdict == "blocked":
                    count.blocked += 1
            if verdict == "blocked":
                own.reason = reason
            return own

    def count(self, own: HostCount, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes that were let through."""
        self.changed = True
        own.sent_bytes += sent
        own.received_bytes += received
        self.total.sent_bytes += sent
        self.total.received_bytes += received

    def use(self) -> NetworkUse:
        """The counts, with the hosts that were asked for most."""
        with self._lock:
            hosts = sorted(self._hosts.values(), key=lambda each: (-each.asked, each.host, each.port))[:NAMED_MOST]
            return NetworkUse(
                allowed=self.total.allowed,
                blocked=self.total.blocked,
                sent_bytes=self.total.sent_bytes,
                received_bytes=self.total.received_bytes,
                hosts=[HostUse.model_validate(vars(each)) for each in hosts],
            )

    def restore(self, use: NetworkUse) -> None:
        """Go on with counts of before."""
        self.total = HostCount("", 0, use.allowed, use.blocked, use.sent_bytes, use.received_bytes)
        self._hosts = {
            (each.host, each.port): HostCount(**each.model_dump(include=set(HostCount.__dataclass_fields__)))
            for each in use.hosts
        }

    def drain(self, *, last: bool = False) -> list[Decision]:
        """What is to be told since the last call; with ``last``, also what would be told when its minute is over."""
        now = time.monotonic()
        with self._lock:
            for key, window in list(self._windows.items()):
                if last or now - window.since >= TOLD_SECONDS:
                    self._end(key, window, now)
            taken, self._waiting = self._waiting, []
            if self._more:
                sentence = f"{self._more} more network requests, for hosts beyond those that are told"
                taken.append(Decision(datetime.now(UTC), "", 0, "blocked", sentence, self._more))
                self._more = 0
            return taken

    def _tell(self, decision: Decision) -> None:
        key, now = (decision.host, decision.port, decision.verdict), time.monotonic()
        window = self._windows.get(key)
        if window is not None and now - window.since >= TOLD_SECONDS:
            self._end(key, window, now)
            window = self._windows.get(key)
        if window is not None:
            before = window.untold.count if window.untold else 0
            window.untold = replace(decision, count=before + 1)
            return
        if len(self._windows) >= TOLD_MOST:
            self._forget_old(now)
        if len(self._windows) >= TOLD_MOST or len(self._waiting) >= _WAITING_MOST:
            self._more += 1
            return
        self._windows[key] = _Window(now)
        self._waiting.append(decision)

    def _end(self, key: tuple[str, int, Outcome], window: _Window, now: float) -> None:
        """The minute is over: tell what came up in it, which begins another one."""
        del self._windows[key]
        if window.untold is None:
            return
        if len(self._waiting) >= _WAITING_MOST:
            self._more += window.untold.count
            return
        self._waiting.append(window.untold)
        self._windows[key] = _Window(now)

    def _forget_old(self, now: float) -> None:
        for key, window in list(self._windows.items()):
            if now - window.since >= TOLD_SECONDS:
                self._end(key, window, now)

    def _make_place(self) -> None:
        """Count the host that is asked for least no longer apart. Its bytes stay in the total."""
        if len(self._hosts) >= _COUNTED_MOST:
            least: Iterable[HostCount] = self._hosts.values()
            gone = min(least, key=lambda each: each.asked)
            del self._hosts[gone.host, gone.port]
