"""Health in every spelling that the contract knows (section 2.8), and the metrics page."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Response

from api.deps import Services, ServicesOf
from api.http.metrics import CONTENT_TYPE
from api.native import errors, examples
from foundation.errors import TaskyardError
from workflows.runs.states import TaskState

router = APIRouter(tags=["health"])

VERSION = version("taskyard")

_UNDER_WAY = (
    TaskState.STAGING,
    TaskState.PROVISIONING,
    TaskState.READY,
    TaskState.RUNNING,
    TaskState.AWAITING_DECISION,
    TaskState.COMPLETING,
)


@router.get("/health", summary="Is the server up", responses=examples.answer({"status": "ok", "service": "taskyard"}))
@router.get("/api/health", summary="Is the server up", include_in_schema=False)
async def basic() -> dict[str, str]:
    """Always ok while the process answers."""
    return {"status": "ok", "service": "taskyard"}


@router.get(
    "/api/v1/health",
    summary="Version, workers and tasks",
    responses=errors.responses() | examples.answer(examples.HEALTH),
)
async def detailed(services: ServicesOf) -> dict[str, Any]:
    """Version and uptime of the server, workers that poll for tasks, and tasks under way."""
    core = services.core
    workers, counts = await asyncio.gather(core.check_engine(), core.counts())
    return {
        "status": "ok",
        "version": VERSION,
        "uptime_seconds": _uptime(services),
        "agents": {"connected": workers, "ready": workers},
        "tasks": {"running": sum(counts[state] for state in _UNDER_WAY), "pending": counts[TaskState.PENDING]},
    }


@router.get(
    "/api/v1/health/ready",
    summary="Can the server take tasks",
    responses=errors.responses() | examples.answer({"ready": True, "reason": "workers_connected"}),
)
async def ready(services: ServicesOf) -> dict[str, Any]:
    """Ready when Temporal and the bucket answer. Without a worker, tasks are taken and wait."""
    workers = await _usable(services)
    return {"ready": True, "reason": "workers_connected" if workers else "no_workers_but_operational"}


@router.get("/api/v1/health/live", summary="Is the process alive", responses=examples.answer({"alive": True}))
async def live() -> dict[str, bool]:
    """Always true while the process answers."""
    return {"alive": True}


@router.get("/healthz", summary="Is the process alive", include_in_schema=False)
async def healthz() -> dict[str, str]:
    """The published client's spelling of live."""
    return {"status": "alive"}


@router.get("/healthz/http", summary="Is the HTTP service alive", include_in_schema=False)
async def healthz_http() -> dict[str, str]:
    """The published client's watchdog."""
    return {"http": "alive"}


@router.get("/readyz", summary="Can the server take tasks", include_in_schema=False, responses=errors.responses())
async def readyz(services: ServicesOf) -> dict[str, Any]:
    """The published client's spelling of ready."""
    return {"status": "ready", "agent_count": await _usable(services)}


@router.get("/healthz/deep", summary="Are all parts healthy", include_in_schema=False, responses=errors.responses())
async def healthz_deep(services: ServicesOf) -> dict[str, Any]:
    """The published client's deep check, with figures that are true."""
    workers = await _usable(services)
    counts = await services.core.counts()
    return {
        "status": "healthy",
        "uptime_seconds": _uptime(services),
        "agent_count": workers,
        "active_tasks": sum(counts[state] for state in _UNDER_WAY),
        "host_runtime_enabled": False,
    }


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"example": 'agentic_tasks_active{state="running"} 2.0\n'}},
            "description": "Text format 0.0.4",
        }
    },
)
async def metrics(services: ServicesOf) -> Response:
    """Counters of this process, and tasks by state while Temporal answers."""
    core, series = services.core, services.metrics
    try:
        counts, workers = await asyncio.gather(core.counts(), core.check_engine())
        series.take_counts(counts, workers)
    except TaskyardError:
        series.take_counts(None)
    return Response(series.text(), media_type=CONTENT_TYPE)


async def _usable(services: Services) -> int:
    """How many workers there are. Raises ServiceUnavailable when tasks could not be taken."""
    workers = await services.core.check_engine()
    await asyncio.to_thread(services.bucket.stat, "health")
    return workers


def _uptime(services: Services) -> int:
    return int(time.time() - services.metrics.started)
