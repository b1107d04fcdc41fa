"""The status of a run that is under way, as the API tells it, beside Temporal's own answer to the same question."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import httpx
from temporalio.client import Client

from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.lab import Lab
from benchmarks.stand_ins import manifest, stand_in_worker
from cli.stack.up import Stack
from foundation.engine import connect_engine
from foundation.errors import TaskyardError
from worker.registry import Activity
from workflows.names import RUNS, STATUS
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

_READS = 300
_START_SECONDS = 30.0
_POLL_SECONDS = 0.05


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with Stack(lab.settings, parts=("temporal", "bucket", "server")):
        yield Sides(lambda: event_loop.run(_ours(lab)), lambda: event_loop.run(_by_hand(lab)))


async def _ours(lab: Lab) -> Run:
    async with live_run(lab) as (_, http, task_id):

        async def read() -> str:
            task = (await http.get(f"/api/v1/tasks/{task_id}")).raise_for_status().json()
            if not task["live"]:
                raise TaskyardError("The worker of the benchmark did not answer.")
            return str(task["state"])

        return await _timed(read)


async def _by_hand(lab: Lab) -> Run:
    async with live_run(lab) as (client, _, task_id):
        run = client.get_workflow_handle(RUNS.workflow_id(task_id))

        async def read() -> str:
            status: TaskStatus = await run.query(STATUS, result_type=TaskStatus)
            await run.describe()
            return status.state

        return await _timed(read)


@asynccontextmanager
async def live_run(
    lab: Lab, instead: Mapping[str, Activity] | None = None
) -> AsyncIterator[tuple[Client, httpx.AsyncClient, str]]:
    """A run whose agent is at work for as long as the block lasts."""
    client = await connect_engine(lab.settings)
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{lab.settings.api_port}", timeout=60) as http,
        stand_in_worker(lab.settings, client, held=True, instead=instead),
    ):
        reply = await http.post("/api/v1/tasks", json=manifest())
        task_id = str(reply.raise_for_status().json()["task_id"])
        deadline = time.monotonic() + _START_SECONDS
        while (state := (await http.get(f"/api/v1/tasks/{task_id}")).json()["state"]) != TaskState.RUNNING:
            if time.monotonic() > deadline:
                raise TaskyardError(f"A run without a machine is still '{state}' after {_START_SECONDS:g} s.")
            await asyncio.sleep(_POLL_SECONDS)
        yield client, http, task_id


async def _timed(read: Callable[[], Awaitable[str]]) -> Run:
    took = []
    for _ in range(_READS):
        began = time.perf_counter()
        if (state := await read()) != TaskState.RUNNING:
            raise TaskyardError(f"The run of the benchmark is '{state}' while its agent is at work.")
        took.append(1000 * (time.perf_counter() - began))
    quantiles = statistics.quantiles(took, n=100)
    return Run({"median": quantiles[49], "p95": quantiles[94]})


CASE = Case(
    name="status",
    title="Status of a live run",
    by_hand="Temporal's own client: the workflow's query `status`, then its description, which has the progress",
    figures=(
        Figure("median", "`GET /api/v1/tasks/{id}`", unit="ms"),
        Figure("p95", "the same, 95th percentile", unit="ms", limit=50),
    ),
    open=_open,
    warm_up=True,
)
