"""A visibility store with a clock of its own, which lags, fails and forgets as it is told."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from api.temporal.rows import Recorded
from api.temporal.visibility import Entry, Selection
from foundation.errors import EngineUnavailable
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

_PAGE = 3
_BEGIN = datetime(2026, 3, 1, 12, tzinfo=UTC)


@dataclass(frozen=True)
class StoredRun:
    """One run as the store shows it."""

    run_id: str
    task_id: str
    state: TaskState
    began: datetime
    closed: datetime | None = None

    @property
    def recorded(self) -> Recorded:
        return Recorded(self.state.value, self.closed is not None, 2 if self.closed else 1)

    async def status(self) -> TaskStatus:
        return TaskStatus(
            id=self.task_id,
            name=f"run {self.task_id}",
            state=self.state,
            created_at=self.began,
            state_changed_at=self.closed or self.began,
        )

    def is_in(self, selection: Selection) -> bool:
        """What Temporal's query language means by the selection."""
        closed = self.closed
        since, begin, end = selection.since, selection.began_from, selection.began_before
        return (
            (not selection.under_way or (closed is None and self.state is not TaskState.PENDING))
            and (since is None or self.began >= since or (closed is not None and closed >= since))
            and (begin is None or self.began >= begin)
            and (end is None or self.began < end)
            and (selection.closed_before is None or (closed is not None and closed < selection.closed_before))
            and (not selection.run_ids or self.run_id in selection.run_ids)
        )


@dataclass
class VisibilityStore:
    """``runs`` is what it shows. What happens to a run shows ``lag`` seconds later, of each run in its order.

    ``offset`` is what its clock, by which runs are dated, is ahead by. ``failing`` counts the requests from now on that
    get no answer. ``meanwhile`` are called one by one, each before a request is answered.
    """

    now: float = 0.0
    offset: float = 0.0
    lag: float = 0.0
    failing: int = 0
    runs: dict[str, StoredRun] = field(default_factory=dict)
    meanwhile: deque[Callable[[], object]] = field(default_factory=deque)
    requests: int = 0
    on_change: Callable[[str], None] = lambda _: None
    _true: dict[str, StoredRun] = field(default_factory=dict)
    _late: deque[tuple[float, StoredRun]] = field(default_factory=deque)

    def start(self, task_id: str, number: int = 0) -> StoredRun:
        run = StoredRun(f"{task_id}#{number}", task_id, TaskState.PENDING, self._dated())
        self._write(run)
        return run

    def enter(self, run_id: str, state: TaskState) -> None:
        """A later state; with one that ends it, the run closes."""
        self._write(replace(self._true[run_id], state=state, closed=self._dated() if state.terminal else None))

    def forget(self, run_id: str) -> None:
        del self._true[run_id]
        self._late = deque((at, run) for at, run in self._late if run.run_id != run_id)
        self.runs.pop(run_id, None)
        self.on_change(run_id)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        while self._late and self._late[0][0] <= self.now:
            self._show(self._late.popleft()[1])

    @property
    def open(self) -> list[str]:
        return [run_id for run_id, run in self._true.items() if run.closed is None]

    @property
    def ended(self) -> list[str]:
        return [run_id for run_id, run in self._true.items() if run.closed is not None]

    async def pages(self, selection: Selection) -> AsyncIterator[list[Entry[TaskStatus]]]:
        self._take_request()
        found: list[Entry[TaskStatus]] = [run for run in self.runs.values() if run.is_in(selection)]
        for first in range(0, max(1, len(found)), _PAGE):
            if first:
                self._take_request()
            yield found[first : first + _PAGE]

    async def count(self, selection: Selection) -> int:
        self._take_request()
        return sum(run.is_in(selection) for run in self.runs.values())

    def _take_request(self) -> None:
        self.requests += 1
        if self.meanwhile:
            self.meanwhile.popleft()()
        if self.failing:
            self.failing -= 1
            raise EngineUnavailable("The store does not answer.")

    def _dated(self) -> datetime:
        return _BEGIN + timedelta(seconds=self.now + self.offset)

    def _write(self, run: StoredRun) -> None:
        self._true[run.run_id] = run
        # What is late holds up what comes after it.
        shown_at = max(self.now + self.lag, self._late[-1][0] if self._late else 0.0)
        self._late.append((shown_at, run))
        self.wait(0)

    def _show(self, run: StoredRun) -> None:
        self.runs[run.run_id] = run
        self.on_change(run.run_id)
