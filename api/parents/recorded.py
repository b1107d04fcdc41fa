"""A parent task as Temporal keeps it: its memo, its search attributes, and its row in lists."""

from __future__ import annotations

from datetime import datetime

from temporalio.client import WorkflowExecution, WorkflowExecutionStatus
from temporalio.common import SearchAttributePair, TypedSearchAttributes

from api.temporal.keywords import keyword
from api.temporal.memo import remembered
from api.temporal.rows import Recorded, Resource, Row
from workflows.names import CHANGED_KEY, CREATED_KEY, NAME_KEY, PARENTS, STATE_KEY
from workflows.parents.messages import OPEN, ParentStatus


def search_attributes(status: ParentStatus) -> TypedSearchAttributes:
    """The search attributes of a parent task that is created so."""
    return TypedSearchAttributes(
        [
            SearchAttributePair(STATE_KEY, status.state),
            SearchAttributePair(NAME_KEY, keyword(status.title)),
            SearchAttributePair(CREATED_KEY, status.created_at),
            SearchAttributePair(CHANGED_KEY, status.updated_at),
        ]
    )


async def status_of(execution: WorkflowExecution) -> ParentStatus:
    """The parent task of a workflow, from its memo; one that was ended over Temporal is deleted."""
    status = await remembered(execution, ParentStatus)
    if status is None:
        begun = execution.start_time
        status = ParentStatus(
            id=PARENTS.resource_id(execution.id) or execution.id,
            project="",
            number=0,
            created_by="",
            created_at=begun,
            updated_at=begun,
            deleted=True,
        )
    ended = execution.status not in {WorkflowExecutionStatus.RUNNING, WorkflowExecutionStatus.CONTINUED_AS_NEW}
    return status.model_copy(update={"deleted": True}) if ended else status


def listed_status(row: Row) -> ParentStatus:
    """A parent task as its row holds it."""
    return ParentStatus.model_validate_json(row.packed)


def _row(status: ParentStatus, run_id: str, began: datetime, closed: datetime | None, recorded: Recorded | None) -> Row:
    return Row(
        id=status.id,
        run_id=run_id,
        name=status.title,
        state=status.state,
        rank=(status.revision, 0.0),
        ended=status.deleted,
        labels={},
        created_at=status.created_at,
        started_at=None,
        state_changed_at=status.updated_at,
        began=began,
        closed=closed,
        recorded=recorded,
        packed=status.model_dump_json().encode(),
        owner=status.project,
    )


# A parent task that was never changed looks as it did at its begin; the others are looked at each time.
PARENT_TASKS = Resource(kind=PARENTS, waiting=OPEN, status_of=status_of, make_row=_row)
