"""Routes for the runs of a task."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from api.posthog.lookup import RunOf
from api.posthog.models import run_object
from api.posthog.paths import RUN

router = APIRouter(tags=["runs"])


@router.get(RUN, summary="Get a run")
async def get_run(run: RunOf, request: Request) -> dict[str, Any]:
    """One run of a task."""
    return run_object(request, run)
