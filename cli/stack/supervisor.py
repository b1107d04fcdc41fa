"""Supervision of child processes: start in order, watch, restart with backoff, stop in reverse order."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from foundation.errors import HostNotReady
from foundation.units import format_seconds

_POLL_SECONDS = 0.05
_BACKOFF_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)
_QUICK_DEATH_SECONDS = 30.0
LOG_BYTES_MOST = 20 * 2**20
_TAIL_LINES = 15


@dataclass(frozen=True)
class Part:
    """One child process: what to run, and how to know that it answers.

    ``probe`` gets the process id and the time it was started (unix seconds); it gives None when the part is ready,
    else what is still awaited. It is asked again and again, so it must not block for more than a few seconds.
    ``prepare`` runs before each start, ``cleanup`` after the end. ``directory`` is where the process stands; None
    leaves it where this one is.
    """

    name: str
    label: str
    command: Sequence[str]
    environment: dict[str, str]
    probe: Callable[[int, float], str | None]
    address: str = ""
    ready_seconds: float = 120.0
    grace_seconds: float = 8.0
    prepare: Callable[[], None] = lambda: None
    cleanup: Callable[[], None] = lambda: None
    directory: Path | None = None


@dataclass(frozen=True)
class PartEvent:
    """Something that happened to a part. ``seconds`` is how long a start or stop took."""

    part: str
    label: str
    kind: Literal["starting", "ready", "died", "failed", "stopping", "stopped"]
    detail: str = ""
    seconds: float = 0.0


class _Child:
    """A process in a session of its own, which ends with the thread that made it."""

    def __init__(self, part: Part, log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        bound_log(log)
        # A session of its own: Ctrl-C in the terminal reaches the supervisor only, which then stops all in order.
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *part.command],
                env=part.environment,
                cwd=part.directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def has_ended(self) -> bool:
        """Whether it ended. It stays a zombie until reaped, so its process group's number stays its own."""
        if self.process.returncode is not None:
            return True
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def reap(self) -> int:
        """Kill it and all it left in its process group; its exit code."""
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
        return self.process.wait()


class Keeper(threading.Thread):
    """Keeps one part running until it is told to stop.

    The thread lives exactly as long as its child may live: the kernel ends a child whose *thread* of birth ends, which
    is how a kill -9 of the supervisor takes everything down with it.
    """

    def __init__(self, part: Part, log: Path, report: Callable[[PartEvent], None], *, restart: bool = True) -> None:
        super().__init__(name=f"keeper-{part.name}", daemon=True)
        self.part = part
        self.log = log
        self.ready = threading.Event()
        self.failure: str | None = None
        self._restart = restart
        self._report = report
        self._stopping = threading.Event()
        self._stop_signal = signal.SIGTERM
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the running child."""
        child = self._child
        return child.process.pid if child is not None and child.process.returncode is None else None

    def request_stop(self, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        """Ask for the end; ``join`` waits for it."""
        self._stop_signal = stop_signal
        self._stopping.set()

    def run(self) -> None:
        """Start the child, wait until it answers, watch it, start it again; the thread's body."""
        try:
            self._keep()
        except Exception as error:  # noqa: BLE001 -- whatever it was, the one who waits must hear of it
            self._fail(f"{type(error).__name__}: {error}")
        finally:
            self._end_child()
            self.part.cleanup()

    def _keep(self) -> None:
        quick_deaths = 0
        answered_once = False
        while not self._stopping.is_set():
            started = time.monotonic()
            self._report_event("starting")
            self.part.prepare()
            child = self._child = _Child(self.part, self.log)
            if self._await_ready(child, started):
                self._report_event("ready", self.part.address, time.monotonic() - started)
                answered_once = True
                self.ready.set()
                while not child.has_ended() and not self._stopping.wait(_POLL_SECONDS):
                    bound_log(self.log)
            if self._stopping.is_set() or self.failure is not None:
                return
            self.ready.clear()
            code = child.reap()
            lived = time.monotonic() - started
            quick_deaths = quick_deaths + 1 if lived < _QUICK_DEATH_SECONDS else 1
            reason = f"ended with {_exit_text(code)} after {format_seconds(lived)}"
            if not self._restart:
                self._report_event("died", reason)
                return
            if not answered_once:
                self._fail(f"{reason}, before it was ready")
                return
            if quick_deaths > len(_BACKOFF_SECONDS):
                self._fail(f"{reason}, {quick_deaths} times in a row")
                return
            pause = _BACKOFF_SECONDS[quick_deaths - 1]
            self._report_event("died", f"{reason}; starting it again in {format_seconds(pause)}")
            self._stopping.wait(pause)

    def _await_ready(self, child: _Child, started: float) -> bool:
        """True when the child answers; False when it ended, was told to, or took too long (then ``failure`` is set)."""
        started_at = time.time()
        awaited: str | None = "an answer"
        while not self._stopping.is_set() and not child.has_ended():
            awaited = self.part.probe(child.process.pid, started_at)
            if awaited is None:
                return True
            if time.monotonic() - started > self.part.ready_seconds:
                self._fail(f"not ready after {format_seconds(self.part.ready_seconds)}: waiting for {awaited}")
                return False
            self._stopping.wait(_POLL_SECONDS)
        return False

    def _end_child(self) -> None:
        child = self._child
        if child is None or child.process.returncode is not None:
            return
        began = time.monotonic()
        self._report_event("stopping")
        if not child.has_ended():
            child.process.send_signal(self._stop_signal)
        while not child.has_ended() and time.monotonic() - began < self.part.grace_seconds:
            time.sleep(_POLL_SECONDS)
        limit = format_seconds(self.part.grace_seconds)
        forced = "" if child.has_ended() else f"killed, it did not end within {limit}"
        child.reap()
        self._report_event("stopped", forced, time.monotonic() - began)

    def _report_event(
        self,
        kind: Literal["starting", "ready", "died", "failed", "stopping", "stopped"],
        detail: str = "",
        seconds: float = 0.0,
    ) -> None:
        self._report(PartEvent(self.part.name, self.part.label, kind, detail, seconds))

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self._report_event("failed", reason)


