"""Records the histories that later versions of the workflow must replay: `python -m tests.histories.record`.

Run it when the workflow gains a path that no recorded history takes, and keep the old files: they are the promise to
runs that are under way while Taskyard is upgraded.

Above 400 lines: the courses are read together with the table of them.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from cli.stack.up import Stack
from foundation.engine import connect_engine
from tests.stack_settings import isolated_settings
from tests.stand_ins.fake_steps import FakeSteps, Run
from tests.waiting import has_event, until
from workflows import names, steps
from workflows.messages import Lease
from workflows.runs.messages import (
    CancelRequest,
    ContinueRequest,
    NetworkChange,
    StartHeld,
    TaskStatus,
    TokenUsage,
    TurnEnded,
    UserMessage,
)
from workflows.runs.requests import AgentResult, CollectResult, ReserveRequest, StageResult
from workflows.runs.states import Cause
from workflows.runs.steering.messages import (
    AgentSaid,
    ClearRequest,
    Configuration,
    ControlAnswer,
    PermissionAnswer,
    PermissionDecision,
    PermissionRequest,
)
from workflows.runs.workflow import TaskWorkflow
from workflows.specs.manifest import parse
from workflows.specs.wire import NetworkMode
from workflows.told.record import Change, Standing
from workflows.told.states import LocalState

HISTORIES = Path(__file__).parent / "runs"


async def completed(fake: FakeSteps, run: Run) -> None:
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.user_message, UserMessage(text="more", id="1"))
    await run.signal(TaskWorkflow.turn_ended, TurnEnded(results=1))


async def closed(fake: FakeSteps, run: Run) -> None:
    """As most runs go: the agent answers, its session is closed, and its machine goes once it has been read."""
    fake.instead["collect"] = lambda _: CollectResult(released=True)
    await fake.agent_running.wait()
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    fake.agent_over.set()


async def held(fake: FakeSteps, run: Run) -> None:
    """Created, and started later with another prompt."""
    assert await run.execute_update(names.START_HELD, StartHeld(prompt="do that"), result_type=TaskStatus)
    await closed(fake, run)


async def started_again(fake: FakeSteps, run: Run) -> None:
    """Held, and started with a prompt, and again with that and with another one, which becomes a message."""
    for prompt in ("do that", "do that", "and this"):
        assert await run.execute_update(names.START_HELD, StartHeld(prompt=prompt), result_type=TaskStatus)
    await until(lambda: len(fake.delivered) == 1, "the message")
    await closed(fake, run)


async def told_while_ending(fake: FakeSteps, run: Run) -> None:
    """A client says that the run has failed, while its artifacts are collected."""
    fake.agent_over.set()
    await until(lambda: "collect" in fake.calls, "the collection")
    await told_to_fail(fake, run)
    fake.go_on["collect"].set()


async def cancelled(fake: FakeSteps, run: Run) -> None:
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))


async def preserved(fake: FakeSteps, _run: Run) -> None:
    fake.agent_result = AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="Claude Code exited with code 1.")
    fake.agent_over.set()


async def reserved(_fake: FakeSteps, run: Run) -> None:
    """Up to the first step that waits for the host."""
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED), "the step")


async def given_up(run: Run) -> None:
    """Both the end of the patience with the host and a cancel, before any worker is back."""
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT), "the end of the patience")


async def stop_ignored(fake: FakeSteps, run: Run) -> None:
    """Neither the stop nor the end of the machine ends the agent's step, which is called off."""
    fake.stop_helps = False
    await cancelled(fake, run)


async def not_delivered(fake: FakeSteps, run: Run) -> None:
    """A message that the guest does not take, and one that comes after the close."""
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.user_message, UserMessage(text="more", id="1"))
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED), "the failed delivery")
    await run.signal(TaskWorkflow.close)
    await run.signal(TaskWorkflow.user_message, UserMessage(text="more", id="2"))
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    fake.agent_over.set()


async def called_off(fake: FakeSteps, run: Run) -> None:
    """A collection that hangs, and a forced cancel."""
    fake.agent_over.set()
    await until(lambda: "collect" in fake.calls, "the collection")
    await run.signal(TaskWorkflow.cancel, CancelRequest(force=True))


