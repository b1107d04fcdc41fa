"""Who waits for room on this host: first come, first served, as far as one host can know.

Runs ask again and again, each by itself, at any host. A host that refuses one for lack of room remembers it, and keeps
its place from whoever was submitted later. It is kept in memory: after a restart, all that wait have asked again within
seconds. One that was cancelled, or that another host has taken, does not say so; it asks no more, and loses its place.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from machines.ledger import NoRoom
from machines.records import Reservation

Admitted = TypeVar("Admitted")

# Room that is freed stands empty until the run whose turn it is asks: the first of them ask often.
_SOON = timedelta(seconds=1)
LATER = timedelta(seconds=3)
_FIRST = 4
# Several looks, because each of them may be at another host.
PATIENCE = 5 * LATER


def next_look(older: int) -> timedelta:
    """When a run that ``older`` ones precede asks again."""
    return _SOON if older < _FIRST else LATER


@dataclass(frozen=True)
class _Waiting:
    request: Reservation
    asked: float


class WaitingLine:
    """The reservations that wait for room on one host. Not thread-safe: its user holds the host's ledger.

    ``clock`` gives seconds on any scale that never goes back. Of a request only ``since`` is compared with another's,
    which is Temporal's time, so that the clocks of hosts need not agree.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}

    def in_turn(self, request: Reservation, admit: Callable[[Sequence[Reservation]], Admitted]) -> Admitted:
        """What ``admit`` makes of the request, told which older ones wait. One that it refuses with NoRoom waits."""
        ahead = self._ahead(request)
        self._waiting.pop(request.machine_id, None)
        try:
            return admit(ahead)
        except NoRoom:
            # One that does not say since when it waits comes after all that do.
            if request.since is not None:
                self._waiting[request.machine_id] = _Waiting(request, self._clock())
            raise

    def leave(self, machine_id: str) -> None:
        """It waits no more."""
        self._waiting.pop(machine_id, None)

    def _ahead(self, request: Reservation) -> list[Reservation]:
        """Those who are still there and came before."""
        if not self._waiting:
            return []
        lost = self._clock() - PATIENCE.total_seconds()
        self._waiting = {name: each for name, each in self._waiting.items() if each.asked >= lost}
        return [each.request for each in self._waiting.values() if _came_before(each.request, request)]


def _came_before(one: Reservation, other: Reservation) -> bool:
    return one.machine_id != other.machine_id and (other.since is None or _place(one) < _place(other))


def _place(request: Reservation) -> tuple[float, str]:
    return (request.since.timestamp() if request.since is not None else 0.0, request.machine_id)
