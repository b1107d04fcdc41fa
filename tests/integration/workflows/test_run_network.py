"""The network of a run on a real Temporal server: what it starts with, and how it is changed while the run goes on."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from tests.stand_ins.fake_steps import FakeSteps
from tests.waiting import has_event, until
from workflows.runs.messages import NetworkChange
from workflows.runs.workflow import TaskWorkflow
from workflows.specs.manifest import Manifest, parse
from workflows.specs.wire import NetworkMode, NetworkPolicy


def outbound(*hosts: str) -> Manifest:
    return parse(
        {
            "metadata": {"name": "a task"},
            "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
            "claude": {"prompt": "do it"},
            "vm": {"network_mode": "outbound", "allowed_hosts": list(hosts)},
        }
    )


@pytest.fixture
async def fake(temporal_client: Client) -> AsyncIterator[FakeSteps]:
    steps_of_test = FakeSteps(queue=f"test-{uuid.uuid4().hex[:8]}")
    async with steps_of_test.worker(temporal_client):
        yield steps_of_test


@pytest.fixture
def start(temporal_client: Client, fake: FakeSteps) -> Callable[..., Any]:
    return lambda manifest: fake.start(temporal_client, manifest, uuid.uuid4().hex[:12])


async def test_a_network_is_changed_while_the_run_goes_on_by_update_and_by_signal(fake: FakeSteps, start: Any) -> None:
    run = await start(outbound("a.example.org"))
    await fake.agent_running.wait()
    assert fake.requests["provision"].network.hosts == ["a.example.org"]
    standing = await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["B.example.org"]))
    assert (standing.in_force, standing.policy.hosts) == (True, ["a.example.org", "b.example.org"])
    # What is in force already costs no step.
    await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["b.example.org"]))
    await run.signal(TaskWorkflow.network, NetworkChange(mode=NetworkMode.FULL, remove=["a.example.org"]))
    await run.signal(TaskWorkflow.network, NetworkChange(remove=["a.example.org"]))

    async def noted() -> bool:
        return bool((await run.query(TaskWorkflow.status)).notes)

    await until(noted, "the note of a refused change")
    status = await run.query(TaskWorkflow.status)
    assert status.notes[0].startswith("A change of the network was refused: No rule of this run is 'a.example.org'")
    assert status.network_policy == NetworkPolicy(mode=NetworkMode.FULL, hosts=["b.example.org"])
    assert [policy.mode for policy in fake.policies] == [NetworkMode.OUTBOUND, NetworkMode.FULL]
    assert fake.requests["set_network"].changes == "mode full; a.example.org removed"
    fake.agent_over.set()
    assert (await run.result()).network_policy.hosts == ["b.example.org"]
    with pytest.raises(RPCError):
        await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["c.example.org"]))


async def test_a_change_before_the_machine_is_there_is_what_it_starts_with(fake: FakeSteps, start: Any) -> None:
    async def reached(step: str) -> bool:
        return step in fake.calls

    fake.hold("stage")
    fake.hold("provision")
    run = await start(outbound())
    await until(lambda: reached("stage"), "the staging")
    standing = await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["a.example.org"]))
    assert not standing.in_force
    fake.go_on["stage"].set()
    await until(lambda: reached("provision"), "the provisioning")
    assert fake.requests["provision"].network.hosts == ["a.example.org"]
    standing = await run.execute_update(TaskWorkflow.change_network, NetworkChange(remove=["a.example.org"]))
    assert not standing.in_force
    assert not fake.policies
    fake.go_on["provision"].set()
    await fake.agent_running.wait()
    assert fake.calls.index("set_network") < fake.calls.index("run_agent")
    assert fake.policies[-1].hosts == []
    assert (await run.query(TaskWorkflow.status)).network_in_force
    fake.agent_over.set()
    await run.result()


async def test_changes_that_come_at_once_are_carried_out_in_their_order(fake: FakeSteps, start: Any) -> None:
    run = await start(outbound())
    await fake.agent_running.wait()
    names = [f"h{number}.example.org" for number in range(8)]
    changes = [NetworkChange(allow=[name]) for name in names] + [NetworkChange(remove=[name]) for name in names[:4]]
    for change in changes:
        await run.signal(TaskWorkflow.network, change)

    async def done() -> bool:
        return len(fake.policies) == len(changes)

    await until(done, "the changes")
    assert [len(policy.hosts) for policy in fake.policies] == [*range(1, 9), 7, 6, 5, 4]
    assert fake.policies[-1].hosts == names[4:]
    assert (await run.query(TaskWorkflow.status)).notes == []
    fake.agent_over.set()
    await run.result()


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (NetworkChange(remove=["b.example.org"]), "conflict"),
        (NetworkChange(allow=["https://example.org"]), "invalid_parameter"),
    ],
)
async def test_a_change_that_is_refused_costs_no_history(
    fake: FakeSteps, start: Any, change: NetworkChange, code: str
) -> None:
    run = await start(outbound("a.example.org"))
    await fake.agent_running.wait()
    with pytest.raises(WorkflowUpdateFailedError) as refused:
        await run.execute_update(TaskWorkflow.change_network, change)
    assert isinstance(refused.value.cause, ApplicationError)
    assert refused.value.cause.type == code
    assert not await has_event(run, EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
    fake.agent_over.set()
    await run.result()


async def test_a_change_that_its_host_does_not_take_is_told_and_can_be_sent_again(fake: FakeSteps, start: Any) -> None:
    def refuse(_: Any) -> None:
        raise ApplicationError("No space left on the host.", non_retryable=True)

    run = await start(outbound())
    await fake.agent_running.wait()
    fake.instead["set_network"] = refuse
    with pytest.raises(WorkflowUpdateFailedError) as failed:
        await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["a.example.org"]))
    assert "No space left" in str(failed.value.cause)
    status = await run.query(TaskWorkflow.status)
    assert (status.network_policy.hosts, status.network_in_force) == ([], False)
    del fake.instead["set_network"]
    standing = await run.execute_update(TaskWorkflow.change_network, NetworkChange(allow=["a.example.org"]))
    assert standing.in_force
    fake.agent_over.set()
    await run.result()
