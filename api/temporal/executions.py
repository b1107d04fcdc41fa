"""Workflows as the core of a resource calls them: started, described, asked and told, by the resource's id."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel
from temporalio.client import (
    WorkflowExecutionDescription,
    WorkflowExecutionStatus,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.common import TypedSearchAttributes, WorkflowIDReusePolicy
from temporalio.exceptions import ApplicationError, WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from api.temporal.client import RPC_LIMIT, Engine, is_unknown
from foundation.errors import EngineUnavailable, PayloadTooLarge, ServiceUnavailable, TaskyardError, TimedOut, error_of
from workflows.names import STATUS_MEMO, WorkflowKind

# A live worker answers a query in some 30 ms; beyond this the memo answers instead.
_QUERY_LIMIT = timedelta(seconds=1)
# A workflow that goes on with a new history takes nothing for an instant.
_TRIES = 5
_PAUSE_SECONDS = 0.2
# A step on a host whose worker is there takes a fraction of a second.
_UPDATE_SECONDS = 20.0
# Who asks for the state of many runs while no worker is there waits for the first of them only.
_UNANSWERED_SECONDS = 2.0

Model = TypeVar("Model", bound=BaseModel)


class Executions:
    """The workflows of one kind. Every method raises EngineUnavailable when Temporal does not answer."""

    def __init__(self, engine: Engine, kind: WorkflowKind) -> None:
        self._engine = engine
        self._kind = kind
        self._unanswered_until = 0.0

    @property
    def answering(self) -> bool:
        """Whether a query may find a worker: none has gone unanswered a moment ago."""
        return time.monotonic() >= self._unanswered_until

    async def start(
        self,
        resource_id: str,
        submission: BaseModel,
        status: BaseModel,
        attributes: TypedSearchAttributes,
        *,
        summary: str,
        details: str,
        named: str,
    ) -> str | None:
        """Start a workflow with its submission; the id of its run in Temporal, None when the resource's id is taken.

        ``status`` is its memo from the beginning, ``summary`` and ``details`` are for the Temporal UI. Raises
        PayloadTooLarge, which calls the submission what it is ``named``.
        """
        client = await self._engine.client()
        try:
            with self._engine.failures():
                handle = await client.start_workflow(
                    self._kind.type,
                    submission,
                    id=self._kind.workflow_id(resource_id),
                    task_queue=self._engine.task_queue,
                    id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
                    memo={STATUS_MEMO: status.model_dump(mode="json")},
                    search_attributes=attributes,
                    static_summary=summary,
                    static_details=details,
                    rpc_timeout=RPC_LIMIT,
                )
        except WorkflowAlreadyStartedError:
            return None
        except RPCError as error:
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                raise PayloadTooLarge(f"Temporal refused {named}: {error.message}.") from error
            raise
        return handle.result_run_id or ""

    async def describe(self, resource_id: str) -> WorkflowExecutionDescription | None:
        """What Temporal knows of a workflow; None when it knows none of this kind."""
        handle = await self._handle(resource_id)
        try:
            with self._engine.failures():
                described = await handle.describe(rpc_timeout=RPC_LIMIT)
        except RPCError as error:
            if is_unknown(error):
                return None
            raise
        return described if described.workflow_type == self._kind.type else None

    async def query(self, resource_id: str, name: str, answer_type: type[Model]) -> Model | None:
        """What a workflow answers; None when no worker does."""
        handle = await self._handle(resource_id)
        try:
            with self._engine.failures():
                answer: Model = await handle.query(name, result_type=answer_type, rpc_timeout=_QUERY_LIMIT)
        except (EngineUnavailable, RPCError, WorkflowQueryFailedError):
            self._unanswered_until = time.monotonic() + _UNANSWERED_SECONDS
            return None
        self._unanswered_until = 0.0
        return answer

    async def signal(self, resource_id: str, name: str, *payload: BaseModel) -> bool:
        """Signal a workflow; false when it has ended meanwhile. Raises PayloadTooLarge."""
        handle = await self._handle(resource_id)
        try:
            with self._engine.failures():
                await handle.signal(name, args=payload, rpc_timeout=RPC_LIMIT)
        except RPCError as error:
            if is_unknown(error):
                return False
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                raise PayloadTooLarge(f"Temporal refused what was sent: {error.message}.") from error
            raise
        return True

    async def update(self, resource_id: str, name: str, payload: BaseModel, answer_type: type[Model]) -> Model | None:
        """What a workflow answers once it has done what it is told; None when it has ended meanwhile.

        Raises what the workflow refuses it with, TimedOut when it has not done it in time: it may do it yet, and
        ServiceUnavailable when it takes nothing now.
        """
        for attempt in range(_TRIES):
            if attempt:
                await asyncio.sleep(_PAUSE_SECONDS * 2 ** (attempt - 1))
            answer = await self._update(resource_id, name, payload, answer_type)
            if answer is not None:
                return answer
            described = await self.describe(resource_id)
            if described is None or described.status is not WorkflowExecutionStatus.RUNNING:
                return None
        raise ServiceUnavailable(f"'{resource_id}' does not take this now; send it again.")

    async def cancel(self, resource_id: str) -> bool:
        """Cancel a workflow in Temporal itself; false when it has ended meanwhile."""
        handle = await self._handle(resource_id)
        try:
            with self._engine.failures():
                await handle.cancel(rpc_timeout=RPC_LIMIT)
        except RPCError as error:
            if is_unknown(error):
                return False
            raise
        return True

    async def submission(self, resource_id: str, submission_type: type[Model]) -> Model | None:
        """What a workflow was started with, from the first event of its history, which needs no worker.

        None when it is nothing of that type. Raises RPCError when Temporal does not know the workflow (``is_unknown``).
        """
        client = await self._engine.client()
        handle = await self._handle(resource_id)
        with self._engine.failures():
            async for event in handle.fetch_history_events(page_size=1, rpc_timeout=RPC_LIMIT):
                payloads = event.workflow_execution_started_event_attributes.input.payloads
                decoded = await client.data_converter.decode(payloads, type_hints=[submission_type])
                first = decoded[0] if decoded else None
                return first if isinstance(first, submission_type) else None
        return None

    async def _update(self, resource_id: str, name: str, payload: BaseModel, answer_type: type[Model]) -> Model | None:
        handle = await self._handle(resource_id)
        try:
            with self._engine.failures():
                async with asyncio.timeout(_UPDATE_SECONDS):
                    answer: Model = await handle.execute_update(name, payload, result_type=answer_type)
                    return answer
        except (TimeoutError, WorkflowUpdateRPCTimeoutOrCancelledError):
            raise TimedOut(
                f"'{resource_id}' has not done this within {_UPDATE_SECONDS:.0f} s, and may do it yet: its host or its "
                "worker does not answer. Look at it before you send it again."
            ) from None
        except WorkflowUpdateFailedError as error:
            raise _refusal(error.cause) from None
        except RPCError as error:
            if is_unknown(error):
                return None
            if error.status is RPCStatusCode.INVALID_ARGUMENT:
                raise PayloadTooLarge(f"Temporal refused what was sent: {error.message}.") from error
            raise

    async def _handle(self, resource_id: str) -> WorkflowHandle[object, object]:
        client = await self._engine.client()
        return client.get_workflow_handle(self._kind.workflow_id(resource_id))


def _refusal(cause: BaseException) -> TaskyardError:
    """The error of ours that a workflow refuses something with; a worker of an earlier version knows nothing of it."""
    refused = error_of(cause.type or "") if isinstance(cause, ApplicationError) else None
    if refused is None or not isinstance(cause, ApplicationError):
        return ServiceUnavailable("The worker that has the run is of another version, and cannot do this; update it.")
    facts = cause.details[0] if cause.details and isinstance(cause.details[0], dict) else {}
    return refused(cause.message, **facts)
