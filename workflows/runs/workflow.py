"""TaskWorkflow: one execution of a manifest, from reserving a host to the final record."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ActivityError, FailureError

with workflow.unsafe.imports_passed_through():
    from foundation.machine_ids import machine_id_of
    from workflows import names, steps
    from workflows.calls import called_off
    from workflows.messages import Lease
    from workflows.runs.agent import Agent
    from workflows.runs.calls import RunCalls
    from workflows.runs.conversation import Conversation
    from workflows.runs.decision import Decision
    from workflows.runs.ending.push import Push
    from workflows.runs.held.hold import Hold
    from workflows.runs.interruption import Interruption
    from workflows.runs.messages import (
        CancelRequest,
        Continued,
        ContinueRequest,
        NetworkChange,
        NetworkStanding,
        TaskStatus,
        TaskSubmission,
        TurnEnded,
        UserMessage,
    )
    from workflows.runs.network import Network
    from workflows.runs.outcome import RunEnded
    from workflows.runs.report import RunReport
    from workflows.runs.requests import (
        AgentResult,
        CollectRequest,
        FinishRequest,
        ProvisionRequest,
        ReleaseRequest,
        ReserveRequest,
        SecretsRequest,
        StageRequest,
        StageResult,
        StopAgentRequest,
    )
    from workflows.runs.states import Cause, TaskState
    from workflows.runs.steering.handlers import Steered
    from workflows.runs.steering.steering import Steering
    from workflows.runs.told.changes import RunTold


@workflow.defn(name=names.RUNS.type)
class TaskWorkflow(Steered):
    """Takes one task run through its states. What it is told and asked is in the table of names."""

    @workflow.init
    def __init__(self, submission: TaskSubmission) -> None:
        self._manifest = submission.manifest
        self._task_id = submission.task_id
        self._machine_id = machine_id_of(workflow.info().run_id)
        self._report = RunReport(submission, workflow.now())
        self._interruption = Interruption()
        self._calls = RunCalls(submission.manifest.lifecycle, self._report, self._interruption)
        self._steering = Steering(self._report, submission.manifest.claude)
        self._conversation = Conversation(
            self._calls,
            self._report,
            self._interruption,
            self._steering,
            self._machine_id,
            headless=submission.manifest.claude.headless,
        )
        self._decision = Decision(self._calls, self._report, self._interruption, self._machine_id, submission.manifest)
        self._push = Push(self._calls, self._report, self._interruption, self._machine_id, submission.manifest)
        self._network = Network(self._calls, self._report, self._machine_id, submission.manifest.vm.network())
        self._told = RunTold(submission.told, self._report, self._interruption)
        self._hold = Hold(submission, self._report, self._interruption, self._conversation)
        self._staged: StageResult | None = None

    @workflow.signal(
        name=names.CANCEL, description="End the run: stop the agent, collect its artifacts, tear the machine down"
    )
    def cancel(self, request: CancelRequest | None = None) -> None:
        """Public API. The first reason stands; a later ``force`` still takes the grace period away."""
        self._interruption.ask(request or CancelRequest())
        self._interruption.mind_history()

    @workflow.signal(name=names.USER_MESSAGE, description="Hand a further message to the running agent")
    def user_message(self, message: UserMessage) -> None:
        """Public API. A message with a known id is a repetition and changes nothing.

        One that is refused is named in the status.
        """
        self._conversation.take(message)
        self._interruption.mind_history()

    @workflow.signal(name=names.CLOSE, description="Close the agent's session once it has answered what it was given")
    def close(self) -> None:
        """Public API: ends a run with ``headless: false`` as a success, and one that waits for a decision as it is."""
        self._conversation.want_close()
        self._decision.close()

    @workflow.signal(name=names.CONTINUE, description="Add to a budget that is used up, and let the run go on")
    def continue_(self, more: ContinueRequest | None = None) -> None:
        """Public API. What is refused is noted in the status."""
        self._interruption.mind_history()
        self._decision.take_or_note(more or ContinueRequest())

    @workflow.update(name=names.CONTINUE_RUN, description="The signal 'continue', answered with the new limits")
    def continue_run(self, more: ContinueRequest) -> Continued:
        """Not public: sent by the API. A refusal has the code of an error of Taskyard's as its type."""
        self._interruption.mind_update()
        return self._decision.take(more)

    @continue_run.validator
    def check_continue(self, more: ContinueRequest) -> None:
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()
        self._decision.check(more)

    @workflow.signal(name=names.NETWORK, description="Change what the machine may reach: mode, rules to add and remove")
    async def network(self, change: NetworkChange) -> None:
        """Public API. What is refused of it is noted in the status."""
        self._interruption.mind_history()
        await self._network.take(change)

    @workflow.update(name=names.CHANGE_NETWORK, description="The signal 'network', answered once it is in force")
    async def change_network(self, change: NetworkChange) -> NetworkStanding:
        """Not public: sent by the API. A refusal has the code of an error of Taskyard's as its type."""
        self._interruption.mind_update()
        return await self._network.change(change)

    @change_network.validator
    def check_network_change(self, change: NetworkChange) -> None:
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()
        self._network.check(change)

    @workflow.update(name=names.END_TURN, description="Sent by Taskyard's own follower when the agent has answered")
    def end_turn(self, ended: TurnEnded) -> bool:
        """Not public: the agent waits for input, says its follower, and closes the session when this is true."""
        self._interruption.mind_update()
        self._conversation.turn_ended(interrupted=ended.interrupted)
        return self._conversation.close_if_idle()

    @workflow.signal(
        name=names.TURN_ENDED, description="How followers of earlier versions tell that the agent has answered"
    )
    def turn_ended(self, _: TurnEnded) -> None:
        """Not public."""
        self._conversation.turn_ended()

    @workflow.query(name=names.STATUS, description="State, times, machine, outcome and manifest of the run")
    def status(self) -> TaskStatus:
        """Public API: the run as ``TaskStatus``."""
        inbox = self._conversation.inbox
        return self._report.status.model_copy(
            update={
                "manifest": self._manifest,
                "undelivered_messages": list(inbox.undelivered),
                "waiting_messages": len(inbox),
                "takes_messages": self._conversation.takes_messages,
                "permission_requests": self._steering.requests,
            }
        )

    @workflow.run
    async def run(self, submission: TaskSubmission) -> TaskStatus:  # noqa: ARG002 -- taken in __init__
        """The run from start to end. Returns its final status; a failed run is a completed workflow."""
        steps_of_run = asyncio.create_task(self._run_to_outcome())
        while not steps_of_run.done():
            try:
                await asyncio.shield(steps_of_run)
            except asyncio.CancelledError:
                # Temporal's own cancellation (the UI's button, the temporal CLI) is the signal by another way.
                self.cancel(CancelRequest(reason="Cancelled through Temporal"))
        return steps_of_run.result()

    async def _run_to_outcome(self) -> TaskStatus:
        report, status = self._report, self._report.status
        agent: AgentResult | None = None
        try:
            agent = await self._work()
            report.take_agent_result(agent)
        except RunEnded as end:
            report.take_end(end)
        self._conversation.end()
        self._network.end()
        if self._calls.lease is not None and status.cause is not Cause.HOST_LOST and not self._leaves_machine():
            await self._complete(agent)
        if self._calls.away:
            report.note(
                f"The worker of host {status.host} was away when the run ended: the machine is left to it, and is torn "
                "down when it is back. What was not collected by then is lost."
            )
        # From here on nothing is awaited that another signal could overtake, except the record of this very end.
        outcome = report.outcome()
        self._conversation.inbox.give_up_all()
        status.undelivered_messages = list(self._conversation.inbox.undelivered)
        status.takes_messages = False
        report.enter(outcome)
        try:
            await self._calls.start(steps.FINISH, FinishRequest(status=self.status()), "Write the final record")
        except ActivityError:
            if not workflow.patched(names.BOUNDED):
                raise
            report.note("The final record could not be written to the bucket: only Temporal knows how the run ended.")
            report.remember()
        return status

    # --- the steps in order

    async def _work(self) -> AgentResult:
        self._manifest = manifest = await self._hold.released(self._manifest)
        lifecycle = manifest.lifecycle
        # Asked before the step within this very workflow task, behind which a replay reads ahead.
        if not workflow.patched(names.EGRESS):
            self._network.keep_as_it_is()
        self._calls.lease = await self._reserve()
        self._report.status.host = self._calls.lease.host
        self._report.enter(TaskState.STAGING)
        self._staged = await self._calls.interruptible(
            steps.STAGE,
            StageRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                repository=manifest.repository,
                disk=manifest.vm.disk,
                vm=manifest.vm,
                credentials=manifest.credentials(),
                resume=manifest.resume,
            ),
            f"Clone {manifest.repository.url} ({manifest.repository.branch})",
            limit=lifecycle.seconds("stage_timeout"),
        )
        self._report.status.base_commit = self._staged.base_commit
        self._report.note(*self._staged.notes)
        self._report.enter(TaskState.PROVISIONING)
        machine = await self._calls.interruptible(
            steps.PROVISION,
            ProvisionRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                vm=manifest.vm,
                workspace_image=self._staged.workspace_image,
                network=self._network.give(),
            ),
            f"Start a machine from profile {manifest.vm.profile}",
            limit=lifecycle.seconds("provision_timeout"),
        )
        await self._network.machine_started()
        self._report.status.vm_name = machine.vm_name
        self._report.status.vm_ip = machine.vm_ip
        self._report.status.machine_epoch = machine.machine_epoch
        # Without secrets, the next state is entered in the same breath: nobody could see this one.
        secrets = manifest.guest_secrets()
        passing = workflow.patched(names.LEAN) and not secrets
        self._report.enter(TaskState.READY, remember=True, shown=not passing)
        if secrets:
            injected = await self._calls.interruptible(
                steps.SECRETS,
                SecretsRequest(task_id=self._task_id, machine_id=self._machine_id, secrets=secrets),
                "Secrets: " + ", ".join(secret.name for secret in secrets),
            )
            self._report.note(*injected.notes)
        self._report.enter(TaskState.RUNNING, remember=passing)
        agent = Agent(
            self._calls, self._report, self._interruption, self._conversation, self._decision, self._machine_id
        )
        return await agent.run(self._task_id, manifest, self._staged.conversation)

    async def _reserve(self) -> Lease:
        """Room on the host whose worker has this run in hand, or else on the first host that has some."""
        vm = self._manifest.vm
        request = ReserveRequest(
            task_id=self._task_id,
            workflow_id=workflow.info().workflow_id,
            run_id=workflow.info().run_id,
            machine_id=self._machine_id,
            vm=vm,
            deadline=self._calls.machine_deadline(),
            since=workflow.info().start_time,
        )
        summary = f"Reserve {vm.cpus} CPUs, {vm.memory}"
        if workflow.patched(names.LEAN) and self._interruption.cancel is None:
            try:
                return await self._calls.start_at_once(steps.RESERVE, request, summary)
            except FailureError as error:
                # A local activity's own failure comes as it is, its timeout in an ActivityError.
                workflow.logger.info("not reserved at once: %s", error.cause or error)
        return await self._calls.interruptible(steps.RESERVE, request, summary)

    async def _complete(self, agent: AgentResult | None) -> None:
        """Collect what is there and let go of the machine, whatever happened before."""
        gone = False
        if self._staged is not None:
            self._report.enter(TaskState.COMPLETING, remember=True)
            gone = await self._collect(agent, self._staged)
        if self._interruption.cancel is not None:
            end = self._interruption.cancellation()
            self._report.take_end(end)
        self._told.hear_last_word()
        if not gone and not self._leaves_machine():
            await self._release()
            self._told.hear_last_word()

    async def _collect(self, agent: AgentResult | None, staged: StageResult) -> bool:
        """Store the artifacts. Whether the machine is torn down too."""
        handle = self._calls.start(
            steps.COLLECT,
            CollectRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                repository=self._manifest.repository,
                base_commit=staged.base_commit,
                mirror=staged.mirror,
                submodules=staged.submodules,
                patterns=self._manifest.lifecycle.artifact_patterns,
                secrets=self._manifest.guest_secrets(),
                agent=agent,
                status=self._report.status,
                vm=self._manifest.vm,
                # The machine of a run that went well is never kept, whatever comes meanwhile. Its secrets go with it.
                release=self._report.status.cause is None and not self._push.wanted,
            ),
            "Collect the artifacts",
        )
        try:
            if await self._called_off_by_cancel(handle):
                self._report.note(
                    "The collection of the artifacts was called off: those that are listed may not be all."
                )
                if not handle.done():
                    return False
            collected = await handle
        except ActivityError as error:
            self._report.take_end(self._calls.ended_by(steps.COLLECT, error))
            return False
        self._report.note(*collected.notes)
        self._report.status.network = collected.network or self._report.status.network
        self._told.hear_last_word()
        await self._push.run(staged, collected)
        return collected.released

    async def _called_off_by_cancel(self, handle: workflow.ActivityHandle[Any]) -> bool:
        """Wait for a collection; a cancel that comes meanwhile calls it off when it is forced or the host is away."""
        seen = self._interruption.cancel
        while True:
            await workflow.wait_condition(lambda seen=seen: handle.done() or self._interruption.cancel is not seen)  # type: ignore[misc]
            if handle.done() or not workflow.patched(names.BOUNDED):
                return False
            seen = self._interruption.cancel
            if not self._interruption.forced:
                # The agent has ended already: what counts is whether the host's worker begins the step at all.
                request = StopAgentRequest(machine_id=self._machine_id)
                look = asyncio.create_task(self._calls.attempt(steps.STOP_AGENT, request, "Look for the host"))
                await workflow.wait_condition(lambda look=look: look.done() or self._interruption.forced)  # type: ignore[misc]
            if self._interruption.forced or self._calls.away:
                await called_off(handle)
                return True

    async def _release(self) -> None:
        # A machine that was started beside a staging that failed has nothing in it to be looked at.
        entered = self._report.status.vm_name is not None
        preserve = (
            entered
            and self._report.outcome() is TaskState.FAILED
            and self._manifest.lifecycle.failure_action == "preserve"
        )
        handle = self._calls.start(
            steps.RELEASE,
            ReleaseRequest(task_id=self._task_id, machine_id=self._machine_id, preserve=preserve),
            "Preserve the machine" if preserve else "Tear the machine down",
            wait=steps.HOST_PATIENCE if preserve else None,
        )
        if preserve:
            await workflow.wait_condition(lambda: handle.done() or self._interruption.cancel is not None)
            if not handle.done() and workflow.patched(names.BOUNDED):
                await called_off(handle)
                end = self._interruption.cancellation()
                self._report.take_end(end)
                await self._release()
                return
        try:
            released = await handle
            self._report.status.ssh_command = released.ssh_command
            self._report.status.preserved_until = released.preserved_until
        except ActivityError as error:
            # The sweeper takes a machine whose owner has ended; the run's outcome stands.
            workflow.logger.warning("the machine could not be released: %s", error.cause)
            self._calls.note_failure(steps.RELEASE, error)
            if not self._calls.away:
                self._report.note("The machine could not be torn down at once; the sweeper of its host tries it again.")

    def _leaves_machine(self) -> bool:
        """Whether the host's worker is away, so that nothing more is asked of it."""
        return self._calls.away and workflow.patched(names.BOUNDED)
