"""Records histories of local runs: `python -m tests.histories.record_local`, as `record` does those of task runs."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from cli.stack.up import Stack
from foundation.engine import connect_engine
from tests.histories.record import without_host
from tests.stack_settings import isolated_settings
from workflows import names, steps
from workflows.told.messages import FinishLocalRequest, LocalStatus
from workflows.told.record import Change, Standing
from workflows.told.states import LocalState
from workflows.told.workflow import LocalRunWorkflow

HISTORIES = Path(__file__).parent / "told"

Run = WorkflowHandle[LocalRunWorkflow, LocalStatus]


@activity.defn(name=steps.FINISH_LOCAL.name)
async def finish(_: FinishLocalRequest) -> None:
    """Nothing is written."""


async def tell(run: Run, *changes: Change) -> None:
    for change in changes:
        await run.execute_update(names.TELL, change, result_type=Standing)


async def completed(run: Run) -> None:
    """From its creation to its end, with what changes nothing, and something that comes too late."""
    await tell(
        run,
        Change(enter=LocalState.QUEUED),
        Change(enter=LocalState.RUNNING, branch="feature", state={"a": 1, "b": 2}),
        Change(enter=LocalState.RUNNING, branch="feature"),
        Change(state={"c": 3}, remove_keys=["a"], output={"pr_url": "https://git.invalid/1"}),
        Change(enter=LocalState.COMPLETED, output={"commit_sha": "0" * 40}),
    )


async def failed(run: Run) -> None:
    await tell(run, Change(enter=LocalState.FAILED, error_message="The agent crashed.", cleared=["branch"]))


async def cancelled(run: Run) -> None:
    """By Temporal's own cancellation."""
    await tell(run, Change(enter=LocalState.RUNNING))
    await run.cancel()


COURSES: dict[str, Callable[[Run], Awaitable[None]]] = {
    "local_completed": completed,
    "local_failed": failed,
    "local_cancelled": cancelled,
}


async def record(client: Client, name: str, course: Callable[[Run], Awaitable[None]]) -> None:
    """Take one course and write its history beside this file."""
    now = datetime.now(UTC)
    status = LocalStatus(id=name, name=name, created_at=now, state_changed_at=now, changed_at=now)
    async with Worker(
        client,
        task_queue="recording",
        workflows=[LocalRunWorkflow],
        activities=[finish],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
    ):
        run: Run = await client.start_workflow(
            LocalRunWorkflow.run, status, id=names.LOCAL_RUNS.workflow_id(name), task_queue="recording"
        )
        await course(run)
        ended = await run.result()
    assert ended.state.terminal
    history = (await run.fetch_history()).to_json_dict()
    (HISTORIES / f"{name}.json").write_text(json.dumps(without_host(history), indent=1) + "\n")


async def main() -> None:
    """Record all courses on a Temporal server of their own."""
    HISTORIES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        settings = isolated_settings(Path(home))
        with Stack(settings, parts=("temporal",)):
            client = await connect_engine(settings)
            for name, course in COURSES.items():
                if not (HISTORIES / f"{name}.json").exists():
                    await record(client, name, course)


if __name__ == "__main__":
    asyncio.run(main())
