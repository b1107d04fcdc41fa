"""The one core behind every dialect: submit, look at, list, cancel and talk to task runs, and read what they left."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TypeVar

from pydantic import BaseModel
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from api.runs import listing, recorded, shown
from api.runs.admission import Admission
from api.runs.continuation.rules import chain_of
from api.runs.uploads import all_artifacts, open_artifact
from api.temporal.client import Engine, is_unknown
from api.temporal.executions import Executions
from api.temporal.index import RunIndex
from api.temporal.pollers import Pollers
from foundation.errors import (
    ArtifactNotFound,
    DuplicateTaskId,
    InvalidParameter,
    PayloadTooLarge,
    RateLimitExceeded,
    ServiceUnavailable,
    SessionClosed,
    TaskAlreadyTerminal,
    TaskNotFound,
)
from foundation.units import format_size
from storage import records
from storage.bucket import Bucket, ObjectStream
from storage.layout import TASKS
from workflows import names
from workflows.runs.inbox import WAITING_MOST
from workflows.runs.messages import (
    MESSAGE_BYTES,
    CancelRequest,
    Continued,
    ContinueRequest,
    MachineFigures,
    NetworkChange,
    NetworkStanding,
    StartHeld,
    TaskStatus,
    TaskSubmission,
    UserMessage,
)
from workflows.runs.requests import Artifact
from workflows.runs.states import TaskState
from workflows.specs.wire import Manifest
from workflows.told.record import Told

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_OWN_ID_ATTEMPTS = 3

Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class TaskView:
    """A run as it stands. ``live`` is false when no worker answered and the last recorded status is shown."""

    status: TaskStatus
    live: bool


class Core:
    """What can be done with task runs. Every method raises errors of the one tree, never Temporal's or S3's own."""

    def __init__(self, engine: Engine, bucket: Bucket, index: RunIndex[TaskStatus], admission: Admission) -> None:
        self._executions = Executions(engine, names.RUNS)
        self._bucket = bucket
        self._index = index
        self._admission = admission
        self._pollers = Pollers(engine)

    async def submit(
        self,
        manifest: Manifest,
        *,
        viewer: str | None = None,
        parent: str | None = None,
        told: Told | None = None,
        held: bool = False,
    ) -> TaskStatus:
        """Start a run of a manifest that was accepted, as one of its ``parent``, and give its first status.

        ``viewer`` submits it, None for nobody who is known. ``told`` is told of it from the beginning. One that is
        ``held`` does nothing until ``start_held``. Raises InsufficientResources before anything starts, DuplicateTaskId
        when the id is taken, InvalidManifest or Conflict when it cannot have or continue what it names.
        """
        await self._admission.check(manifest, viewer)
        continues = await chain_of(manifest, self._with_manifest)
        submission = TaskSubmission(
            task_id="", manifest=manifest, parent=parent, told=told, continues=continues, held=held
        )
        if manifest.metadata.id is not None:
            return await self._start(manifest.metadata.id, submission)
        for _ in range(_OWN_ID_ATTEMPTS - 1):
            with suppress(DuplicateTaskId):
                return await self._start(new_task_id(), submission)
        return await self._start(new_task_id(), submission)

    async def start_held(self, task_id: str, prompt: str | None = None) -> TaskStatus:
        """Let a run begin that is held, with another prompt if one is given; one that has begun goes on as it is.

        Raises TaskNotFound, TaskAlreadyTerminal, TimedOut when no worker takes it.
        """
        check_text("prompt", prompt or "")
        return await self.tell(task_id, names.START_HELD, StartHeld(prompt=prompt), TaskStatus)

    async def check(self, manifest: Manifest, viewer: str | None = None) -> None:
        """Raise what ``submit`` would raise for the manifest, and start nothing."""
        await self._admission.check(manifest, viewer)
        await chain_of(manifest, self._with_manifest)
        if manifest.metadata.id is not None and await self._executions.describe(manifest.metadata.id) is not None:
            raise await self._duplicate(manifest.metadata.id)

    async def status(self, task_id: str, *, definition: bool = False, patient: bool = False) -> TaskView:
        """The run as it stands; with ``definition`` its manifest is always there.

        Where no worker has answered a moment ago, none is asked, unless the caller is ``patient``.
        The status comes from the running workflow; from its record in Temporal when no worker answers or it has ended;
        and from the final record in the bucket once Temporal has forgotten the run. Raises TaskNotFound.
        """
        _check_form(task_id)
        queried = patient or self._executions.answering
        # The query runs beside Temporal's own description of the run; for an ended run there is none.
        query = asyncio.create_task(self._query(task_id)) if queried and self._index.may_run(task_id) else None
        try:
            described = await self._executions.describe(task_id)
            if described is None:
                return TaskView(await self._final_record(task_id), live=True)
            running = described.status is WorkflowExecutionStatus.RUNNING
            if running and queried:
                status = await (query or self._query(task_id))
            else:
                status = None
        finally:
            if query is not None:
                query.cancel()
        live = status is not None or not running
        if status is None:
            # The run may have ended while it was asked.
            described = await self._executions.describe(task_id) if running else described
            if described is None:
                return TaskView(await self._final_record(task_id), live=True)
            status = await recorded.status_of(described)
            if definition:
                try:
                    submission = await self._executions.submission(task_id, TaskSubmission)
                    status.manifest = submission.manifest if submission else None
                except RPCError as error:
                    if not is_unknown(error):
                        raise
                    # Temporal has forgotten the run since it described it.
                    return TaskView(await self._final_record(task_id), live=True)
        else:
            created_at = described.typed_search_attributes.get(names.CREATED_KEY, status.created_at)
            status = status.model_copy(update={"created_at": created_at})
        if status.state is TaskState.RUNNING:
            status = await recorded.with_live_progress(status, described)
        return TaskView(status, live)

    async def look(self, task_id: str, before: TaskStatus | None) -> tuple[TaskStatus, MachineFigures | None, bool]:
        """The run, the last figures of its guest, and whether all is over, at the price of one request to Temporal.

        ``before`` is the status of the last look: what cannot change within a state is taken from it. Raises
        TaskNotFound, EngineUnavailable.
        """
        _check_form(task_id)
        described = await self._executions.describe(task_id)
        if described is None:
            return await self._final_record(task_id), None, True
        ended = described.status is not WorkflowExecutionStatus.RUNNING
        status = await recorded.status_of(described)
        if before is None or before.state is not status.state:
            before = (await self.status(task_id, patient=True)).status
        live = await recorded.live_progress(described)
        if live is not None:
            before = before.model_copy(update={"progress": live.without_figures(), "usage": live.usage or before.usage})
        return before, live.machine if live else None, ended

    async def changes(self, since: int) -> tuple[int, list[TaskStatus]]:
        """The runs that have changed since a moment of the index, and the moment now.

        Where those are not known any more, and at moment 0, all that have not ended. Raises EngineUnavailable.
        """
        await self._index.look()
        moment, changed = self._index.changes(since)
        if changed is None:
            changed = [row for row in self._index.rows() if not row.ended]
        return moment, [recorded.listed_status(row) for row in changed]

    async def find(self, query: listing.TaskQuery) -> listing.Page:
        """A page of the runs that Temporal still knows."""
        await self._index.look()
        return listing.find(self._index, query)

    async def counts(self) -> Counter[str]:
        """How many runs are in each state now."""
        await self._index.look()
        return self._index.counts()

    async def cancel(self, task_id: str, request: CancelRequest) -> TaskStatus:
        """Ask the run to end, and give its status from before. Raises TaskNotFound, TaskAlreadyTerminal.

        The run stops its agent, collects its artifacts and tears its machine down; it is cancelled when it has.
        """
        check_text("reason", request.reason)
        before = await self._active(task_id)
        try:
            signalled = await self._executions.signal(task_id, names.CANCEL, request)
        except PayloadTooLarge:
            # Temporal takes a limited number of signals for one run: its own cancellation is none, and means the same.
            signalled = await self._executions.cancel(task_id)
        if not signalled:
            raise _already_terminal((await self.status(task_id)).status)
        return before

    async def send_message(self, task_id: str, message: UserMessage) -> TaskStatus:
        """Hand the agent a further message.

        Raises TaskNotFound, TaskAlreadyTerminal, SessionClosed when the run takes no more, PayloadTooLarge,
        RateLimitExceeded when too many are waiting.
        """
        check_text("text", message.text)
        if len(message.text.encode()) > MESSAGE_BYTES:
            raise PayloadTooLarge(f"A message holds at most {format_size(MESSAGE_BYTES)}; put more into a file.")
        status = await self._active(task_id)
        if not status.takes_messages or status.state is TaskState.COMPLETING:
            raise SessionClosed(f"Task '{task_id}' takes no more messages: its session is closed, or its history full.")
        if status.waiting_messages >= WAITING_MOST:
            raise RateLimitExceeded(f"{WAITING_MOST} messages are waiting for task '{task_id}'; send this one later.")
        if not await self._executions.signal(task_id, names.USER_MESSAGE, message):
            raise SessionClosed(f"Task '{task_id}' takes no more messages; its agent has finished.")
        return status

    async def close_session(self, task_id: str) -> TaskStatus:
        """Let a ``headless: false`` session end after its last answer. Raises TaskNotFound, TaskAlreadyTerminal."""
        status = await self._active(task_id)
        if not await self._executions.signal(task_id, names.CLOSE):
            raise _already_terminal((await self.status(task_id)).status)
        return status

    async def change_network(self, task_id: str, change: NetworkChange) -> NetworkStanding:
        """Change what the run's machine may reach, and give the policy that came of it (``api.runs.network``)."""
        return await self.tell(task_id, names.CHANGE_NETWORK, change, NetworkStanding)

    async def continue_run(self, task_id: str, more: ContinueRequest) -> Continued:
        """Add to the budget of a run that has used it up and waits, which goes on then; its limits from now on.

        Raises TaskNotFound, TaskAlreadyTerminal, Conflict when it does not wait, InvalidParameter when that is not
        enough, TimedOut.
        """
        return await self.tell(task_id, names.CONTINUE_RUN, more, Continued)

    async def tell(self, task_id: str, update: str, payload: BaseModel, answer_type: type[Model]) -> Model:
        """Tell the run something by an update of its workflow, and give its answer once that is done.

        Raises TaskNotFound, TaskAlreadyTerminal, TimedOut, and whatever the run refuses it with.
        """
        await self._active(task_id)
        answer = await self._executions.update(task_id, update, payload, answer_type)
        if answer is None:
            raise _already_terminal((await self.status(task_id)).status)
        return answer

    async def ask(self, task_id: str, query: str, answer_type: type[Model]) -> Model:
        """What a run that has not ended answers. Raises TaskNotFound, TaskAlreadyTerminal, ServiceUnavailable."""
        await self._active(task_id)
        answer = await self._executions.query(task_id, query, answer_type)
        if answer is None:
            raise ServiceUnavailable("No worker answers for the run; try again once one is there.")
        return answer

    async def artifacts(self, task_id: str, *, hidden: bool = False) -> list[Artifact]:
        """What the run has left so far; also what is ``hidden`` if that is asked for. Raises TaskNotFound."""
        _check_form(task_id)
        found = await asyncio.to_thread(all_artifacts, self._bucket, TASKS.place(task_id))
        if not found:
            await self.status(task_id)
        return [each for each in found if hidden or not each.hidden]

    async def artifact(self, task_id: str, name: str) -> Artifact:
        """One artifact, by its name or its path in the workspace. Raises TaskNotFound, ArtifactNotFound."""
        found = await self.artifacts(task_id, hidden=True)
        for candidate in found:
            if candidate.name == name:
                return candidate
        for candidate in found:
            if candidate.path == name:
                return candidate
        raise ArtifactNotFound(
            f"Task '{task_id}' has no artifact '{name}'; 'sandbox task artifacts {task_id}' lists those it has."
        )

    async def open_artifact(self, task_id: str, name: str, offset: int, length: int) -> ObjectStream:
        """A stored artifact from byte ``offset`` on; its reading blocks. Raises ArtifactNotFound, BucketUnavailable."""
        return await asyncio.to_thread(open_artifact, self._bucket, TASKS.place(task_id), name, offset, length)

    async def has_ended(self, task_id: str) -> bool:
        """Whether the run is over and its log complete: its workflow has closed, or Temporal has forgotten it."""
        described = await self._executions.describe(task_id)
        return described is None or described.status is not WorkflowExecutionStatus.RUNNING

    async def check_engine(self) -> int:
        """How many workers poll the task queue. Raises EngineUnavailable."""
        return await self._pollers.count()

    # --- how

    async def _with_manifest(self, task_id: str) -> TaskStatus:
        return (await self.status(task_id, definition=True)).status

    async def _start(self, task_id: str, submission: TaskSubmission) -> TaskStatus:
        manifest = submission.manifest
        manifest = manifest.model_copy(update={"metadata": manifest.metadata.model_copy(update={"id": task_id})})
        submission = submission.model_copy(update={"task_id": task_id, "manifest": manifest})
        status = recorded.initial_status(submission, datetime.now(UTC))
        run_id = await self._executions.start(
            task_id,
            submission,
            status,
            recorded.search_attributes(status),
            summary=shown.summary(manifest),
            details=shown.details(manifest),
            named="the manifest",
        )
        if run_id is None:
            raise await self._duplicate(task_id)
        self._index.note(status, run_id)
        return status

    async def _duplicate(self, task_id: str) -> DuplicateTaskId:
        try:
            existing = (await self.status(task_id)).status
        except TaskNotFound:
            return DuplicateTaskId(f"Task '{task_id}' was already submitted.", existing_task={"id": task_id})
        created_at = existing.created_at.isoformat().replace("+00:00", "Z")
        facts = {"id": task_id, "state": existing.state.value, "created_at": created_at}
        return DuplicateTaskId(
            f"Task '{task_id}' was already submitted and is {existing.state}; "
            "give another metadata.id, or none to have one made.",
            existing_task=facts,
        )

    async def _active(self, task_id: str) -> TaskStatus:
        status = (await self.status(task_id)).status
        if status.state.terminal:
            raise _already_terminal(status)
        return status

    async def _query(self, task_id: str) -> TaskStatus | None:
        return await self._executions.query(task_id, names.STATUS, TaskStatus)

    async def _final_record(self, task_id: str) -> TaskStatus:
        record = await asyncio.to_thread(records.read_record, self._bucket, TASKS.place(task_id))
        # The record of a run of another kind says so.
        if record is None or "kind" in record:
            raise TaskNotFound(f"No task '{task_id}'; 'sandbox task list' shows those there are.")
        return TaskStatus.model_validate(record)


def new_task_id() -> str:
    """An id that sorts by its time of making: seconds in base 32, then 25 random bits."""
    return _base32(int(time.time()), 7) + "-" + _base32(secrets.randbits(25), 5)


def _check_form(task_id: str) -> None:
    """Raise TaskNotFound for what can be no run's id."""
    try:
        TASKS.place(task_id)
    except InvalidParameter as error:
        raise TaskNotFound(f"No task '{task_id[:80]}'; 'sandbox task list' shows those there are.") from error


def check_text(field: str, text: str) -> None:
    """Raise InvalidParameter for text that cannot be written down."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidParameter(f"{field} holds half of a character (a lone surrogate); send Unicode text.") from error


def _base32(number: int, digits: int) -> str:
    return "".join(_BASE32[(number >> (5 * place)) & 31] for place in reversed(range(digits)))


def _already_terminal(status: TaskStatus) -> TaskAlreadyTerminal:
    return TaskAlreadyTerminal(f"Task '{status.id}' has already ended: {status.state}.", task_state=status.state.value)
