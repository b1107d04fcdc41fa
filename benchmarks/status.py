"""The status of a run that is under way, as the API tells it, beside Temporal's own answer to the same question."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
from temporalio import activity
from temporalio.worker import Worker

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.lab import Lab
from cli.stack import Stack
from foundation.engine import connect_engine
from foundation.errors import TaskyardError
from workflows import steps
from workflows.messages import (
    AgentRequest,
    Lease,
    LiveProgress,
    ProvisionRequest,
    ProvisionResult,
    ReserveRequest,
    SecretsRequest,
    SecretsResult,
    StageRequest,
    StageResult,
)
from workflows.task_workflow import TaskWorkflow

_REQUESTS = 300
_BEAT_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
_MANIFEST = {
    "metadata": {"name": "a run that goes on"},
    "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
    "claude": {"prompt": "Go on."},
}


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with (
        Stack(lab.settings, parts=("temporal", "bucket", "server")),
        _working(lab),
        httpx.Client(base_url=f"http://127.0.0.1:{lab.settings.api_port}", timeout=60) as http,
    ):
        task_id = str(http.post("/api/v1/tasks", json=_MANIFEST).raise_for_status().json()["task_id"])
        _until_running(http, task_id)
        yield Sides(lambda: _ours(http, task_id), lambda: asyncio.run(_by_hand(lab, task_id)))


@contextmanager
def _working(lab: Lab) -> Iterator[None]:
    """A worker of the real workflow whose agent goes on for ever, in a thread of its own."""
    stopped = threading.Event()

    async def work() -> None:
        client = await connect_engine(lab.settings)
        queue = lab.settings.task_queue
        async with Worker(client, task_queue=queue, workflows=[TaskWorkflow], activities=_stand_ins(queue)):
            await asyncio.to_thread(stopped.wait)

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="stand-in-worker")
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()


def _stand_ins(queue: str) -> list[Callable[..., Any]]:
    @activity.defn(name=steps.RESERVE.name)
    async def reserve(request: ReserveRequest) -> Lease:
        return Lease(machine_id=request.machine_id, host="here", task_queue=queue)

    @activity.defn(name=steps.STAGE.name)
    async def stage(_: StageRequest) -> StageResult:
        return StageResult(base_commit="c0ffee", workspace_image="/nowhere")

    @activity.defn(name=steps.PROVISION.name)
    async def provision(request: ProvisionRequest) -> ProvisionResult:
        return ProvisionResult(
            vm_name=request.machine_id, vm_ip="10.0.2.15", acceleration="none", image="none", boot_seconds=0
        )

    @activity.defn(name=steps.SECRETS.name)
    async def secrets(_: SecretsRequest) -> SecretsResult:
        return SecretsResult()

    @activity.defn(name=steps.RUN_AGENT.name)
    async def run_agent(_: AgentRequest) -> None:
        while True:
            activity.heartbeat(LiveProgress(output_bytes=4567, tool_calls=3, last_activity_at=datetime.now(UTC)))
            await asyncio.sleep(_BEAT_SECONDS)

    return [reserve, stage, provision, secrets, run_agent]


def _until_running(http: httpx.Client, task_id: str) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (task := _ask(http, task_id))["state"] != "running" or not task["progress"]["tool_calls"]:
        if time.monotonic() > deadline:
            raise TaskyardError(f"The run is {task['state']} and not running.")
        time.sleep(0.1)


def _ask(http: httpx.Client, task_id: str) -> dict[str, Any]:
    return dict(http.get(f"/api/v1/tasks/{task_id}").raise_for_status().json())


def _ours(http: httpx.Client, task_id: str) -> Run:
    took = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        task = _ask(http, task_id)
        took.append(time.perf_counter() - began)
        if not task["live"]:
            raise TaskyardError("The worker did not answer.")
    return _figures(took)


async def _by_hand(lab: Lab, task_id: str) -> Run:
    client = await connect_engine(lab.settings)
    handle = client.get_workflow_handle(f"task-{task_id}")
    took = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        await handle.query("status")
        await handle.describe()
        took.append(time.perf_counter() - began)
    return _figures(took)


def _figures(took: list[float]) -> Run:
    quantiles = statistics.quantiles([1000 * seconds for seconds in took], n=100)
    return Run({"median": quantiles[49], "p95": quantiles[94]})


CASE = Case(
    name="status",
    title="The status of a live run",
    by_hand="Temporal's own client: the workflow's query, then its description, which has the progress",
    figures=(
        Figure("median", "one status, with live progress", "ms"),
        Figure("p95", "the same, 95th percentile", "ms"),
    ),
    open=_open,
    warm_up=True,
)
