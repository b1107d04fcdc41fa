"""Many followed agents on one worker: no other step waits behind them."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from contextlib import AsyncExitStack

from temporalio import activity
from temporalio.client import Client

from machines.ledger import Capacity
from tests.integration.workflows.test_task_workflow import a_manifest
from tests.stand_ins.fake_steps import FakeSteps
from tests.waiting import until
from worker.main import most_machines, polling
from workflows import steps
from workflows.messages import Lease
from workflows.runs.messages import UserMessage
from workflows.runs.requests import AgentRequest, AgentResult
from workflows.runs.states import TaskState
from workflows.runs.workflow import TaskWorkflow

RUNS = 300
PATIENCE = 240.0


class FollowedAgents(FakeSteps):
    """Steps of a host whose followers block a thread each, as the real one does."""

    def __init__(self, queue: str) -> None:
        super().__init__(queue)
        self.following = 0
        self.over = threading.Event()
        self._lock = threading.Lock()
        self.instead["reserve"] = lambda request: Lease(
            machine_id=request.machine_id, host="here", task_queue=f"{queue}-host", agent_queue=f"{queue}-agents"
        )

    @activity.defn(name=steps.RUN_AGENT.name)
    def follow(self, _: AgentRequest) -> AgentResult:
        with self._lock:
            self.following += 1
        while not self.over.wait(15.0):
            activity.heartbeat()
        return AgentResult(exit_code=0, result="done")


async def test_three_hundred_agents_are_followed_and_other_steps_are_served_at_once(temporal_client: Client) -> None:
    queue = f"test-{uuid.uuid4().hex[:8]}"
    fake = FollowedAgents(queue)
    host = Capacity(cpus=RUNS, memory_bytes=2**40, disk_total_bytes=2**40, disk_free_bytes=2**40)
    shared = [fake.reserve, fake.finish]
    own = [fake.stage, fake.provision, fake.stop_agent, fake.deliver, fake.close, fake.collect, fake.release]
    threads_before = threading.active_count()
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(polling(temporal_client, queue, 32, shared, [TaskWorkflow]))
        await stack.enter_async_context(polling(temporal_client, f"{queue}-host", 16, own))
        agents = polling(temporal_client, f"{queue}-agents", most_machines(host), [fake.follow])
        await stack.enter_async_context(agents)
        stack.callback(fake.over.set)
        manifest = a_manifest(claude={"headless": False})
        runs = [await fake.start(temporal_client, manifest, f"{queue}-{number}") for number in range(RUNS)]
        await until(lambda: fake.following == RUNS, "every agent to be followed", patience=PATIENCE)
        # One for each follower, and some for the short steps and the SDK.
        assert threading.active_count() - threads_before < RUNS + 100

        began = time.monotonic()
        *others, last = runs
        await last.signal(TaskWorkflow.user_message, UserMessage(text="more"))
        await until(lambda: fake.delivered == ["more"], "the message", patience=PATIENCE)
        # Well below what a step may wait in its queue before its host is taken to be away.
        assert time.monotonic() - began < steps.ABSENCE.total_seconds() / 2

        # One shows how a run ends; the ends of all would be the server's work and not the worker's.
        await asyncio.gather(*(run.terminate() for run in others))
        fake.over.set()
        async with asyncio.timeout(PATIENCE):
            assert (await last.result()).state is TaskState.COMPLETED
