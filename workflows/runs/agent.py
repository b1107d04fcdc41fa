"""The agent of a run as its workflow has it: followed to its end, or stopped when that is not to be waited for."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows import names, steps
from workflows.calls import called_off, is_done
from workflows.runs.calls import RunCalls
from workflows.runs.conversation import Conversation
from workflows.runs.decision import Decision
from workflows.runs.interruption import Interruption
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.requests import AgentRequest, AgentResult, StopAgentRequest
from workflows.runs.states import Cause
from workflows.specs.wire import Manifest


class Agent:
    """The one agent of a run, in its one machine."""

    def __init__(
        self,
        calls: RunCalls,
        report: RunReport,
        interruption: Interruption,
        conversation: Conversation,
        decision: Decision,
        machine_id: str,
    ) -> None:
        self._calls = calls
        self._report = report
        self._interruption = interruption
        self._conversation = conversation
        self._decision = decision
        self._machine_id = machine_id

    async def run(self, task_id: str, manifest: Manifest, continued: str | None = None) -> AgentResult:
        """Start the agent and follow it to its end, whoever brings that about. Raises RunEnded without a result.

        ``continued`` is the id of the conversation that it goes on with. An agent that has used up its budget may be
        continued: its own time stands still until it goes on.
        """
        lifecycle = manifest.lifecycle
        left = lifecycle.seconds("timeout")
        conversation: asyncio.Task[None] | None = None
        try:
            while True:
                began = workflow.now()
                request = self._request(task_id, manifest, continued)
                handle = self._calls.start(steps.RUN_AGENT, request, f"Claude Code, {manifest.claude.model}")
                conversation = conversation or asyncio.create_task(self._conversation.run())
                result, stopped = await self._follow(handle, left, lifecycle.timeout)
                if stopped is not None or not self._decision.is_due(result):
                    break
                left = max(left - (workflow.now() - began), timedelta())
                self._conversation.suspend()
                stopped = await self._sleep(result, left)
                if stopped is not None:
                    break
                self._conversation.resume()
        finally:
            self._conversation.end()
            if conversation is not None:
                conversation.cancel()
        if stopped is not None:
            # How it left after being stopped is worth keeping, but the stop is the cause.
            return result.model_copy(update={"cause": stopped.cause, "error": stopped.error})
        if result.running and not await self._stop():
            await self._end_machine()
        return result

    def _request(self, task_id: str, manifest: Manifest, continued: str | None) -> AgentRequest:
        return AgentRequest(
            task_id=task_id,
            machine_id=self._machine_id,
            claude=manifest.claude,
            subpath=manifest.repository.subpath,
            secrets=manifest.guest_secrets(),
            hang_timeout=manifest.lifecycle.seconds("hang_timeout"),
            budget=self._decision.budget,
            conversation=continued,
        )

    async def _follow(
        self, handle: workflow.ActivityHandle[AgentResult], left: timedelta, limit: str
    ) -> tuple[AgentResult, RunEnded | None]:
        """What the follower reports, and why the agent was stopped if it was. Raises RunEnded without a report."""
        stopped: RunEnded | None = None
        try:
            await workflow.wait_condition(lambda: handle.done() or self._interruption.reason is not None, timeout=left)
        except TimeoutError:
            stopped = RunEnded(
                Cause.RUN_TIMEOUT, f"The agent was stopped: lifecycle.timeout of {limit} passed; set a longer one."
            )
        reported = True
        if not handle.done():
            stopped = stopped or self._interruption.reason
            reported = await self._end(handle)
        try:
            result: AgentResult | None = await handle if reported else None
        except ActivityError as error:
            raise stopped or self._calls.ended_by(steps.RUN_AGENT, error) from error
        if result is None:
            raise stopped or RunEnded(Cause.INTERNAL, "How the agent ended is not known.")
        return result, stopped

    async def _sleep(self, result: AgentResult, left: timedelta) -> RunEnded | None:
        """Let the agent sleep until somebody decides; why the run ends, if it does."""
        try:
            await self._decision.outlast(result, left)
        except RunEnded as end:
            if not self._calls.away:
                # Nothing is to be stopped in a machine that sleeps; one that could not be put to sleep goes on.
                await self._stop()
            return end
        return None

    async def _end(self, handle: workflow.ActivityHandle[AgentResult]) -> bool:
        """Stop the agent, and its machine if that does not help. False when its follower has not reported the end."""
        stopped = await self._stop()
        if handle.done() or not workflow.patched(names.BOUNDED):
            return True
        if stopped and await is_done(handle, steps.REPORT):
            return True
        if not self._calls.away:
            await self._end_machine()
            if await is_done(handle, steps.SETTLE):
                return True
        return await called_off(handle)

    async def _stop(self) -> bool:
        """Stop the agent by a step of its own, so that a stop never waits for a heartbeat. Whether that succeeded."""
        request = StopAgentRequest(machine_id=self._machine_id, force=self._interruption.forced)
        stop = asyncio.create_task(self._calls.attempt(steps.STOP_AGENT, request, "Stop Claude Code"))
        if not request.force:
            # A force that comes during the grace period is carried out at once.
            await workflow.wait_condition(lambda: stop.done() or self._interruption.forced)
            if not stop.done():
                kill = StopAgentRequest(machine_id=self._machine_id, force=True)
                await self._calls.attempt(steps.STOP_AGENT, kill, "Kill Claude Code")
        return await stop

    async def _end_machine(self) -> None:
        """End the machine's process from its host: nothing in the guest can prevent that, and its disks stay."""
        self._report.note("The agent could not be stopped in its guest: the machine was ended from its host.")
        request = StopAgentRequest(machine_id=self._machine_id, force=True, machine=True)
        await self._calls.attempt(steps.STOP_AGENT, request, "End the machine")
