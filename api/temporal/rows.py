"""Runs as lists show them, and an order of them that stays sorted while single runs change."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from api.temporal.visibility import Recorded
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

_RANK = {state: rank for rank, state in enumerate(TaskState)}

# What a list shows of a status, and therefore what is kept of it.
_SHOWN = frozenset(
    {
        *("id", "name", "labels", "state", "state_message", "created_at", "started_at", "state_changed_at"),
        *("vm_name", "vm_ip", "exit_code", "cause", "error", "progress"),
    }
)


@dataclass(frozen=True, slots=True)
class Row:
    """One run as lists show it; ``packed`` is that as JSON, ready to be sent.

    ``began`` and ``closed`` are dated by Temporal. ``recorded`` is what the store shows of the run; None while it does
    not show it at all: the run was started by this process.
    """

    id: str
    run_id: str
    name: str
    state: TaskState
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    state_changed_at: datetime
    began: datetime
    closed: datetime | None
    recorded: Recorded | None
    packed: bytes

    @property
    def status(self) -> TaskStatus:
        """As much of the status as the row holds."""
        return TaskStatus.model_validate_json(self.packed)

    @property
    def under_way(self) -> bool:
        """Whether the store, when last asked, showed the run among those under way."""
        recorded = self.recorded
        return recorded is not None and not recorded.closed and recorded.state != TaskState.PENDING

    def happened_since(self, at: datetime) -> bool:
        """Whether the store dates the run's begin or close at that time or later."""
        return self.recorded is not None and (self.began >= at or (self.closed is not None and self.closed >= at))

    def is_newer_than(self, other: Row | None) -> bool:
        """Whether this is not an earlier look at the same run; its states come in one order only."""
        if other is None or other.recorded is None:
            return True
        return (self.closed is not None, _RANK[self.state]) >= (other.closed is not None, _RANK[other.state])


def make_row(
    status: TaskStatus, run_id: str, began: datetime, closed: datetime | None, recorded: Recorded | None
) -> Row:
    """The row of a status."""
    return Row(
        id=status.id,
        run_id=run_id,
        name=status.name,
        state=status.state,
        labels=status.labels,
        created_at=status.created_at,
        started_at=status.started_at,
        state_changed_at=status.state_changed_at,
        began=began,
        closed=closed,
        recorded=recorded,
        packed=status.model_dump_json(include=set(_SHOWN)).encode(),
    )


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
