"""Every run that Temporal knows, kept as rows in this process, so that lists and totals never read all of them again.

Nothing in it is a record of its own: it is filled from Temporal's visibility store once, and before an answer it reads
what has begun, changed its state or ended since. Each server process derives the same rows by itself.

How old an answer can be: a look is shared by all requests of half a second (of four times its own length when the
store is slow), and the store itself may lag behind the runs. A change that came into the store more than ten seconds
late, or a run that Temporal has forgotten, shows in the store's own totals: they are compared with every look, and
rows that do not agree for three seconds are read anew beside the answers. All are read anew every ten minutes anyway.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus

from api.engine import RPC_LIMIT, Engine
from api.snapshot import WORKFLOW_TYPE, status_of
from foundation.errors import EngineUnavailable
from workflows.messages import TaskStatus
from workflows.states import TaskState
from workflows.task_workflow import CHANGED_KEY, STATE_KEY

# Beyond this the runs that were submitted first and have ended leave the lists; a row takes about 2 KiB.
MOST_ROWS = 100_000

_EVERY_RUN = f"WorkflowType = '{WORKFLOW_TYPE}' AND ExecutionStatus != 'ContinuedAsNew'"
_LOOK_SECONDS = 0.5
_LOOK_SHARE = 4
_MARGIN = timedelta(seconds=10)
_DISAGREE_SECONDS = 3.0
_REBUILD_SECONDS = 600.0
_REBUILD_SHARE = 20
_NOTED_SECONDS = 60.0
_PAGE = 500
_PAUSE_ROWS = 50
_CHANGES = 10_000
_RANK = {state: rank for rank, state in enumerate(TaskState)}
_LONG_AGO = datetime.fromtimestamp(0, UTC)

# What a list does not show is not kept for it.
_KEPT_OUT = {"transitions", "result", "undelivered_messages", "notes", "manifest", "usage"}


@dataclass(frozen=True, slots=True)
class Row:
    """One run as lists show it; ``packed`` is its status as JSON, without what only the run's own page shows."""

    id: str
    run_id: str
    name: str
    state: TaskState
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    state_changed_at: datetime
    began: datetime
    recorded: tuple[str, str]
    packed: bytes

    @property
    def status(self) -> TaskStatus:
        """The status that the row holds."""
        return TaskStatus.model_validate_json(self.packed)

    def is_newer_than(self, other: Row | None) -> bool:
        """Whether this is not an earlier look at the same run; its states come in one order only."""
        return other is None or _RANK[self.state] >= _RANK[other.state]


OnChange = Callable[[TaskStatus, TaskState | None], None]


