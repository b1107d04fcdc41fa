"""Runs finished one after another without machines, beside a bare Temporal workflow of six activities."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import httpx
from temporalio.worker import UnsandboxedWorkflowRunner, Worker, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.bare_workflow import ACTIVITIES, BareWorkflow, bare_step
from benchmarks.lab import Lab
from benchmarks.stand_ins import manifest, stand_in_worker
from cli.stack.up import Stack
from foundation.engine import connect_engine
from foundation.errors import TaskyardError
from workflows import names

RUNS = 60
AT_ONCE = 15


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with Stack(lab.settings, parts=("temporal", "bucket", "server")):
        yield Sides(lambda: event_loop.run(_ours(lab)), lambda: event_loop.run(_by_hand(lab)))


async def _ours(lab: Lab) -> Run:
    each = await _tasks(lab)
    return Run({"per-run": each, "beside-unsandboxed": each})


async def _by_hand(lab: Lab) -> Run:
    # The SDK's default is its sandbox; Taskyard's worker goes without it, so that is shown too.
    each = await _bare(lab, SandboxedWorkflowRunner())
    return Run({"per-run": each, "beside-unsandboxed": await _bare(lab, UnsandboxedWorkflowRunner())})


async def _tasks(lab: Lab) -> float:
    client = await connect_engine(lab.settings)
    url = f"http://127.0.0.1:{lab.settings.api_port}/api/v1/tasks"
    async with stand_in_worker(lab.settings, client), httpx.AsyncClient(timeout=60) as http:

        async def run_one() -> None:
            reply = await http.post(url, json=manifest())
            reply.raise_for_status()
            status = await client.get_workflow_handle(names.RUNS.workflow_id(reply.json()["task_id"])).result()
            if status["state"] != "completed":
                raise TaskyardError(f"A run without a machine ended as {status}")

        return await _timed(run_one)


async def _bare(lab: Lab, runner: WorkflowRunner) -> float:
    client = await connect_engine(lab.settings)
    queue = f"bare-{uuid.uuid4().hex[:8]}"
    async with Worker(
        client, task_queue=queue, activities=[bare_step], workflows=[BareWorkflow], workflow_runner=runner
    ):

        async def run_one() -> None:
            await client.execute_workflow(BareWorkflow.run, "text", id=uuid.uuid4().hex, task_queue=queue)

        return await _timed(run_one)


async def _timed(run_one: Callable[[], Awaitable[None]]) -> float:
    """Milliseconds for each of many runs, some of them at any time under way."""
    left = iter(range(RUNS))

    async def run_some() -> None:
        for _ in left:
            await run_one()

    began = time.perf_counter()
    await asyncio.gather(*(run_some() for _ in range(AT_ONCE)))
    return 1000 * (time.perf_counter() - began) / RUNS


CASE = Case(
    name="throughput",
    title=f"{RUNS} runs without machines, {AT_ONCE} at once",
    by_hand=f"a bare Temporal workflow of {ACTIVITIES} activities that do nothing, same server, SDK's defaults",
    figures=(
        Figure("per-run", "for each finished run", unit="ms", ratio_limit=1 / 0.7),
        Figure("beside-unsandboxed", "the same", unit="ms", beside="bare, without Temporal's sandbox"),
    ),
    open=_open,
    warm_up=True,
)
