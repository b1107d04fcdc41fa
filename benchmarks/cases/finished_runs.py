"""Runs that have ended, made by the thousand: a stand-in for the task workflow that starts as it ends."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from temporalio import workflow
from temporalio.client import Client
from temporalio.common import SearchAttributePair, TypedSearchAttributes
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from api.runs.recorded import search_attributes
from workflows.names import RUNS, STARTED_KEY, STATUS_MEMO
from workflows.runs.messages import TaskStatus, TaskSubmission, Transition
from workflows.runs.states import STATE_MESSAGES, TaskState

_AT_ONCE = 40
_STEPS = (
    TaskState.PENDING,
    TaskState.STAGING,
    TaskState.PROVISIONING,
    TaskState.READY,
    TaskState.RUNNING,
    TaskState.COMPLETING,
)


@workflow.defn(name=RUNS.type)
class EndedRun:
    """Ends at once; memo and search attributes were given at its start, as a run leaves them at its end."""

    @workflow.run
    async def run(self, submission: TaskSubmission | None = None) -> None:
        """Nothing is left to do."""


def ended_status(number: int, batch: str, began: datetime) -> TaskStatus:
    """The final status of a run; state, name, labels and times follow from its number."""
    state = (TaskState.COMPLETED, TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED)[number % 4]
    created = began + timedelta(seconds=number)
    entered = [created + timedelta(seconds=10 * place) for place in range(len(_STEPS) + 1)]
    return TaskStatus(
        id=f"{batch}-{number:05d}",
        name=f"run {number * 7919 % 5003:05d} of {batch}",
        labels={"batch": batch, "team": f"team-{number % 10}"},
        state=state,
        state_message=STATE_MESSAGES[state],
        created_at=created,
        started_at=entered[1],
        state_changed_at=entered[-1],
        exit_code=0 if state is TaskState.COMPLETED else 1,
        error=None if state is TaskState.COMPLETED else "Claude Code exited with code 1.",
        transitions=[Transition(state=step, at=at) for step, at in zip((*_STEPS, state), entered, strict=True)],
    )


async def make_ended_runs(
    client: Client, count: int, report: Callable[[int], None] = lambda _: None, batch: str | None = None
) -> list[TaskStatus]:
    """Start ``count`` runs that end at once; their statuses, oldest first. The ids begin with the batch."""
    batch = batch or f"ended-{uuid.uuid4().hex[:8]}"
    queue = f"stand-in-{batch}"
    began = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    statuses = [ended_status(number, batch, began) for number in range(count)]
    async with Worker(
        client,
        task_queue=queue,
        workflows=[EndedRun],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
        # Without one, the SDK hashes the code of all modules in the event loop.
        build_id="ended-runs",
    ):
        for first in range(0, count, _AT_ONCE):
            await asyncio.gather(*(_end(client, queue, status) for status in statuses[first : first + _AT_ONCE]))
            report(min(first + _AT_ONCE, count))
    return statuses


async def _end(client: Client, queue: str, status: TaskStatus) -> None:
    started: Iterable[SearchAttributePair[datetime]] = (
        [SearchAttributePair(STARTED_KEY, status.started_at)] if status.started_at else []
    )
    handle = await client.start_workflow(
        RUNS.type,
        id=RUNS.workflow_id(status.id),
        task_queue=queue,
        memo={STATUS_MEMO: status.model_dump(mode="json")},
        search_attributes=TypedSearchAttributes([*search_attributes(status).search_attributes, *started]),
    )
    await handle.result()
