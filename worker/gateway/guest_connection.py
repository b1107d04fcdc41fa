"""One guest's HTTP connection to the gateway: deadlines for what the guest sends and reads, and limits on how many."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

_log = logging.getLogger(__name__)
_log.setLevel(logging.ERROR)


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds and counts that a guest's connections are held to.

    A request's head has to come within ``head_seconds`` of its first byte, or of the connection. An answer that the
    guest does not take makes no progress for ``stall_seconds`` at most, and a connection that is closed has
    ``close_seconds`` to go. ``look_seconds`` is how often that is looked at.
    """

    for_each_machine: int = 32
    without_machine: int = 128
    head_seconds: float = 20.0
    stall_seconds: float = 60.0
    close_seconds: float = 15.0
    look_seconds: float = 5.0


def share(most: int, counts: Sequence[int]) -> int:
    """How many connections each machine may have: ``most``, and fewer when all have too many for this process.

    ``counts`` are those of the machines that have some now.
    """
    # Each needs a second descriptor, and everything else of this process has needs of its own.
    in_all = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    return most if sum(counts) < in_all else min(most, max(1, in_all // max(1, len(counts))))


class ConnectionTable:
    """The open connections by machine. One machine's connections never take another one's place."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._open: dict[str, dict[GuestConnection, None]] = {}

    def admit(self, connection: GuestConnection) -> bool:
        """Take the connection in; False when its machine has as many as it may have, and all of them at work.

        Of those that wait for a request, the oldest one gives way.
        """
        own = self._open.setdefault(connection.machine, {})
        if len(own) >= self._share(connection.machine):
            oldest = next((each for each in own if each.awaits_request), None)
            if oldest is None:
                return False
            self.release(oldest)
            oldest.abort()
        self._open.setdefault(connection.machine, {})[connection] = None
        return True

    def release(self, connection: GuestConnection) -> None:
        """Forget a connection; nothing happens when it is forgotten already."""
        own = self._open.get(connection.machine, {})
        own.pop(connection, None)
        if not own:
            self._open.pop(connection.machine, None)

    def counts(self) -> Counter[str]:
        """Open connections by machine; those that come without a machine's name are under the empty name."""
        return Counter({machine: len(own) for machine, own in self._open.items()})

    def _share(self, machine: str) -> int:
        most = self.limits.for_each_machine if machine else self.limits.without_machine
        return share(most, [len(own) for own in self._open.values()])


@dataclass
class _Waits:
    """Since when something is awaited on the loop's clock; None where nothing is."""

    head: float | None = None
    reader: float | None = None
    end: float | None = None
    unsent: int = field(default=0)


class GuestConnection(H11Protocol):
    """uvicorn's connection, which has a limit for the pause between two requests only, with the limits that lack."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        table: ConnectionTable,
        machine: str = "",
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # A line for each request that is none would let a guest fill the worker's log.
        self.logger = _log
        self.machine = machine
        self._table = table
        self._waits = _Waits()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def awaits_request(self) -> bool:
        """True while no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def abort(self) -> None:
        """Close at once, whatever has not been sent."""
        self.transport.abort()

    def overdue(self) -> None:
        """What a limit is set for has not come in time."""
        self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast("asyncio.Transport", transport))
        if not self._table.admit(self):
            self.abort()
            return
        self._waits.head = self.loop.time()
        self._look()

    def data_received(self, data: bytes) -> None:
        if self.awaits_request and self._waits.head is None:
            self._waits.head = self.loop.time()
        super().data_received(data)
        if not self.awaits_request:
            self._waits.head = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.awaits_request and self.conn.trailing_data[0]:
            self._waits.head = self.loop.time()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.release(self)
        if self._timer is not None:
            self._timer.cancel()
        # Otherwise its timer would close the transport once more, much later.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _look(self) -> None:
        if self._is_overdue(self.loop.time()):
            self.overdue()
        else:
            self._timer = self.loop.call_later(self._table.limits.look_seconds, self._look)

    def _is_overdue(self, now: float) -> bool:
        limits, waits = self._table.limits, self._waits
        unsent = self.transport.get_write_buffer_size()
        if unsent == 0 or unsent < waits.unsent:
            waits.reader = None
        elif waits.reader is None:
            waits.reader = now
        waits.unsent = unsent
        if self.transport.is_closing() and waits.end is None:
            waits.end = now
        limited = (
            (waits.head if self.awaits_request else None, limits.head_seconds),
            (waits.reader, limits.stall_seconds),
            (waits.end, limits.close_seconds),
        )
        return any(since is not None and now - since > seconds for since, seconds in limited)
