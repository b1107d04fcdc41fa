"""Steps without machines, for tests of the workflow alone: each notes its call and does what the test tells it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from workflows import names, steps
from workflows.messages import Lease
from workflows.parents.workflow import ParentWorkflow
from workflows.runs.messages import Pushed, TaskStatus, TaskSubmission
from workflows.runs.requests import (
    AgentRequest,
    AgentResult,
    CloseRequest,
    CollectRequest,
    CollectResult,
    DeliverRequest,
    FinishRequest,
    PauseRequest,
    PauseResult,
    ProvisionRequest,
    ProvisionResult,
    PushRequest,
    ReleaseRequest,
    ReleaseResult,
    ReserveRequest,
    ResumeRequest,
    SecretsRequest,
    SecretsResult,
    SetNetworkRequest,
    StageRequest,
    StageResult,
    SteerRequest,
    StopAgentRequest,
)
from workflows.runs.workflow import TaskWorkflow
from workflows.specs.manifest import Manifest
from workflows.specs.wire import NetworkPolicy
from workflows.told.messages import FinishLocalRequest
from workflows.told.workflow import LocalRunWorkflow

Run = WorkflowHandle[TaskWorkflow, TaskStatus]

WORKFLOWS = [TaskWorkflow, ParentWorkflow, LocalRunWorkflow]


class FakeSteps:
    """One run's steps. ``instead`` replaces a step's answer by a callable that may raise or wait."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.calls: list[str] = []
        self.requests: dict[str, Any] = {}
        self.instead: dict[str, Callable[[Any], Any]] = {}
        self.delivered: list[str] = []
        self.steered: list[dict[str, Any]] = []
        self.policies: list[NetworkPolicy] = []
        self.go_on: dict[str, asyncio.Event] = {}
        self.agent_running = asyncio.Event()
        self.agent_over = asyncio.Event()
        self.agent_result = AgentResult(exit_code=0, result="done")
        self.stop_helps = True

    def worker(self, client: Client, **settings: Any) -> Worker:
        """A worker of the real workflow with these steps, not started yet; ``settings`` are the SDK's."""
        return Worker(client, task_queue=self.queue, workflows=WORKFLOWS, activities=self._all(), **settings)

    async def start(self, client: Client, manifest: Manifest, task_id: str, *, held: bool = False) -> Run:
        """A run that this worker is to take."""
        return await client.start_workflow(
            TaskWorkflow.run,
            TaskSubmission(task_id=task_id, manifest=manifest, held=held),
            id=names.RUNS.workflow_id(task_id),
            task_queue=self.queue,
        )

    def hold(self, step: str) -> None:
        """Let a step wait until ``go_on[step]`` is set."""
        go_on = self.go_on[step] = asyncio.Event()

        async def wait(_: Any) -> None:
            async with asyncio.timeout(60):
                await go_on.wait()

        self.instead[step] = wait

    async def _take(self, step: str, request: Any, answer: Any) -> Any:
        self.calls.append(step)
        self.requests[step] = request
        if step in self.instead:
            replaced = self.instead[step](request)
            if asyncio.iscoroutine(replaced):
                replaced = await replaced
            return answer if replaced is None else replaced
        return answer

    @activity.defn(name=steps.RESERVE.name)
    async def reserve(self, request: ReserveRequest) -> Lease:
        lease = Lease(machine_id=request.machine_id, host="here", task_queue=self.queue)
        return await self._take("reserve", request, lease)

    @activity.defn(name=steps.STAGE.name)
    async def stage(self, request: StageRequest) -> StageResult:
        return await self._take("stage", request, StageResult(base_commit="c0ffee", workspace_image="/nowhere"))

    @activity.defn(name=steps.PROVISION.name)
    async def provision(self, request: ProvisionRequest) -> ProvisionResult:
        result = ProvisionResult(
            vm_name=request.machine_id, vm_ip="10.0.2.15", acceleration="none", image="none", boot_seconds=0
        )
        return await self._take("provision", request, result)

    @activity.defn(name=steps.SECRETS.name)
    async def secrets(self, request: SecretsRequest) -> SecretsResult:
        return await self._take("secrets", request, SecretsResult())

    @activity.defn(name=steps.RUN_AGENT.name)
    async def run_agent(self, request: AgentRequest) -> AgentResult:
        self.agent_running.set()
        result = await self._take("run_agent", request, None)
        if result is None:
            async with asyncio.timeout(60):
                await self.agent_over.wait()
            result = self.agent_result
        return result

    @activity.defn(name=steps.STOP_AGENT.name)
    async def stop_agent(self, request: StopAgentRequest) -> None:
        await self._take("stop_force" if request.force else "stop", request, None)
        if self.stop_helps:
            self.agent_result = AgentResult(exit_code=143)
            self.agent_over.set()

    @activity.defn(name=steps.DELIVER.name)
    async def deliver(self, request: DeliverRequest) -> None:
        await self._take("deliver", request, None)
        self.delivered.append(request.text)

    @activity.defn(name=steps.STEER.name)
    async def steer(self, request: SteerRequest) -> None:
        await self._take("steer", request, None)
        self.steered.append(request.line)

    @activity.defn(name=steps.CLOSE.name)
    async def close(self, request: CloseRequest) -> None:
        await self._take("close", request, None)
        self.agent_over.set()

    @activity.defn(name=steps.NETWORK.name)
    async def set_network(self, request: SetNetworkRequest) -> None:
        self.policies.append(request.policy)
        await self._take("set_network", request, None)

    @activity.defn(name=steps.PAUSE.name)
    async def pause(self, request: PauseRequest) -> PauseResult:
        return await self._take("pause", request, PauseResult())

    @activity.defn(name=steps.RESUME.name)
    async def resume(self, request: ResumeRequest) -> None:
        await self._take("resume", request, None)

    @activity.defn(name=steps.COLLECT.name)
    async def collect(self, request: CollectRequest) -> CollectResult:
        return await self._take("collect", request, CollectResult())

    @activity.defn(name=steps.PUSH.name)
    async def push(self, request: PushRequest) -> Pushed:
        return await self._take("push", request, Pushed(branch="taskyard/a", commit="c0ffee"))

    @activity.defn(name=steps.RELEASE.name)
    async def release(self, request: ReleaseRequest) -> ReleaseResult:
        command = "ssh agent@machine" if request.preserve else None
        until = datetime.now(UTC) + timedelta(hours=24) if command else None
        result = ReleaseResult(ssh_command=command, preserved_until=until)
        return await self._take("release", request, result)

    @activity.defn(name=steps.FINISH.name)
    async def finish(self, request: FinishRequest) -> None:
        await self._take("finish", request, None)

    @activity.defn(name=steps.FINISH_LOCAL.name)
    async def finish_local(self, request: FinishLocalRequest) -> None:
        await self._take("finish_local", request, None)

    def _all(self) -> list[Callable[..., Any]]:
        return [
            self.reserve,
            self.stage,
            self.provision,
            self.secrets,
            self.run_agent,
            self.stop_agent,
            self.deliver,
            self.steer,
            self.close,
            self.set_network,
            self.pause,
            self.resume,
            self.collect,
            self.push,
            self.release,
            self.finish,
            self.finish_local,
        ]