def spends_all(fake: FakeSteps, turns: int) -> Callable[[Any], AgentResult | None]:
    """An agent that uses its budget up in all its turns but the last."""

    def follow(_request: Any) -> AgentResult | None:
        if fake.calls.count("run_agent") > turns:
            return None
        usage = TokenUsage(requests=1, input_tokens=10, budget_tokens=10)
        return AgentResult(running=True, cause=Cause.BUDGET_EXCEEDED, error="The budget is used up.", usage=usage)

    return follow


async def spent(fake: FakeSteps, _run: Run) -> None:
    """What is used up, and continued by nobody."""
    fake.instead["run_agent"] = spends_all(fake, 1)


async def continued(fake: FakeSteps, run: Run) -> None:
    """Twice: by another system, and by the API."""
    fake.instead["run_agent"] = spends_all(fake, 2)
    for pauses in (1, 2):
        await until(lambda pauses=pauses: fake.calls.count("pause") == pauses, "the pause")  # type: ignore[misc]
        await run.signal(TaskWorkflow.user_message, UserMessage(text="more", id=str(pauses)))
        more = ContinueRequest(tokens=1000)
        if pauses == 1:
            await run.signal(TaskWorkflow.continue_, more)
        else:
            await run.execute_update(TaskWorkflow.continue_run, more)
    await until(lambda: len(fake.delivered) == 2, "the messages")
    fake.agent_over.set()


async def cancelled_on_a_lost_host(_fake: FakeSteps, run: Run) -> None:
    await reserved(_fake, run)
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))


async def network_changed(fake: FakeSteps, run: Run) -> None:
    """Changes before the machine is there, while it is being started, and while the agent runs; one is refused."""
    for step in ("stage", "provision"):
        await until(lambda step=step: step in fake.calls, f"the step {step}")  # type: ignore[misc]
        await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=[f"{step}.example.org"]))
        fake.go_on[step].set()
    await fake.agent_running.wait()
    await run.execute_update(TaskWorkflow.change_network, NetworkChange(mode=NetworkMode.OUTBOUND))
    await run.signal(TaskWorkflow.network, NetworkChange(remove=["stage.example.org"]))
    await run.signal(TaskWorkflow.network, NetworkChange(remove=["stage.example.org"]))
    await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["agent.example.org"]))
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    fake.agent_over.set()


async def steered(fake: FakeSteps, run: Run) -> None:
    """Requests that are answered, taken back and left to their time; a configuration, and an interrupted turn."""
    await fake.agent_running.wait()
    at = datetime(2026, 1, 2, tzinfo=UTC)
    asked = [PermissionRequest(request_id=each, tool="Bash", asked_at=at) for each in ("a", "b", "c")]
    await run.signal(TaskWorkflow.agent_said, AgentSaid(asked=asked))
    await run.signal(TaskWorkflow.agent_said, AgentSaid(withdrawn=["b"]))
    await run.execute_update(TaskWorkflow.answer_request, PermissionAnswer(request_id="a"))
    await until(lambda: len(fake.steered) == 2, "the denial of what nobody answers")
    wanted = Configuration(model="claude-opus-4-1", permission_mode="plan")
    changed = asyncio.create_task(run.execute_update(TaskWorkflow.configure_agent, wanted))
    await until(lambda: len(fake.steered) == 4, "the configuration")
    confirmed = [ControlAnswer(id="set-model-2"), ControlAnswer(id="set-permission-mode-3")]
    await run.signal(TaskWorkflow.agent_said, AgentSaid(answered=confirmed))
    await changed
    await run.signal(TaskWorkflow.interrupt)
    await until(lambda: len(fake.steered) == 5, "the interrupt")
    await run.signal(TaskWorkflow.agent_said, AgentSaid(answered=[ControlAnswer(id="interrupt-4", in_turn=True)]))
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1, interrupted=True))
    await run.signal(TaskWorkflow.user_message, UserMessage(text="rather this", id="1"))
    await until(lambda: len(fake.delivered) == 1, "the message")
    await run.signal(TaskWorkflow.clear_messages)
    await run.execute_update(TaskWorkflow.clear_waiting, ClearRequest())
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=2))
    fake.agent_over.set()


