"""Steps without machines: a worker that carries the real workflow through all its steps and does nothing in them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

from temporalio import activity
from temporalio.client import Client

from activities.machine.lease import host_queue
from foundation.settings import Settings
from guest.contract import GUEST_ADDRESS
from worker.main import SHARED_STEPS, polling
from worker.registry import WORKFLOWS, Activity, placed
from workflows import names, steps
from workflows.messages import Lease
from workflows.runs.messages import LiveProgress, TurnEnded
from workflows.runs.requests import (
    AgentRequest,
    AgentResult,
    CloseRequest,
    CollectRequest,
    CollectResult,
    FinishRequest,
    ProvisionRequest,
    ProvisionResult,
    ReleaseRequest,
    ReleaseResult,
    ReserveRequest,
    StageRequest,
    StageResult,
)

_MOST_STEPS = 64
_BEAT_SECONDS = 1.0


def manifest() -> dict[str, Any]:
    """A manifest that asks for nothing special."""
    return {
        "version": "1",
        "kind": "Task",
        "metadata": {"name": "benchmark", "labels": {"benchmark": "stack"}},
        "repository": {"url": "https://git.invalid/project.git", "branch": "main"},
        "claude": {"prompt": "Mend the fault that the tests show, and write a report of what you changed."},
    }


@asynccontextmanager
async def stand_in_worker(
    settings: Settings, client: Client, *, held: bool = False, instead: Mapping[str, Activity] | None = None
) -> AsyncIterator[None]:
    """A worker of both queues with stand-ins for all steps but those given ``instead``, by the names of the steps.

    ``held`` agents are at work for as long as the block lasts.
    """
    stand_ins = StandIns(client, settings.host_name, host_queue(settings), held=held)
    chosen = stand_ins.by_name() | dict(instead or {})
    work = placed(chosen)
    async with (
        polling(client, settings.task_queue, SHARED_STEPS, work.shared, list(WORKFLOWS.values())),
        polling(client, host_queue(settings), _MOST_STEPS, work.host),
    ):
        try:
            yield
        finally:
            stand_ins.let_go()


class StandIns:
    """Each step answers at once, as the real one does when all goes well.

    The agent ends its turn, of which its run is told, and its process when its session is to be closed. A ``held``
    one is at work until ``let_go``, and sends heartbeats.
    """

    def __init__(self, client: Client, host: str, queue: str, *, held: bool) -> None:
        self._client = client
        self._host = host
        self._queue = queue
        self._closed: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self._over = asyncio.Event()
        if not held:
            self._over.set()

    def let_go(self) -> None:
        """Let the agents end that are held."""
        self._over.set()

    def by_name(self) -> dict[str, Activity]:
        """The activities by the names of their steps."""
        return {
            steps.RESERVE.name: self.reserve,
            steps.STAGE.name: self.stage,
            steps.PROVISION.name: self.provision,
            steps.RUN_AGENT.name: self.run_agent,
            steps.CLOSE.name: self.close,
            steps.COLLECT.name: self.collect,
            steps.RELEASE.name: self.release,
            steps.FINISH.name: self.finish,
        }

    @activity.defn(name=steps.RESERVE.name)
    async def reserve(self, request: ReserveRequest) -> Lease:
        """A lease of this host."""
        return Lease(machine_id=request.machine_id, host=self._host, task_queue=self._queue)

    @activity.defn(name=steps.STAGE.name)
    async def stage(self, _: StageRequest) -> StageResult:
        """A workspace that is nowhere."""
        return StageResult(base_commit="c0ffee" * 6 + "c0ff", workspace_image="/nowhere/workspace.raw")

    @activity.defn(name=steps.PROVISION.name)
    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """A machine that does not exist."""
        return ProvisionResult(
            vm_name=request.machine_id, vm_ip=GUEST_ADDRESS, acceleration="none", image="none", boot_seconds=0
        )

    @activity.defn(name=steps.RUN_AGENT.name)
    async def run_agent(self, request: AgentRequest) -> AgentResult:
        """An agent with one turn."""
        while not self._over.is_set():
            activity.heartbeat(LiveProgress(tool_calls=1, current_tool="Bash"))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _BEAT_SECONDS)
        info = activity.info()
        run = self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
        if not await run.execute_update(names.END_TURN, TurnEnded(results=1), result_type=bool):
            await self._closed[request.machine_id].wait()
        return AgentResult(exit_code=0, result="Done.")

    @activity.defn(name=steps.CLOSE.name)
    async def close(self, request: CloseRequest) -> None:
        """The end of the session."""
        self._closed[request.machine_id].set()

    @activity.defn(name=steps.COLLECT.name)
    async def collect(self, request: CollectRequest) -> CollectResult:
        """No artifacts, and nothing to tear down."""
        return CollectResult(released=request.release)

    @activity.defn(name=steps.RELEASE.name)
    async def release(self, _: ReleaseRequest) -> ReleaseResult:
        """Nothing to tear down."""
        return ReleaseResult()

    @activity.defn(name=steps.FINISH.name)
    async def finish(self, _: FinishRequest) -> None:
        """No record."""
