"""The workflow on a real Temporal server, with steps that the tests steer."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import UnsandboxedWorkflowRunner

from tests.stand_ins.fake_steps import FakeSteps, Run
from tests.waiting import PATIENCE, at_rest, has_event, until
from workflows import steps
from workflows.messages import Lease
from workflows.names import STATE_KEY
from workflows.runs.messages import CancelRequest, TaskStatus, TurnEnded, UserMessage
from workflows.runs.requests import AgentResult, CollectResult, StageResult
from workflows.runs.states import Cause, TaskState
from workflows.runs.workflow import TaskWorkflow
from workflows.specs.manifest import Manifest, parse


def a_manifest(**parts: Any) -> Manifest:
    data: dict[str, Any] = {
        "metadata": {"name": "a task"},
        "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
        "claude": {"prompt": "do it"},
    }
    for part, fields in parts.items():
        data[part] = {**data.get(part, {}), **fields} if isinstance(fields, dict) else fields
    return parse(data)


@pytest.fixture
async def fake(temporal_client: Client) -> AsyncIterator[FakeSteps]:
    steps_of_test = FakeSteps(queue=f"test-{uuid.uuid4().hex[:8]}")
    async with steps_of_test.worker(temporal_client):
        yield steps_of_test


@pytest.fixture
def start(temporal_client: Client, fake: FakeSteps) -> Callable[..., Any]:
    return lambda manifest=None: fake.start(temporal_client, manifest or a_manifest(), uuid.uuid4().hex[:12])


@asynccontextmanager
async def outcome(run: Run) -> AsyncIterator[TaskStatus]:
    async with asyncio.timeout(PATIENCE):
        yield await run.result()


async def test_takes_a_run_through_its_states_and_closes_a_headless_session(fake: FakeSteps, start: Any) -> None:
    run = await start()
    await fake.agent_running.wait()
    assert (await run.query(TaskWorkflow.status)).state is TaskState.RUNNING
    assert await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    await run.signal(TaskWorkflow.user_message, UserMessage(text="too late", id="late"))
    fake.agent_over.set()
    async with outcome(run) as status:
        assert status.state is TaskState.COMPLETED
        assert status.cause is None
        assert status.undelivered_messages == ["late"]
        assert [step.state for step in status.transitions] == [
            TaskState.PENDING,
            TaskState.STAGING,
            TaskState.PROVISIONING,
            TaskState.READY,
            TaskState.RUNNING,
            TaskState.COMPLETING,
            TaskState.COMPLETED,
        ]
    assert fake.calls == [
        "reserve", "stage", "provision", "run_agent", "collect", "release", "finish",
    ]  # fmt: skip
    assert fake.requests["collect"].release
    assert fake.requests["finish"].status.state is TaskState.COMPLETED
    history = await run.fetch_history()
    assert len(history.events) <= 80
    description = await run.describe()
    assert (await description.memo())["status"]["state"] == "completed"
    assert description.typed_search_attributes[STATE_KEY] == "completed"


async def test_the_secret_that_opens_the_repository_is_for_git_alone(fake: FakeSteps, start: Any) -> None:
    secrets = [{"name": name, "source": "env", "key": name} for name in ("GIT_TOKEN", "OTHER")]
    fake.instead["stage"] = lambda _: StageResult(base_commit="0" * 40, workspace_image="/x", mirror="f" * 64)
    fake.agent_over.set()
    async with outcome(await start(a_manifest(secrets=secrets, repository={"credentials": "GIT_TOKEN"}))) as status:
        assert status.state is TaskState.COMPLETED
    assert fake.requests["stage"].credentials.key == "GIT_TOKEN"
    for step in ("secrets", "run_agent", "collect"):
        assert [secret.name for secret in fake.requests[step].secrets] == ["OTHER"]
    assert fake.requests["collect"].mirror == "f" * 64


async def test_a_machine_that_was_let_go_after_it_was_read_is_not_released_again(fake: FakeSteps, start: Any) -> None:
    fake.instead["collect"] = lambda _: CollectResult(released=True)
    fake.agent_over.set()
    async with outcome(await start()) as status:
        assert status.state is TaskState.COMPLETED
    assert fake.calls[-2:] == ["collect", "finish"]


async def test_a_failed_agent_fails_the_run_after_its_artifacts_are_collected(fake: FakeSteps, start: Any) -> None:
    fake.instead["run_agent"] = lambda _: AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="exited with code 1")
    async with outcome(await start()) as status:
        assert (status.state, status.cause, status.exit_code) == (TaskState.FAILED, Cause.AGENT_EXIT, 1)
        assert status.error == "exited with code 1"
    assert fake.calls[-3:] == ["collect", "release", "finish"]
    assert not fake.requests["collect"].release
    assert not fake.requests["release"].preserve


async def test_a_failed_run_keeps_its_machine_when_the_manifest_says_preserve(fake: FakeSteps, start: Any) -> None:
    fake.instead["run_agent"] = lambda _: AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="exited with code 1")
    async with outcome(await start(a_manifest(lifecycle={"failure_action": "preserve"}))) as status:
        assert status.state is TaskState.FAILED_PRESERVED
        assert status.ssh_command == "ssh agent@machine"


async def test_a_repository_that_cannot_be_staged_ends_the_run_with_its_sentence(fake: FakeSteps, start: Any) -> None:
    def refuse(_: Any) -> None:
        raise ApplicationError(
            "There is no branch 'mian'; did you mean 'main'?", type="ref_not_found", non_retryable=True
        )

    fake.instead["stage"] = refuse
    async with outcome(await start()) as status:
        assert (status.state, status.cause) == (TaskState.FAILED, Cause.REPOSITORY)
        assert status.error == "There is no branch 'mian'; did you mean 'main'?"
    assert fake.calls == ["reserve", "stage", "release", "finish"]


async def test_cancel_stops_the_running_agent_then_collects_and_tears_down(fake: FakeSteps, start: Any) -> None:
    run = await start(a_manifest(lifecycle={"failure_action": "preserve"}))
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.cancel, CancelRequest(reason="no longer needed"))
    async with outcome(run) as status:
        assert (status.state, status.cause) == (TaskState.CANCELLED, Cause.CANCELLED)
        assert status.error == "Cancelled: no longer needed"
        assert status.exit_code == 143
    assert fake.calls == [
        "reserve", "stage", "provision", "run_agent", "stop", "collect", "release", "finish",
    ]  # fmt: skip
    assert not fake.requests["release"].preserve


async def test_cancel_without_a_payload_and_temporals_own_cancel_mean_the_same(fake: FakeSteps, start: Any) -> None:
    run = await start()
    await fake.agent_running.wait()
    await run.signal("cancel")
    async with outcome(run) as status:
        assert status.state is TaskState.CANCELLED
    fake.agent_over.clear()
    fake.agent_running.clear()
    run = await start()
    await fake.agent_running.wait()
    await run.cancel()
    async with outcome(run) as status:
        assert (status.state, status.error) == (TaskState.CANCELLED, "Cancelled: Cancelled through Temporal")


async def test_force_takes_the_grace_period_away(fake: FakeSteps, start: Any) -> None:
    stopping = asyncio.Event()
    killed = asyncio.Event()

    async def grace(_: Any) -> None:
        stopping.set()
        await killed.wait()

    fake.instead["stop"] = grace
    fake.instead["stop_force"] = lambda _: killed.set()
    run = await start()
    await fake.agent_running.wait()
    await run.signal(TaskWorkflow.cancel, CancelRequest())
    await stopping.wait()
    await run.signal(TaskWorkflow.cancel, CancelRequest(force=True))
    async with outcome(run) as status:
        assert status.state is TaskState.CANCELLED
    assert {"stop", "stop_force"} <= set(fake.calls)


async def test_a_host_without_room_leaves_the_run_to_the_queue_of_all_hosts(fake: FakeSteps, start: Any) -> None:
    looked: list[bool] = []

    def full_at_first(_: Any) -> None:
        looked.append(activity.info().is_local)
        if looked == [True]:
            raise ApplicationError("no room", type="no_room")

    fake.instead["reserve"] = full_at_first
    fake.agent_over.set()
    async with outcome(await start()) as status:
        assert status.state is TaskState.COMPLETED
    assert looked == [True, False]


async def test_cancel_while_no_host_has_room_ends_at_once(fake: FakeSteps, start: Any) -> None:
    def full(_: Any) -> None:
        raise ApplicationError("no room", type="no_room")

    fake.instead["reserve"] = full
    run = await start()
    await until(lambda: "reserve" in fake.calls, "a look for room")
    await run.signal(TaskWorkflow.cancel, CancelRequest())
    async with outcome(run) as status:
        assert status.state is TaskState.CANCELLED
    assert set(fake.calls) == {"reserve", "finish"}


async def test_cancel_while_a_last_attempt_to_reserve_fails_is_a_cancellation(fake: FakeSteps, start: Any) -> None:
    asked = asyncio.Event()

    async def full(_: Any) -> None:
        if not activity.info().is_local:
            await asked.wait()
        raise ApplicationError("no room", type="no_room")

    fake.instead["reserve"] = full
    run = await start()
    await until(lambda: fake.calls.count("reserve") == 2, "a second look for room")
    await run.signal(TaskWorkflow.cancel, CancelRequest())
    # Once the server knows of the wish, a failing attempt is the last one, and its failure is all that comes back.
    await until(
        lambda: has_event(run, EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED), "the server to know of the wish"
    )
    asked.set()
    async with outcome(run) as status:
        assert (status.state, status.cause) == (TaskState.CANCELLED, Cause.CANCELLED)
    assert set(fake.calls) == {"reserve", "finish"}


async def test_a_host_that_stays_away_ends_the_run(temporal_client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "STAGE", replace(steps.STAGE, wait=timedelta(milliseconds=100)))
    fake = FakeSteps(queue=f"test-{uuid.uuid4().hex[:8]}")
    fake.instead["reserve"] = lambda request: Lease(machine_id=request.machine_id, host="gone", task_queue="nobody's")
    # The sandbox would read the table of steps anew.
    async with (
        fake.worker(temporal_client, workflow_runner=UnsandboxedWorkflowRunner()),
        outcome(await fake.start(temporal_client, a_manifest(), "away")) as status,
    ):
        assert (status.state, status.cause) == (TaskState.FAILED, Cause.HOST_LOST)
        assert "Host gone did not come back" in (status.error or "")
    # Nothing is asked of the host any more.
    assert fake.calls == ["reserve", "finish"]


async def test_the_run_timeout_stops_the_agent(fake: FakeSteps, start: Any) -> None:
    async with outcome(await start(a_manifest(lifecycle={"timeout": "1s"}))) as status:
        assert (status.state, status.cause) == (TaskState.FAILED, Cause.RUN_TIMEOUT)
        assert "lifecycle.timeout of 1s" in (status.error or "")
    assert fake.calls.count("stop") == 1


async def test_messages_reach_the_agent_in_order_and_once_and_keep_the_session_open(
    fake: FakeSteps, start: Any
) -> None:
    hold = asyncio.Event()

    async def slow(_: Any) -> None:
        await hold.wait()

    fake.instead["deliver"] = slow
    run = await start()
    await run.signal(TaskWorkflow.user_message, UserMessage(text="first", id="1"))
    await run.signal(TaskWorkflow.user_message, UserMessage(text="first", id="1"))
    await run.signal(TaskWorkflow.user_message, UserMessage(text="second"))
    await until(lambda: "deliver" in fake.calls, "a delivery")
    assert not await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    hold.set()
    await until(lambda: len(fake.delivered) == 2, "two messages")
    await until(lambda: at_rest(run), "the workflow to know of the last delivery")
    assert "close" not in fake.calls
    assert await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=2))
    fake.agent_over.set()
    async with outcome(run) as status:
        assert status.state is TaskState.COMPLETED
    assert fake.delivered == ["first", "second"]


async def test_an_interactive_session_stays_open_until_it_is_closed(fake: FakeSteps, start: Any) -> None:
    run = await start(a_manifest(claude={"headless": False}))
    await fake.agent_running.wait()
    assert not await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=1))
    await run.signal(TaskWorkflow.user_message, UserMessage(text="more"))
    await until(lambda: fake.delivered == ["more"], "the message")
    assert not await run.execute_update(TaskWorkflow.end_turn, TurnEnded(results=2))
    assert "close" not in fake.calls
    await run.signal(TaskWorkflow.close)
    async with outcome(run) as status:
        assert status.state is TaskState.COMPLETED
    assert "close" in fake.calls


async def test_a_message_that_comes_too_late_is_told_as_undelivered(fake: FakeSteps, start: Any) -> None:
    def closed(_: Any) -> None:
        raise ApplicationError("closed", type="session_closed", non_retryable=True)

    fake.instead["deliver"] = closed
    run = await start()
    await run.signal(TaskWorkflow.user_message, UserMessage(text="too late", id="late"))
    await until(lambda: "deliver" in fake.calls, "a delivery")
    fake.agent_over.set()
    async with outcome(run) as status:
        assert status.undelivered_messages == ["late"]


async def test_artifacts_that_cannot_be_collected_fail_the_run(fake: FakeSteps, start: Any) -> None:
    def broken(_: Any) -> None:
        raise ApplicationError("the disk is unreadable", type="machine_error", non_retryable=True)

    fake.instead["collect"] = broken
    fake.agent_over.set()
    async with outcome(await start()) as status:
        assert (status.state, status.cause) == (TaskState.FAILED, Cause.COLLECT)
    assert fake.calls[-2:] == ["release", "finish"]