@dataclass
class Supervisor:
    """Parts in groups: the parts of a group start together, each group after the one before it is ready."""

    logs: Path
    report: Callable[[PartEvent], None] = lambda _event: None
    keepers: dict[str, Keeper] = field(default_factory=dict)

    def start(self, parts: Iterable[Part], *, restart: bool = True) -> None:
        """Start the parts together and wait until all are ready.

        Raises HostNotReady with the end of the log when one fails.
        """
        started = []
        for part in parts:
            keeper = Keeper(part, self.logs / f"{part.name}.log", self.report, restart=restart)
            self.keepers[part.name] = keeper
            keeper.start()
            started.append(keeper)
        while not all(keeper.ready.is_set() for keeper in started):
            self.check()
            time.sleep(_POLL_SECONDS)

    def check(self) -> None:
        """Raise HostNotReady when a part was given up."""
        for keeper in self.keepers.values():
            if keeper.failure is not None or not keeper.is_alive():
                raise HostNotReady(
                    f"{keeper.part.label} {keeper.failure or 'ended'}. The end of its log {keeper.log}:\n"
                    + _tail(keeper.log),
                    part=keeper.part.name,
                )

    def pids(self) -> dict[str, int]:
        """Process ids of the running parts by name."""
        return {name: keeper.pid for name, keeper in self.keepers.items() if keeper.pid is not None}

    def stop(self, names: Iterable[str], stop_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop the named parts together and wait for their end."""
        ending = [self.keepers.pop(name) for name in names if name in self.keepers]
        for keeper in ending:
            keeper.request_stop(stop_signal)
        for keeper in ending:
            keeper.join()


def _exit_text(code: int) -> str:
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def bound_log(log: Path, most_bytes: int = LOG_BYTES_MOST) -> None:
    """Put what a long log holds aside, over what was put aside before: a part keeps twice ``most_bytes`` at most.

    Whoever writes it appends, and goes on at its new beginning; a line that comes in this very moment may be lost.
    """
    with suppress(OSError):
        if log.stat().st_size <= most_bytes:
            return
        aside = log.with_suffix(".log.1")
        try:
            shutil.copyfile(log, aside)
        except OSError:
            # A full disk has no room for two: the old lines go, so that new ones can come.
            aside.unlink(missing_ok=True)
        os.truncate(log, 0)


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError as error:
        return f"  (not readable: {error})"
    return "\n".join(f"  {line}" for line in lines[-_TAIL_LINES:]) or "  (empty)"
