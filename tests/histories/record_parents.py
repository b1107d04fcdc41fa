"""Records the histories of parent tasks that later versions must replay: `python -m tests.histories.record_parents`."""

from __future__ import annotations

import asyncio
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from cli.stack.up import Stack
from foundation.engine import connect_engine
from tests.histories.record import without_host
from tests.stack_settings import isolated_settings
from workflows.names import PARENTS
from workflows.parents.messages import Deletion, ParentChange, ParentStatus
from workflows.parents.workflow import ParentWorkflow

HISTORIES = Path(__file__).parent / "parents"
NAME = "changed_and_deleted"


async def record(client: Client) -> None:
    """A parent task that is changed twice, once by a field that this version does not know, and deleted."""
    now = datetime.now(UTC)
    status = ParentStatus(
        id=NAME, project="1", number=1, title="a task", created_by="someone", created_at=now, updated_at=now
    )
    worker = Worker(
        client,
        task_queue="recording",
        workflows=[ParentWorkflow],
        workflow_runner=UnsandboxedWorkflowRunner(),
        max_cached_workflows=0,
    )
    async with worker:
        run = await client.start_workflow(
            ParentWorkflow.run, status, id=PARENTS.workflow_id(NAME), task_queue="recording"
        )
        await run.execute_update(ParentWorkflow.change, ParentChange(fields={"title": "another", "unknown": 1}))
        await run.execute_update(ParentWorkflow.change, ParentChange(fields={"facts": {"ci_prompt": "wait"}}))
        await run.execute_update(ParentWorkflow.delete, Deletion())
        assert (await run.result()).deleted
    history = (await run.fetch_history()).to_json_dict()
    HISTORIES.mkdir(exist_ok=True)
    (HISTORIES / f"{NAME}.json").write_text(json.dumps(without_host(history), indent=1) + "\n")


async def main() -> None:
    """Record on a Temporal server of its own."""
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        settings = isolated_settings(Path(home))
        with Stack(settings, parts=("temporal",)):
            await record(await connect_engine(settings))


if __name__ == "__main__":
    asyncio.run(main())
