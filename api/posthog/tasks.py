"""Routes for tasks: what is to be done, of which runs are the executions."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.deps import ServicesOf
from api.posthog.lookup import ParentOf
from api.posthog.models import task_object
from api.posthog.paths import TASK

router = APIRouter(tags=["tasks"])


@router.get(TASK, summary="Get a task")
async def get_task(parent: ParentOf, request: Request, services: ServicesOf) -> dict[str, Any]:  # noqa: ARG001
    """One task, with its latest run."""
    return task_object(request, parent, None)
