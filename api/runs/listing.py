"""Lists of runs: filters, stable order, pages and totals, all of them out of the index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from api.temporal.index import RunIndex
from api.temporal.rows import Row
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

Sort = Literal["created_at", "started_at", "state_changed_at", "name"]
Order = Literal["asc", "desc"]

DEFAULT_LIMIT = 100
MAX_LIMIT = 1000

_NEVER = datetime.min.replace(tzinfo=UTC)
_KEYS: dict[Sort, Callable[[Row], str | datetime]] = {
    "created_at": lambda row: row.created_at,
    "started_at": lambda row: row.started_at or _NEVER,
    "state_changed_at": lambda row: row.state_changed_at,
    "name": lambda row: row.name,
}


@dataclass(frozen=True)
class TaskQuery:
    """Which runs, in which order, and which part of them. Empty ``states`` and ``labels`` filter nothing."""

    states: frozenset[TaskState] = frozenset()
    labels: dict[str, str] = field(default_factory=dict)
    limit: int = DEFAULT_LIMIT
    offset: int = 0
    sort: Sort = "created_at"
    order: Order = "desc"

    def wants(self, row: Row) -> bool:
        """Whether the filters let the run through."""
        if self.states and row.state not in self.states:
            return False
        return all(row.labels.get(key) == value for key, value in self.labels.items())


@dataclass(frozen=True)
class Page:
    """One page of runs, and how many the filters let through in all."""

    rows: list[Row]
    total: int


def find(index: RunIndex[TaskStatus], query: TaskQuery) -> Page:
    """The page of runs that the query asks for, as the index stands. Runs of equal keys come by their ids."""
    rows = index.ordered(query.sort, _KEYS[query.sort])
    found = [row for row in rows if query.wants(row)] if query.states or query.labels else rows
    first, last = query.offset, query.offset + query.limit
    if query.order == "desc":
        end = len(found)
        selected = list(reversed(found[max(0, end - last) : max(0, end - first)]))
    else:
        selected = list(found[first:last])
    return Page(selected, len(found))
