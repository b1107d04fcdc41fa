"""Tasks as answers show them: each with its latest run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import Request

from api.deps import Services
from api.posthog.lookup import FoundRun, find_runs, runs_of
from api.posthog.models import run_object, task_object
from workflows.parents.messages import ParentStatus


async def shown_tasks(request: Request, services: Services, parents: Sequence[ParentStatus]) -> list[dict[str, Any]]:
    """Tasks, each with its latest run."""
    ids = await runs_of(services, parents)
    latest = await find_runs(services, [(parent, ids[parent.id][0]) for parent in parents if ids[parent.id]])
    runs = {run.parent.id: run_object(request, run) for run in latest}
    return [task_object(parent, runs.get(parent.id)) for parent in parents]


async def shown_task(request: Request, services: Services, parent: ParentStatus) -> dict[str, Any]:
    """A task with its latest run."""
    return (await shown_tasks(request, services, [parent]))[0]


def with_run(request: Request, run: FoundRun) -> dict[str, Any]:
    """A task whose latest run is this one, which lists may not show yet."""
    return task_object(run.parent, run_object(request, run))
