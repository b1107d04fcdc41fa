"""A run as Temporal keeps it without any worker: memo, search attributes, execution status, heartbeat details.

And as lists show it: ``TASK_RUNS`` says how the index reads and keeps the workflows of task runs.
"""

from __future__ import annotations

from datetime import datetime

from temporalio.client import WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from api.temporal.keywords import keyword, label_token
from api.temporal.memo import remembered
from api.temporal.rows import Recorded, Resource, Row
from workflows import steps
from workflows.names import (
    CHANGED_KEY,
    CREATED_KEY,
    LABELS_KEY,
    NAME_KEY,
    PARENT_KEY,
    RUNS,
    STARTED_KEY,
    STATE_KEY,
)
from workflows.runs.messages import LiveProgress, TaskStatus, TaskSubmission, Transition
from workflows.runs.states import STATE_MESSAGES, Cause, TaskState

_RANK: dict[TaskState, int] = {state: rank for rank, state in enumerate(TaskState)}

# What a list shows of a status, and therefore what is kept of it.
_SHOWN = frozenset(
    {
        *("id", "name", "labels", "state", "state_message", "created_at", "started_at", "state_changed_at"),
        *("vm_name", "vm_ip", "exit_code", "cause", "error", "progress"),
    }
)

# How a run stands whose workflow was ended over Temporal, past its own steps.
_ENDED_OUTSIDE = {
    WorkflowExecutionStatus.CANCELED: (TaskState.CANCELLED, Cause.CANCELLED, "was cancelled through Temporal"),
    WorkflowExecutionStatus.TERMINATED: (TaskState.FAILED, Cause.INTERNAL, "was terminated through Temporal"),
    WorkflowExecutionStatus.TIMED_OUT: (TaskState.FAILED, Cause.INTERNAL, "ran into a time limit of Temporal"),
    WorkflowExecutionStatus.FAILED: (TaskState.FAILED, Cause.INTERNAL, "failed in Temporal"),
}


def initial_status(submission: TaskSubmission, at: datetime) -> TaskStatus:
    """The status of a run that was just accepted."""
    metadata = submission.manifest.metadata
    return TaskStatus(
        id=submission.task_id,
        name=metadata.name,
        labels=metadata.labels,
        parent=submission.parent,
        continues=submission.continues,
        held=submission.held,
        told=submission.told,
        state_message=STATE_MESSAGES[TaskState.PENDING],
        created_at=at,
        state_changed_at=at,
        transitions=[Transition(state=TaskState.PENDING, at=at)],
    )


def search_attributes(status: TaskStatus) -> TypedSearchAttributes:
    """The search attributes of a run that starts with this status."""
    labels = [label_token(key, value) for key, value in sorted(status.labels.items())]
    return TypedSearchAttributes(
        [
            SearchAttributePair(STATE_KEY, status.state.value),
            SearchAttributePair(NAME_KEY, keyword(status.name)),
            *([SearchAttributePair(LABELS_KEY, labels)] if labels else []),
            *([SearchAttributePair(PARENT_KEY, status.parent)] if status.parent else []),
            SearchAttributePair(CREATED_KEY, status.created_at),
            SearchAttributePair(CHANGED_KEY, status.state_changed_at),
        ]
    )


async def status_of(execution: WorkflowExecution) -> TaskStatus:
    """The run's status from its memo, brought up to date with the search attributes and the execution itself."""
    attributes = execution.typed_search_attributes
    status = await remembered(execution, TaskStatus) or _without_memo(execution)
    state = attributes.get(STATE_KEY, status.state)
    state = TaskState(state) if state in set(TaskState) else status.state
    changes: dict[str, object] = {"created_at": attributes.get(CREATED_KEY, status.created_at)}
    if state is not status.state:
        changes |= {
            "state": state,
            "state_message": STATE_MESSAGES[state],
            "started_at": attributes.get(STARTED_KEY, status.started_at),
            "state_changed_at": attributes.get(CHANGED_KEY, status.state_changed_at),
        }
    if not state.terminal and execution.status in _ENDED_OUTSIDE:
        end, cause, how = _ENDED_OUTSIDE[execution.status]
        sentence = f"The run's workflow {how}; its machine, if any, is torn down by the sweeper."
        changes |= {"state": end, "cause": cause, "error": sentence, "state_message": STATE_MESSAGES[end]}
        changes |= {"state_changed_at": execution.close_time or status.state_changed_at}
    return status.model_copy(update=changes)


def _without_memo(execution: WorkflowExecution) -> TaskStatus:
    """A run that was not started by this API: what Temporal itself knows of it."""
    task_id = RUNS.resource_id(execution.id) or execution.id
    begun = execution.start_time
    return TaskStatus(id=task_id, name=task_id, created_at=begun, state_changed_at=begun)


async def live_progress(description: WorkflowExecutionDescription) -> LiveProgress | None:
    """What the follower of the running agent last reported with its heartbeat: progress, and the guest's figures."""
    for pending in description.raw_description.pending_activities:
        if pending.activity_type.name == steps.RUN_AGENT.name and pending.heartbeat_details.payloads:
            details = await description.data_converter.decode(
                pending.heartbeat_details.payloads[:1], type_hints=[LiveProgress]
            )
            return details[0] if isinstance(details[0], LiveProgress) else None
    return None


async def with_live_progress(status: TaskStatus, description: WorkflowExecutionDescription) -> TaskStatus:
    """The status of a running run with what the follower of its agent last reported."""
    live = await live_progress(description)
    if live is None:
        return status
    news = {"network": live.network or status.network, "usage": live.usage or status.usage}
    return status.model_copy(update={"progress": live.without_figures(), **news})


def listed_status(row: Row) -> TaskStatus:
    """As much of a run's status as its row holds."""
    return TaskStatus.model_validate_json(row.packed)


def _rank(status: TaskStatus) -> tuple[int, float]:
    """Of states that a run comes into again and again, the later one is the higher: all are dated by its workflow."""
    if status.state.recurs:
        return _RANK[TaskState.RUNNING], status.state_changed_at.timestamp()
    return _RANK[status.state], 0.0


def _row(status: TaskStatus, run_id: str, began: datetime, closed: datetime | None, recorded: Recorded | None) -> Row:
    return Row(
        id=status.id,
        run_id=run_id,
        name=status.name,
        state=status.state,
        rank=_rank(status),
        ended=status.state.terminal,
        labels=status.labels,
        created_at=status.created_at,
        started_at=status.started_at,
        state_changed_at=status.state_changed_at,
        began=began,
        closed=closed,
        recorded=recorded,
        packed=status.model_dump_json(include=set(_SHOWN)).encode(),
        owner=status.parent,
    )


TASK_RUNS = Resource(kind=RUNS, waiting=TaskState.PENDING, status_of=status_of, make_row=_row)
