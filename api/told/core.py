"""The core of runs that are told: local runs from their creation to their end, and what clients tell of any run."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakValueDictionary

import httpx
from anyio import CapacityLimiter, to_thread
from temporalio.client import WorkflowExecutionStatus

from api.machines.hosts import Hosts
from api.runs.core import Core
from api.temporal.client import Engine
from api.temporal.executions import Executions
from api.temporal.index import RunIndex
from api.told import entries, recorded
from api.told.appending import ClientLogs
from api.told.ingest import ingest
from foundation.errors import (
    Conflict,
    DuplicateTaskId,
    HostUnreachable,
    InvalidParameter,
    NotFound,
    TaskNotFound,
)
from foundation.schemas.json_schema import misfit
from foundation.service.paths import log_path, numbered_path
from storage import records
from storage.bucket import Bucket
from storage.layout import TASKS, Place
from storage.live.numbered import Ingested, Numbered, as_lines
from storage.segments import find_seal, told_draft
from workflows import names
from workflows.runs.messages import TaskStatus
from workflows.told.messages import RECORD_KIND, LocalStatus
from workflows.told.record import OUTPUT_BYTES, STATE_BYTES, Change, Standing, Told, merge
from workflows.told.states import LocalState

_COMPARISONS = 4
_COMPLETED = LocalState.COMPLETED
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_UNTEXT = re.compile("[\ud800-\udfff]")
_TEXTS = ("stage", "branch", "error_message", "environment", "mode")


@dataclass(frozen=True)
class ToldRun:
    """A run of which clients tell: a ``local`` one, whose agent works elsewhere, or one that is executed here."""

    status: LocalStatus | TaskStatus

    @property
    def local(self) -> LocalStatus | None:
        """The status of a local run."""
        return self.status if isinstance(self.status, LocalStatus) else None

    @property
    def told(self) -> Told:
        """What was told of it so far."""
        return self.status.told or Told()

    @property
    def ended(self) -> bool:
        """Whether nothing about it changes any more."""
        return self.status.state.terminal


class ToldRuns:
    """What can be done with what clients tell. Every method raises errors of the one tree."""

    def __init__(
        self,
        engine: Engine,
        bucket: Bucket,
        runs: Core,
        index: RunIndex[LocalStatus],
        logs: ClientLogs,
        hosts: Hosts,
    ) -> None:
        self._local = Executions(engine, names.LOCAL_RUNS)
        self._hosted = Executions(engine, names.RUNS)
        self._bucket = bucket
        self._runs = runs
        self._logs = logs
        self._hosts = hosts
        self.index = index
        # Each is a process of its own.
        self._comparisons = CapacityLimiter(_COMPARISONS)
        # Temporal takes few updates of one workflow at once: those of this process come one after another.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    # --- local runs

    async def create(
        self,
        run_id: str,
        *,
        state: LocalState = LocalState.CREATED,
        name: str = "",
        parent: str | None = None,
        told: Change | None = None,
    ) -> LocalStatus:
        """A local run in this state, of which ``told`` is told from the beginning; no worker is needed.

        Raises DuplicateTaskId when a local run has the id, InvalidParameter, PayloadTooLarge.
        """
        _check_form(run_id)
        now = datetime.now(UTC)
        status = LocalStatus(
            id=run_id, name=name, parent=parent, state=state, created_at=now, state_changed_at=now, changed_at=now
        )
        if told is not None:
            status.told = merge(Told(), checked_change(told))
        if state is LocalState.RUNNING:
            status.started_at = now
        temporal_id = await self._local.start(
            run_id,
            status,
            status,
            recorded.search_attributes(status),
            summary="A run whose agent works elsewhere",
            details="",
            named="the run",
        )
        if temporal_id is None:
            raise DuplicateTaskId(f"Run '{run_id}' was already created.", existing_task={"id": run_id})
        self.index.note(status, temporal_id)
        return status

    async def local(self, run_id: str) -> LocalStatus:
        """A local run as it stands. Raises TaskNotFound."""
        found = await self._find_local(run_id)
        if found is None:
            raise TaskNotFound(f"No local run '{run_id[:80]}'.")
        return found

    # --- any run

    async def look(self, run_id: str) -> ToldRun:
        """A run as it stands, local or executed here. Raises TaskNotFound."""
        _check_form(run_id)
        if self.index.may_run(run_id) and (found := await self._find_local(run_id)) is not None:
            return ToldRun(found)
        try:
            return ToldRun((await self._runs.status(run_id, definition=True, patient=True)).status)
        except TaskNotFound:
            found = await self._find_local(run_id)
            if found is None:
                raise
            return ToldRun(found)

    async def is_over(self, run: ToldRun) -> bool:
        """Whether the run has ended, and its log is complete."""
        if not run.ended:
            return False
        described = await (self._hosted if run.local is None else self._local).describe(run.status.id)
        return described is None or described.status is not WorkflowExecutionStatus.RUNNING

    async def tell(self, run_id: str, change: Change) -> ToldRun:
        """Tell something of a run, and give it as it stands then. One that has ended stays as it is.

        A state that ends a run ends it, wherever it is executed. Raises TaskNotFound, Conflict for a state that the
        run does not go back to, PayloadTooLarge, InvalidParameter, TimedOut when no worker takes it.
        """
        change = checked_change(change)
        turn = self._turns.get(run_id) or asyncio.Lock()
        self._turns[run_id] = turn
        async with turn:
            run = await self.look(run_id)
            if run.ended:
                return run
            kind = self._hosted if run.local is None else self._local
            # One that has ended meanwhile stays as it is.
            await kind.update(run_id, names.TELL, change, Standing)
        return await self.look(run_id)

    async def append(self, run_id: str, told: Sequence[Any], run: ToldRun | None = None) -> bool:
        """Append entries to the log of a run, which may be any JSON; false when it has ended, and takes no more.

        All of them are stored, or none. ``run`` is the run of a look just now. Raises TaskNotFound, InvalidParameter,
        PayloadTooLarge, RateLimitExceeded, BucketUnavailable.
        """
        lines = await asyncio.to_thread(entries.lines, told)
        run = run or await self.look(run_id)
        if run.ended:
            return False
        drafts = [told_draft(line) for line in lines]
        try:
            if await self._ask_host(run, log_path, "".join(lines)) is None:
                await self._logs.append(TASKS.place(run_id), lambda _: drafts, sum(map(len, lines)))
        except Conflict as error:
            if error.details.get("reason") != "closed":
                raise
            return False
        return True

    async def close(self) -> None:
        """Store what was taken, and end what runs beside the requests."""
        await self._logs.close()
        await self.index.close()

    async def ingest(self, run_id: str, numbered: Sequence[Numbered], run: ToldRun | None = None) -> Ingested:
        """Append numbered entries that are new, in order; of a run that has ended, all are taken for known.

        Without any, the number of the last one is told. ``run`` is the run of a look just now. Raises TaskNotFound,
        Conflict at a gap (``last_accepted_seq``), RateLimitExceeded, BucketUnavailable.
        """
        place = _check_form(run_id)
        run = run or await self.look(run_id)
        if not run.ended:
            try:
                answer = await self._ask_host(run, numbered_path, as_lines(numbered)) if numbered else None
                if answer is not None:
                    return Ingested.model_validate_json(answer)
                return await ingest(self._logs, place, numbered)
            except Conflict as error:
                if error.details.get("reason") != "closed":
                    raise
        # What is late changes nothing, and whoever sends it is not to send it again.
        seal = await asyncio.to_thread(find_seal, self._bucket, place)
        stored = seal.sequence if seal else 0
        last = max((stored, *(entry.number for entry in numbered)))
        return Ingested(duplicate=len(numbered), last=last)

    async def set_output(self, run_id: str, output: Any, schema: dict[str, Any] | None = None) -> ToldRun:
        """Set the output of a run in place of the one it had. With a schema, one that fits completes the run.

        Raises as ``tell`` does, and InvalidParameter for an output that does not fit.
        """
        if (run := await self.look(run_id)).ended:
            return run
        if schema is not None and (reason := await self._misfit(schema, output)) is not None:
            raise InvalidParameter(f"Output validation error: {reason}.", field="output")
        change = Change(output=output, replace_output=True, cleared=["output"] if output is None else [])
        return await self.tell(run_id, change if schema is None else change.model_copy(update={"enter": _COMPLETED}))

    # --- how

    async def _ask_host(self, run: ToldRun, path: Callable[[str], str], lines: str) -> bytes | None:
        """Append through the host that follows the run now, which tells its log before it is stored; its answer.

        None without one. What went past it would take ids that it has told to followers.
        """
        host = run.status.host if isinstance(run.status, TaskStatus) else None
        if host is None:
            return None
        subject = TASKS.place(run.status.id).prefix.rstrip("/")
        asked = self._hosts.request(host, subject, "log", "POST", path(subject), content=lines.encode())
        try:
            async with asked as response:
                return await response.aread()
        except NotFound:
            # It is of a version that takes none.
            return None
        except HostUnreachable as error:
            cause = error.__cause__
            if isinstance(cause, httpx.TransportError) and not isinstance(cause, _NOT_SENT):
                # It may have taken them.
                raise
            # It is away, and tells nobody.
            return None

    async def _misfit(self, schema: dict[str, Any], output: Any) -> str | None:
        output = await asyncio.to_thread(entries.checked, output, "output", OUTPUT_BYTES)
        return await to_thread.run_sync(misfit, schema, output, limiter=self._comparisons)

    async def _find_local(self, run_id: str) -> LocalStatus | None:
        place = _check_form(run_id)
        described = await self._local.describe(run_id)
        if described is not None:
            return await recorded.status_of(described)
        record = await asyncio.to_thread(records.read_record, self._bucket, place)
        return LocalStatus.model_validate(record) if record and record.get("kind") == RECORD_KIND else None


class TellingLooks:
    """Looks at runs for those who watch them: local ones too, and with what was told of each."""

    def __init__(self, runs: ToldRuns) -> None:
        self._runs = runs

    async def look(self, run_id: str, _: object, /) -> tuple[LocalStatus | TaskStatus, None, bool]:
        """The run as it stands, and whether all is over. Raises TaskNotFound, EngineUnavailable."""
        run = await self._runs.look(run_id)
        return run.status, None, await self._runs.is_over(run)


def checked_change(change: Change) -> Change:
    """The change as JSON gives it back that every process can read. Raises InvalidParameter, PayloadTooLarge."""
    texts = {name: _UNTEXT.sub("?", text) for name in _TEXTS if (text := getattr(change, name)) is not None}
    return change.model_copy(
        update={
            **texts,
            "output": entries.checked(change.output, "output", OUTPUT_BYTES),
            "state": entries.checked(change.state, "state", STATE_BYTES),
            "remove_keys": entries.checked(change.remove_keys, "remove_keys", STATE_BYTES),
        }
    )


def _check_form(run_id: str) -> Place:
    """Raise TaskNotFound for what can be no run's id."""
    try:
        return TASKS.place(run_id)
    except InvalidParameter as error:
        raise TaskNotFound(f"No run '{run_id[:80]}'.") from error