async def answer_kept(fake: FakeSteps, run: Run) -> None:
    """An answer of which nobody knows whether it came, another one, and a turn that nobody has interrupted."""
    await fake.agent_running.wait()
    at = datetime(2026, 1, 2, tzinfo=UTC)
    await run.signal(
        TaskWorkflow.agent_said, AgentSaid(asked=[PermissionRequest(request_id="a", tool="Bash", asked_at=at)])
    )
    fake.instead["steer"] = not_heard
    await run.signal(TaskWorkflow.answer, PermissionAnswer(request_id="a"))
    await until(lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED), "the failed step")
    fake.instead.pop("steer")
    await run.signal(TaskWorkflow.answer, PermissionAnswer(request_id="a", decision=PermissionDecision.DENY))
    await run.execute_update(TaskWorkflow.answer_request, PermissionAnswer(request_id="a"))
    await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1, interrupted=True))
    fake.agent_over.set()


async def told(fake: FakeSteps, run: Run) -> None:
    """A record that clients change while the agent runs, until one of them says that the run is completed."""
    await fake.agent_running.wait()
    for change in (
        Change(enter=LocalState.RUNNING, branch="feature", output={"pr_url": "https://git.invalid/1"}),
        Change(state={"a": 1}, remove_keys=["b"]),
        Change(enter=LocalState.COMPLETED),
    ):
        await run.execute_update(names.TELL, change, result_type=Standing)


async def told_to_fail(fake: FakeSteps, run: Run) -> None:
    await fake.agent_running.wait()
    change = Change(enter=LocalState.FAILED, error_message="The agent crashed.")
    await run.execute_update(names.TELL, change, result_type=Standing)


async def resumed(fake: FakeSteps, run: Run) -> None:
    """A run that continues another one, and ends with an output."""
    fake.agent_result = AgentResult(exit_code=0, result="done", output={"answer": 42})
    await closed(fake, run)


async def by_itself(_fake: FakeSteps, _run: Run) -> None:
    """Nothing comes from outside."""


def refused(_request: Any) -> None:
    raise ApplicationError("There is no branch 'mian'.", type="ref_not_found", non_retryable=True)


def not_heard(_request: Any) -> None:
    raise ApplicationError("The guest does not answer.", type="guest_unreachable", non_retryable=True)


def staged_on_another(_request: Any) -> StageResult:
    return StageResult(
        base_commit="c0ffee00" * 5,
        workspace_image="/images/workspace.raw",
        conversation="5f0c6d0e-7f0b-4b55-9f0e-0d6f3a2c8e11",
        notes=["Of run first, 1 files were not collected, or not whole, and are missing or as in the base: big.bin."],
    )


def full_at_first(_request: Any) -> None:
    """A host without room for whoever looks at it first, which is the worker with the workflow in hand."""
    if activity.info().is_local:
        raise ApplicationError("No room for the machine now.", type="no_room")


async def hangs(_request: Any) -> None:
    await asyncio.sleep(3600)


def on_a_lost_host(request: ReserveRequest) -> Lease:
    return Lease(machine_id=request.machine_id, host="gone", task_queue="gone")


@dataclass(frozen=True)
class Course:
    """What comes to a run (``follow``), after that without a worker (``away``), and how its steps differ.

    Those that it ``waits`` for go on when they are told to.
    """

    follow: Callable[[FakeSteps, Run], Awaitable[None]]
    away: Callable[[Run], Awaitable[None]] | None = None
    instead: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)
    secrets: bool = True
    push: bool = False
    held: bool = False
    waits: tuple[str, ...] = ()
    claude: Mapping[str, Any] = field(default_factory=dict)
    lifecycle: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)


PAUSES = {"budget_action": "pause", "decision_timeout": "1m"}
LIMITED = {"max_tokens_total": 10}

