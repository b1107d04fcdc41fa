"""The status of a resource as its workflow's memo has it, which needs no worker to be read."""

from __future__ import annotations

from typing import TypeVar

import structlog
from pydantic import BaseModel
from temporalio.client import WorkflowExecution

from workflows.names import STATUS_MEMO

_log = structlog.get_logger()

Status = TypeVar("Status", bound=BaseModel)


async def remembered(execution: WorkflowExecution, status_type: type[Status]) -> Status | None:
    """The status in a workflow's memo; None where there is none of that form.

    Who starts workflows may write a memo of any form; one that cannot be read takes no list with it.
    """
    try:
        status = await execution.memo_value(STATUS_MEMO, None, type_hint=status_type)
    except (ValueError, TypeError, RuntimeError) as error:
        _log.warning("the memo of a workflow cannot be read", workflow=execution.id, error=type(error).__name__)
        return None
    # A memo that is null is read as that, whatever it is to be.
    return status if isinstance(status, status_type) else None