class RunIndex:
    """The rows of one process. ``on_change`` hears of every run seen in another state, and of the one before."""

    def __init__(
        self, engine: Engine, on_change: Callable[[TaskStatus, TaskState | None], None] = lambda _, __: None
    ) -> None:
        self._engine = engine
        self._on_change = on_change
        self._rows: dict[str, Row] = {}
        self._newest: dict[str, str] = {}
        self._ordered: dict[str, list[Row]] = {}
        self._moment = 1
        self._changed: deque[str] = deque(maxlen=_CHANGES)
        self._left_out = 0
        self._noted: dict[str, float] = {}
        self._meanwhile: dict[str, Row] | None = None
        self._look_task: asyncio.Task[None] | None = None
        self._rebuild_task: asyncio.Task[None] | None = None
        self._fresh_until = 0.0
        self._built_at: float | None = None
        self._build_seconds = 0.0
        self._disagrees_since: float | None = None
        # The store's own time, as far as its rows have told it, and when they did.
        self._store_time = _LONG_AGO
        self._store_time_told = 0.0

    async def look(self) -> None:
        """Bring the rows up to date, as the module's first lines say. Raises EngineUnavailable."""
        if time.monotonic() < self._fresh_until:
            return
        if self._look_task is None:
            self._look_task = asyncio.create_task(self._look())
            self._look_task.add_done_callback(self._looked)
        await asyncio.shield(self._look_task)

    def note(self, status: TaskStatus, run_id: str) -> None:
        """Take a run that this process has just started, before the store shows it."""
        began = datetime.now(UTC)
        row = _row(status, run_id, began, ("noted", ""))
        self._noted[run_id] = time.monotonic()
        self._take(row, status)

    def may_run(self, task_id: str) -> bool:
        """Whether the run has not ended, as far as the rows tell without a look."""
        row = self._rows.get(self._newest.get(task_id, ""))
        return row is not None and not row.state.terminal

    def rows(self) -> Iterable[Row]:
        """The rows, in no order."""
        return (self._rows[run_id] for run_id in self._newest.values())

    def ordered(self, name: str, key: Callable[[Row], Any]) -> list[Row]:
        """The rows from the lowest key to the highest, sorted once for each state of the index and name of the key."""
        if name not in self._ordered:
            self._ordered[name] = sorted(self.rows(), key=lambda row: (key(row), row.id))
        return self._ordered[name]

    def changes(self, since: int) -> tuple[int, list[TaskStatus] | None]:
        """The runs shown in another state since a moment, and the moment now.

        None in their place when there were too many to remember: then every row has to be looked at. Moments are
        numbers from 0 on, which is no moment yet.
        """
        missed = self._moment - since
        if not since or missed > len(self._changed):
            return self._moment, None
        ids = dict.fromkeys(islice(self._changed, len(self._changed) - missed, None))
        return self._moment, [self._rows[self._newest[task_id]].status for task_id in ids if task_id in self._newest]

    def counts(self) -> Counter[TaskState]:
        """How many runs there are in each state."""
        return Counter(row.state for row in self.rows())

    async def close(self) -> None:
        """End what runs beside the requests."""
        running = [task for task in (self._look_task, self._rebuild_task) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # --- how

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._look_task = None
        if not task.cancelled():
            # Heard of by those who wait for it; without any, it is no unforeseen failure.
            task.exception()

    async def _look(self) -> None:
        begun = time.monotonic()
        client = await self._engine.client()
        with self._engine.failures():
            if self._built_at is None:
                await self._build(client)
            else:
                since = f"{self._store_now() - _MARGIN:%Y-%m-%dT%H:%M:%S.%fZ}"
                recent = f"TaskyardStateChangedAt >= '{since}' OR StartTime >= '{since}' OR CloseTime >= '{since}'"
                async for row, status in self._read(client, f"{_EVERY_RUN} AND ({recent})"):
                    self._take(row, status)
                self._compare(await self._store_counts(client))
        ended = time.monotonic()
        self._fresh_until = ended + max(_LOOK_SECONDS, _LOOK_SHARE * (ended - begun))

    async def _read(self, client: Client, query: str) -> AsyncIterator[tuple[Row, TaskStatus | None]]:
        """The store's rows; a status only with those that are not held in this state already."""
        async for number, execution in _numbered(client.list_workflows(query, page_size=_PAGE, rpc_timeout=RPC_LIMIT)):
            self._tell_time(execution)
            held = self._rows.get(execution.run_id)
            if held is not None and held.recorded == _recorded(execution):
                yield held, None
            else:
                status = await status_of(execution)
                yield _row(status, execution.run_id, execution.start_time, _recorded(execution)), status
            if number % _PAUSE_ROWS == 0:
                # Reading many rows is work for the processor: others get their turn.
                await asyncio.sleep(0)

    async def _build(self, client: Client) -> None:
        begun = time.monotonic()
        fresh: dict[str, Row] = {}
        self._meanwhile = {}
        try:
            async for row, status in self._read(client, _EVERY_RUN):
                self._take(row, status)
                fresh[row.run_id] = row
            for run_id, row in self._meanwhile.items():
                if row.is_newer_than(fresh.get(run_id)):
                    fresh[run_id] = row
        finally:
            self._meanwhile = None
        self._forget_notes(fresh)
        fresh |= {run_id: self._rows[run_id] for run_id in self._noted if run_id not in fresh}
        self._rows, self._newest, self._left_out = fresh, {}, 0
        for row in fresh.values():
            self._place(row)
        self._ordered.clear()
        self._shorten()
        self._built_at = time.monotonic()
        self._build_seconds = self._built_at - begun
        self._disagrees_since = None

    def _take(self, row: Row, status: TaskStatus | None) -> None:
        held = self._rows.get(row.run_id)
        if held is row or not row.is_newer_than(held):
            return
        if row.recorded[0] != "noted":
            self._noted.pop(row.run_id, None)
        elif held is not None:
            return
        if status is not None:
            self._tell_change(row, status)
        self._rows[row.run_id] = row
        if self._meanwhile is not None:
            self._meanwhile[row.run_id] = row
        self._place(row)
        self._ordered.clear()
        if len(self._rows) > MOST_ROWS:
            self._shorten()

    def _tell_change(self, row: Row, status: TaskStatus) -> None:
        held = self._rows.get(row.run_id)
        if (held is None or held.state is not row.state) and self._built_at is not None:
            self._moment += 1
            self._changed.append(row.id)
            self._on_change(status, held.state if held else None)

    def _place(self, row: Row) -> None:
        """Show the row, unless its id stands for a later run: Temporal's reset starts a second one."""
        shown = self._rows.get(self._newest.get(row.id, ""))
        if shown is None or shown.run_id == row.run_id or row.began >= shown.began:
            self._newest[row.id] = row.run_id

    def _shorten(self) -> None:
        surplus = len(self._rows) - MOST_ROWS
        if surplus <= 0:
            return
        ended = sorted((row for row in self._rows.values() if row.state.terminal), key=lambda row: row.created_at)
        # Some more at once, so that not every further run is a reason to sort all of them.
        for row in ended[: surplus + MOST_ROWS // 100]:
            del self._rows[row.run_id]
            if self._newest.get(row.id) == row.run_id:
                del self._newest[row.id]
            self._left_out += 1
        self._ordered.clear()

    # --- does it still agree with the store

    async def _store_counts(self, client: Client) -> Counter[str]:
        counted = await client.count_workflows(f"{_EVERY_RUN} GROUP BY ExecutionStatus", rpc_timeout=RPC_LIMIT)
        return Counter({str(group.group_values[0]): group.count for group in counted.groups})

    def _compare(self, store: Counter[str]) -> None:
        now = time.monotonic()
        own = Counter(row.recorded[1] for row in self._rows.values())
        # What was left out has ended, and nothing else of it was kept.
        agrees = store["Running"] == own["RUNNING"] + own[""] and store.total() == own.total() + self._left_out
        self._disagrees_since = None if agrees else self._disagrees_since or now
        age = now - (self._built_at or 0.0)
        disagrees = self._disagrees_since is not None and now - self._disagrees_since > _DISAGREE_SECONDS
        due = age > max(_REBUILD_SECONDS, _REBUILD_SHARE * self._build_seconds)
        if (due or (disagrees and age > _LOOK_SHARE * self._build_seconds)) and self._rebuild_task is None:
            self._rebuild_task = asyncio.create_task(self._rebuild())

    async def _rebuild(self) -> None:
        try:
            client = await self._engine.client()
            with suppress(EngineUnavailable), self._engine.failures():
                await self._build(client)
        finally:
            self._rebuild_task = None

    def _forget_notes(self, known: dict[str, Row]) -> None:
        oldest = time.monotonic() - _NOTED_SECONDS
        self._noted = {run_id: noted for run_id, noted in self._noted.items() if noted > oldest and run_id not in known}

    def _tell_time(self, execution: WorkflowExecution) -> None:
        """Learn the store's time from what it dates itself; a submission's own time is another clock's."""
        times = [execution.start_time, execution.close_time or _LONG_AGO]
        attributes = execution.typed_search_attributes
        if attributes.get(STATE_KEY) != TaskState.PENDING:
            times.append(attributes.get(CHANGED_KEY, _LONG_AGO))
        if (latest := max(times)) > self._store_now():
            self._store_time, self._store_time_told = latest, time.monotonic()

    def _store_now(self) -> datetime:
        """The store's time at least: the latest time it told, and what has passed here since."""
        if self._store_time is _LONG_AGO:
            return _LONG_AGO + _MARGIN
        return self._store_time + timedelta(seconds=time.monotonic() - self._store_time_told)


def _row(status: TaskStatus, run_id: str, began: datetime, recorded: tuple[str, str]) -> Row:
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
        recorded=recorded,
        packed=status.model_dump_json(exclude=_KEPT_OUT).encode(),
    )


def _recorded(execution: WorkflowExecution) -> tuple[str, str]:
    """What the memo and the shown state depend on: a run writes its memo only when it changes its state."""
    status = execution.status or WorkflowExecutionStatus.RUNNING
    return str(execution.typed_search_attributes.get(STATE_KEY, "")), status.name


async def _numbered(
    executions: AsyncIterator[WorkflowExecution],
) -> AsyncIterator[tuple[int, WorkflowExecution]]:
    number = 0
    async for execution in executions:
        number += 1
        yield number, execution
