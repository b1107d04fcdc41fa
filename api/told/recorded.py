"""A local run as Temporal keeps it: its memo, its search attributes, and its row in lists."""

from __future__ import annotations

from datetime import datetime

from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from api.temporal.keywords import keyword
from api.temporal.memo import remembered
from api.temporal.rows import Recorded, Resource, Row
from workflows.names import CHANGED_KEY, CREATED_KEY, LOCAL_RUNS, NAME_KEY, PARENT_KEY, STATE_KEY
from workflows.told.messages import LocalStatus
from workflows.told.states import LocalState

_RANK = {state: rank for rank, state in enumerate(LocalState)}
# What the rows do not keep: of many runs it would take much of a server's memory.
_NOT_LISTED = {"told": {"output", "state"}}

# How a run stands whose workflow was ended over Temporal, past its own end.
_ENDED_OUTSIDE = {
    WorkflowExecutionStatus.CANCELED: LocalState.CANCELLED,
    WorkflowExecutionStatus.TERMINATED: LocalState.FAILED,
    WorkflowExecutionStatus.TIMED_OUT: LocalState.FAILED,
    WorkflowExecutionStatus.FAILED: LocalState.FAILED,
}


def search_attributes(status: LocalStatus) -> TypedSearchAttributes:
    """The search attributes of a local run that is created so."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(STATE_KEY, status.state.value),
            SearchAttributePair(NAME_KEY, keyword(status.name)),
            *([SearchAttributePair(PARENT_KEY, status.parent)] if status.parent else []),
            SearchAttributePair(CREATED_KEY, status.created_at),
            SearchAttributePair(CHANGED_KEY, status.state_changed_at),
        ]
    )


async def status_of(execution: WorkflowExecution) -> LocalStatus:
    """The local run of a workflow, from its memo."""
    status = await remembered(execution, LocalStatus)
    begun = execution.start_time
    if status is None:
        run_id = LOCAL_RUNS.resource_id(execution.id) or execution.id
        status = LocalStatus(id=run_id, name=run_id, created_at=begun, state_changed_at=begun, changed_at=begun)
    ended = _ENDED_OUTSIDE.get(execution.status) if execution.status is not None else None
    if ended is not None and not status.state.terminal:
        at = execution.close_time or status.changed_at
        changes = {"state": ended, "state_changed_at": at, "changed_at": at, "ended_at": at}
        return status.model_copy(update=changes)
    return status


def listed_status(row: Row) -> LocalStatus:
    """A local run as its row holds it: without what it was told as output and state."""
    return LocalStatus.model_validate_json(row.packed)


def _row(status: LocalStatus, run_id: str, began: datetime, closed: datetime | None, recorded: Recorded | None) -> Row:
    return Row(
        id=status.id,
        run_id=run_id,
        name=status.name,
        state=status.state,
        rank=(_RANK[status.state], float(status.changes)),
        ended=status.state.terminal,
        labels={},
        created_at=status.created_at,
        started_at=status.started_at,
        state_changed_at=status.state_changed_at,
        began=began,
        closed=closed,
        recorded=recorded,
        packed=status.model_dump_json(exclude=_NOT_LISTED).encode(),
        owner=status.parent,
    )


# One that was created and not started looks as it did at its begin; the others are looked at each time.
TOLD_RUNS = Resource(kind=LOCAL_RUNS, waiting=LocalState.CREATED, status_of=status_of, make_row=_row)
