"""Runs as lists show them, of any resource, and an order of them that stays sorted while single runs change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from temporalio.client import WorkflowExecution

from workflows.names import WorkflowKind

Status = TypeVar("Status")


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a run's status depends on, all else being written with it: the state it shows, and whether it is closed."""

    state: str
    closed: bool
    execution_status: int


@dataclass(frozen=True, slots=True)
class Row:
    """One run as lists show it; ``packed`` is that as JSON, ready to be sent.

    Of two looks at a run, none has a lower ``rank`` than an earlier one. ``began`` and ``closed`` are dated by
    Temporal. ``recorded`` is what the store shows of the run; None while it does not show it at all: the run was
    started by this process. ``owner`` is the id of the resource that it belongs to, if to one.
    """

    id: str
    run_id: str
    name: str
    state: str
    rank: tuple[int, float]
    ended: bool
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    state_changed_at: datetime
    began: datetime
    closed: datetime | None
    recorded: Recorded | None
    packed: bytes
    owner: str | None = None

    def was_under_way(self, waiting: str) -> bool:
        """Whether the store, when last asked, showed the run among those under way: open, and not ``waiting``."""
        recorded = self.recorded
        return recorded is not None and not recorded.closed and recorded.state != waiting

    def happened_since(self, at: datetime) -> bool:
        """Whether the store dates the run's begin or close at that time or later."""
        return self.recorded is not None and (self.began >= at or (self.closed is not None and self.closed >= at))

    def is_newer_than(self, other: Row | None) -> bool:
        """Whether this is not an earlier look at the same run."""
        if other is None or other.recorded is None:
            return True
        return (self.closed is not None, self.rank) >= (other.closed is not None, other.rank)


@dataclass(frozen=True)
class Resource(Generic[Status]):
    """How the runs of one kind of workflow become rows; a further resource has a further one of these.

    Of the runs in the state ``waiting`` there may be many, in which nothing happens: they are not looked at each time.
    ``status_of`` reads a run's status of an execution. ``make_row`` takes it, the run's id in Temporal, when it began
    and closed, and what the store shows of it.
    """

    kind: WorkflowKind
    waiting: str
    status_of: Callable[[WorkflowExecution], Awaitable[Status]]
    make_row: Callable[[Status, str, datetime, datetime | None, Recorded | None], Row]


class Order:
    """Rows from the lowest key to the highest, those of equal keys by their ids."""

    def __init__(self, rows: Iterable[Row], key: Callable[[Row], Any]) -> None:
        def key_and_id(row: Row) -> tuple[Any, str]:
            return key(row), row.id

        self._key = key_and_id
        self.rows = sorted(rows, key=key_and_id)

    def replace(self, before: Row | None, after: Row | None) -> None:
        """Take a row out, and another one in."""
        if before is not None:
            del self.rows[bisect_left(self.rows, self._key(before), key=self._key)]
        if after is not None:
            self.rows.insert(bisect_left(self.rows, self._key(after), key=self._key), after)