COURSES = {
    "completed": Course(completed),
    "closed": Course(closed),
    "steered": Course(steered, claude={"skip_permissions": False, "permission_timeout": "3s"}),
    "answer_kept": Course(answer_kept, claude={"skip_permissions": False}),
    "told": Course(told),
    "told_to_fail": Course(told_to_fail),
    "told_while_ending": Course(told_while_ending, waits=("collect",)),
    "held": Course(held, held=True),
    "started_again": Course(started_again, held=True),
    "cancelled": Course(cancelled),
    "resumed": Course(
        resumed,
        instead={"stage": staged_on_another},
        claude={"output_schema": {"type": "object"}, "effort": "low"},
        more={"resume": {"run": "first"}},
    ),
    "failed_preserved": Course(preserved),
    "not_staged": Course(by_itself, instead={"stage": refused}),
    "reserved_at_once": Course(closed, secrets=False),
    "reserved_later": Course(closed, instead={"reserve": full_at_first}),
    "stop_ignored": Course(stop_ignored),
    "network_changed": Course(network_changed, waits=("stage", "provision")),
    "not_delivered": Course(not_delivered, instead={"deliver": refused}),
    "collection_called_off": Course(called_off, instead={"collect": hangs}),
    "left_to_the_host": Course(cancelled_on_a_lost_host, instead={"reserve": on_a_lost_host}),
    "pushed": Course(closed, push=True),
    "over_budget": Course(spent, claude=LIMITED),
    "continued": Course(continued, claude=LIMITED, lifecycle=PAUSES),
    "not_continued": Course(spent, claude=LIMITED, lifecycle=PAUSES | {"decision_timeout": "2s"}),
    "host_lost": Course(reserved, away=given_up, instead={"reserve": on_a_lost_host}),
}


async def record(client: Client, name: str, course: Course) -> None:
    """Take one course and write its history beside this file."""
    fake = FakeSteps(queue="recording")
    fake.instead.update(course.instead)
    for step in course.waits:
        fake.hold(step)
    manifest = parse(
        {
            "metadata": {"name": name},
            "repository": {
                "url": "https://git.invalid/a.git",
                "branch": "main",
                **({"push": {"credentials": "TOKEN", "pull_request": {}}} if course.push else {}),
            },
            "claude": {"prompt": "do it", **course.claude},
            "secrets": [{"name": "TOKEN", "source": "env", "key": "TOKEN"}] if course.secrets else [],
            "lifecycle": {"failure_action": "preserve", "timeout": "10m", **course.lifecycle},
            **course.more,
        }
    )
    async with AsyncExitStack() as workers:
        await workers.enter_async_context(_worker(client, fake))
        run = await fake.start(client, manifest, name, held=course.held)
        await course.follow(fake, run)
        if course.away:
            await workers.aclose()
            await course.away(run)
            await workers.enter_async_context(_worker(client, fake))
        status = await run.result()
    assert status.state.terminal
    history = (await run.fetch_history()).to_json_dict()
    (HISTORIES / f"{name}.json").write_text(json.dumps(without_host(history), indent=1) + "\n")


def _worker(client: Client, fake: FakeSteps) -> Worker:
    """As the product's own outside of the sandbox, and without a sticky queue, whose name tells the host."""
    return fake.worker(client, workflow_runner=UnsandboxedWorkflowRunner(), max_cached_workflows=0)


def without_host(value: Any) -> Any:
    """The history without what tells of the host that recorded it, none of which a replay reads."""
    if isinstance(value, dict):
        return {key: without_host(item) for key, item in value.items() if key not in {"identity", "stackTrace"}}
    return [without_host(item) for item in value] if isinstance(value, list) else value


async def main() -> None:
    """Record all courses on a Temporal server of their own."""
    # Long enough for a worker to be gone by then, and the only patience that any course comes to the end of.
    steps.STAGE = replace(steps.STAGE, wait=timedelta(seconds=5))
    steps.RELEASE = replace(steps.RELEASE, wait=timedelta(seconds=2))
    steps.REPORT = steps.SETTLE = timedelta(seconds=2)
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        settings = isolated_settings(Path(home))
        with Stack(settings, parts=("temporal",)):
            client = await connect_engine(settings)
            for name, course in COURSES.items():
                # Those that are there stay as they are.
                if not (HISTORIES / f"{name}.json").exists():
                    await record(client, name, course)


if __name__ == "__main__":
    asyncio.run(main())
