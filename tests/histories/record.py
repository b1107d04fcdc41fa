"""Records the histories that later versions of the workflow must replay: `python -m tests.histories.record`.

Run it when the workflow gains a path that no recorded history takes, and keep the old files: they are the promise to
runs that are under way while Taskyard is upgraded.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from cli.stack import Stack
from foundation.engine import connect_engine
from tests.integration.fake_steps import FakeSteps, has_event, until
from tests.stack_settings import isolated_settings
from workflows import steps
from workflows.manifest import parse
from workflows.messages import (
    AgentResult,
    CancelRequest,
    CollectResult,
    Lease,
    TaskStatus,
    TaskSubmission,
    TurnEnded,
    UserMessage,
)
from workflows.states import Cause
from workflows.task_workflow import TaskWorkflow

HISTORIES = Path(__file__).parent


async def completed(fake: FakeSteps, run: Any) -> None:
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.user_message, UserMessage(text="more", id="1"))
    await run.signal(TaskWorkflow.turn_ended, TurnEnded(results=1))


async def closed(fake: FakeSteps, run: Any) -> None:
    """As most runs go: the agent answers, its session is closed, and its machine goes once it has been read."""
    fake.instead["collect"] = lambda _: CollectResult(released=True)
    await fake.agent_running.wait()
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    fake.agent_over.set()


async def cancelled(fake: FakeSteps, run: Any) -> None:
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))


async def preserved(fake: FakeSteps, _run: Any) -> None:
    fake.agent_result = AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="Claude Code exited with code 1.")
    fake.agent_over.set()


async def reserved(_fake: FakeSteps, run: Any) -> None:
    """Up to the first step that waits for the host."""
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED))


async def given_up(run: Any) -> None:
    """Both the end of the patience with the host and a cancel, before any worker is back."""
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT))


async def not_staged(fake: FakeSteps, _run: Any) -> None:
    """Ends by itself."""


def refuse(_request: Any) -> None:
    raise ApplicationError("There is no branch 'mian'.", type="ref_not_found", non_retryable=True)


def full_at_first(fake: FakeSteps) -> Callable[[Any], None]:
    """A host without room for whoever looks at it first."""

    def look(_request: Any) -> None:
        if fake.calls == ["reserve"]:
            raise ApplicationError("No room for the machine now.", type="no_room")

    return look


PATHS: dict[str, Callable[[FakeSteps, Any], Awaitable[None]]] = {
    "completed": completed,
    "closed": closed,
    "cancelled": cancelled,
    "failed_preserved": preserved,
    "not_staged": not_staged,
    "reserved_at_once": closed,
    "reserved_later": closed,
    "host_lost": reserved,
}

# What comes while no worker is there, after the path's first part.
WITHOUT_WORKER: dict[str, Callable[[Any], Awaitable[None]]] = {"host_lost": given_up}


async def record(client: Client, name: str) -> None:
    """Take one path and write its history beside this file."""
    fake = FakeSteps(queue="recording")
    if name == "not_staged":
        fake.instead["stage"] = refuse
    if name == "reserved_later":
        fake.instead["reserve"] = full_at_first(fake)
    manifest = parse(
        {
            "metadata": {"name": name},
            "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
            "claude": {"prompt": "do it"},
            "secrets": [] if name == "reserved_at_once" else [{"name": "TOKEN", "source": "env", "key": "TOKEN"}],
            "lifecycle": {"failure_action": "preserve", "timeout": "10m"},
        }
    )
    if name == "host_lost":
        fake.instead["reserve"] = lambda request: Lease(machine_id=request.machine_id, host="gone", task_queue="gone")
        # Long enough for the first worker to be gone by then.
        steps.STAGE = replace(steps.STAGE, wait=timedelta(seconds=5))
    async with _worker(client, fake):
        run = await client.start_workflow(
            TaskWorkflow.run,
            TaskSubmission(task_id=name, manifest=manifest),
            id=f"task-{name}",
            task_queue="recording",
        )
        await PATHS[name](fake, run)
        if name not in WITHOUT_WORKER:
            await run.result()
    if name in WITHOUT_WORKER:
        await WITHOUT_WORKER[name](run)
    async with _worker(client, fake):
        status: TaskStatus = await run.result()
    assert status.state.terminal
    history = (await run.fetch_history()).to_json_dict()
    (HISTORIES / f"{name}.json").write_text(json.dumps(_without_host(history), indent=1) + "\n")


def _worker(client: Client, fake: FakeSteps) -> Worker:
    return Worker(
        client,
        task_queue="recording",
        workflows=[TaskWorkflow],
        activities=fake.all(),
        workflow_runner=UnsandboxedWorkflowRunner(),
        # Without a sticky queue, whose name tells the host.
        max_cached_workflows=0,
    )


def _without_host(value: Any) -> Any:
    """The history without what tells of the host that recorded it, none of which a replay reads."""
    if isinstance(value, dict):
        return {key: _without_host(item) for key, item in value.items() if key not in {"identity", "stackTrace"}}
    return [_without_host(item) for item in value] if isinstance(value, list) else value


async def main() -> None:
    """Record all paths on a Temporal server of their own."""
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        settings = isolated_settings(Path(home))
        with Stack(settings, parts=("temporal",)):
            client = await connect_engine(settings)
            for name in PATHS:
                # Those that are there stay as they are.
                if not (HISTORIES / f"{name}.json").exists():
                    await record(client, name)


if __name__ == "__main__":
    asyncio.run(main())
