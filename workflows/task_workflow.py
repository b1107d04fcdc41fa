"""TaskWorkflow: one execution of a manifest, from reserving a host to the final record."""

from __future__ import annotations

import asyncio
import hashlib
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy, SearchAttributeKey, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from workflows import steps
    from workflows.inbox import Inbox, short_id
    from workflows.messages import (
        AgentRequest,
        AgentResult,
        CancelRequest,
        CloseRequest,
        CollectRequest,
        DeliverRequest,
        FinishRequest,
        Lease,
        Message,
        ProvisionRequest,
        ReleaseRequest,
        ReserveRequest,
        SecretsRequest,
        StageRequest,
        StageResult,
        StopAgentRequest,
        TaskStatus,
        TaskSubmission,
        Transition,
        TurnEnded,
        UserMessage,
    )
    from workflows.outcome import RunEnded, ended_by, host_is_away
    from workflows.states import STATE_MESSAGES, Cause, TaskState
    from workflows.steps import Queue, Step

In = TypeVar("In", bound=Message)
Out = TypeVar("Out", bound=Message | None)

STATE_KEY = SearchAttributeKey.for_keyword("TaskyardState")
STARTED_KEY = SearchAttributeKey.for_datetime("TaskyardStartedAt")
CHANGED_KEY = SearchAttributeKey.for_datetime("TaskyardStateChangedAt")
STATUS_MEMO = "status"

# Named in the history of a run that reserves at once and shows no state that passes within one workflow task. Runs that
# began under earlier versions go on without.
_LEAN = "lean"

# The same for what a run that began under an earlier version does only when it comes to it under this one: ends that
# wait for nothing without a bound, messages that are refused, and failed deliveries that do not end the conversation.
_BOUNDED = "bounded"
_REFUSES = "refuses-messages"
_REDELIVERS = "redelivers"

# Temporal ends a run past 51,200 events or 50 MiB of history, without its artifacts. Only signals and updates from
# outside can bring it there; a run that comes close ends itself while it still can do so in order.
_EVENTS_MOST = 45_000
_HISTORY_BYTES_MOST = 40 * 2**20

# Notes of one run that its status keeps, and characters of each.
_NOTES_MOST = 40
_NOTE_CHARS = 500

# What a machine may outlive its run's own limits by before the sweeper takes it.
_DEADLINE_MARGIN = timedelta(hours=3)


@workflow.defn(name="TaskWorkflow")
class TaskWorkflow:
    """Takes one task run through its states. Signals ``cancel``, ``user_message``, ``close``; query ``status``."""

    @workflow.init
    def __init__(self, submission: TaskSubmission) -> None:
        self._manifest = submission.manifest
        self._task_id = submission.task_id
        now = workflow.now()
        self._status = TaskStatus(
            id=submission.task_id,
            name=submission.manifest.metadata.name,
            labels=submission.manifest.metadata.labels,
            state_message=STATE_MESSAGES[TaskState.PENDING],
            created_at=now,
            state_changed_at=now,
            transitions=[Transition(state=TaskState.PENDING, at=now)],
        )
        self._machine_id = "vm-" + hashlib.sha256(workflow.info().run_id.encode()).hexdigest()[:16]
        self._lease: Lease | None = None
        self._staged: StageResult | None = None
        self._cancel: CancelRequest | None = None
        self._given_up: RunEnded | None = None
        self._away = False
        self._inbox = Inbox()
        self._close_wanted = False
        self._idle = False
        self._closed = False

    @workflow.signal(description="End the run: stop the agent, collect its artifacts, tear the machine down")
    def cancel(self, request: CancelRequest | None = None) -> None:
        """Public API. The first reason stands; a later ``force`` still takes the grace period away."""
        request = request or CancelRequest()
        if self._cancel is None:
            self._cancel = request
        elif request.force and not self._cancel.force:
            self._cancel = self._cancel.model_copy(update={"force": True})
        self._mind_history()

    @workflow.signal(description="Hand a further message to the running agent")
    def user_message(self, message: UserMessage) -> None:
        """Public API. A message with a known id is a repetition and changes nothing.

        One that cannot be taken is told in the status.
        """
        message_id = short_id(message.id or str(workflow.uuid4()))
        if self._inbox.knows(message_id):
            return
        refusal = self._inbox.refusal(message, closed=not self._takes_messages())
        if refusal is not None and workflow.patched(_REFUSES):
            self._inbox.refuse(message_id)
            self._note(refusal)
        else:
            self._inbox.add(message_id, message.text)
        self._mind_history()

    @workflow.signal(description="Close the agent's session once it has answered what it was given")
    def close(self) -> None:
        """Public API: ends a run with ``headless: false`` as a success."""
        self._close_wanted = True

    @workflow.update(description="Sent by Taskyard's own follower when the agent has answered")
    def end_turn(self, _: TurnEnded) -> bool:
        """Not public: the follower tells that the agent waits for input, and closes the session when this is true."""
        self._idle = True
        self._closed = self._closed or (self._may_close() and not self._inbox)
        self._mind_history()
        return self._closed

    @workflow.signal(description="How followers of earlier versions tell that the agent has answered")
    def turn_ended(self, _: TurnEnded) -> None:
        """Not public."""
        self._idle = True

    @workflow.query(description="State, times, machine, outcome and manifest of the run")
    def status(self) -> TaskStatus:
        """Public API: the run as ``TaskStatus``."""
        return self._status.model_copy(
            update={
                "manifest": self._manifest,
                "undelivered_messages": list(self._inbox.undelivered),
                "waiting_messages": len(self._inbox),
                "takes_messages": self._takes_messages(),
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
        agent: AgentResult | None = None
        try:
            agent = await self._work()
            self._take_agent_result(agent)
        except RunEnded as end:
            self._take_cause(end.cause, end.error)
        if self._lease is not None and self._status.cause is not Cause.HOST_LOST and not self._leaves_machine():
            await self._complete(agent)
        if self._away:
            self._note(
                f"The worker of host {self._status.host} was away when the run ended: the machine is left to it, and "
                "is torn down when it is back. What was not collected by then is lost."
            )
        # From here on nothing is awaited that another signal could overtake, except the record of this very end.
        outcome = self._outcome()
        self._inbox.give_up_all()
        self._status.undelivered_messages = list(self._inbox.undelivered)
        self._status.takes_messages = False
        self._enter(outcome)
        try:
            await self._start(steps.FINISH, FinishRequest(status=self.status()), "Write the final record")
        except ActivityError:
            if not workflow.patched(_BOUNDED):
                raise
            self._note("The final record could not be written to the bucket: only Temporal knows how the run ended.")
            self._remember()
        return self._status

    # --- the steps in order

    async def _work(self) -> AgentResult:
        manifest = self._manifest
        lifecycle = manifest.lifecycle
        self._lease = await self._reserve()
        self._status.host = self._lease.host
        self._enter(TaskState.STAGING)
        self._staged = await self._interruptible(
            steps.STAGE,
            StageRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                repository=manifest.repository,
                disk=manifest.vm.disk,
                vm=manifest.vm,
            ),
            f"Clone {manifest.repository.url} ({manifest.repository.branch})",
            limit=lifecycle.seconds("stage_timeout"),
        )
        self._status.base_commit = self._staged.base_commit
        self._enter(TaskState.PROVISIONING)
        machine = await self._interruptible(
            steps.PROVISION,
            ProvisionRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                vm=manifest.vm,
                workspace_image=self._staged.workspace_image,
            ),
            f"Start a machine from profile {manifest.vm.profile}",
            limit=lifecycle.seconds("provision_timeout"),
        )
        self._status.vm_name = machine.vm_name
        self._status.vm_ip = machine.vm_ip
        # Without secrets, the next state is entered in the same breath: nobody could see this one.
        passing = workflow.patched(_LEAN) and not manifest.secrets
        self._enter(TaskState.READY, remember=True, shown=not passing)
        if manifest.secrets:
            injected = await self._interruptible(
                steps.SECRETS,
                SecretsRequest(task_id=self._task_id, machine_id=self._machine_id, secrets=manifest.secrets),
                "Secrets: " + ", ".join(secret.name for secret in manifest.secrets),
            )
            self._note(*injected.notes)
        self._enter(TaskState.RUNNING, remember=passing)
        return await self._run_agent()

    async def _reserve(self) -> Lease:
        """Room on the host whose worker has this run in hand, or else on the first host that has some."""
        vm = self._manifest.vm
        request = ReserveRequest(
            task_id=self._task_id,
            workflow_id=workflow.info().workflow_id,
            run_id=workflow.info().run_id,
            machine_id=self._machine_id,
            vm=vm,
            deadline=self._machine_deadline(),
        )
        summary = f"Reserve {vm.cpus} CPUs, {vm.memory}"
        if workflow.patched(_LEAN) and self._cancel is None:
            try:
                return await self._start_at_once(steps.RESERVE, request, summary)
            except FailureError as error:
                # A local activity's own failure comes as it is, its timeout in an ActivityError.
                workflow.logger.info("not reserved at once: %s", error.cause or error)
        return await self._interruptible(steps.RESERVE, request, summary)

    async def _run_agent(self) -> AgentResult:
        lifecycle = self._manifest.lifecycle
        handle = self._start(
            steps.RUN_AGENT,
            AgentRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                claude=self._manifest.claude,
                subpath=self._manifest.repository.subpath,
                secrets=self._manifest.secrets,
                hang_timeout=lifecycle.seconds("hang_timeout"),
            ),
            f"Claude Code, {self._manifest.claude.model}",
        )
        conversation = asyncio.create_task(self._converse())
        timeout = lifecycle.seconds("timeout")
        stopped: RunEnded | None = None
        try:
            await workflow.wait_condition(lambda: handle.done() or self._unwanted() is not None, timeout=timeout)
        except TimeoutError:
            stopped = RunEnded(
                Cause.RUN_TIMEOUT,
                f"The agent was stopped: lifecycle.timeout of {lifecycle.timeout} passed; set a longer one.",
            )
        told = True
        if not handle.done():
            stopped = stopped or self._unwanted()
            told = await self._end_agent(handle)
        try:
            result: AgentResult | None = await handle if told else None
        except ActivityError as error:
            raise stopped or self._ended_by(steps.RUN_AGENT, error) from error
        finally:
            conversation.cancel()
        if stopped is not None:
            if result is None:
                raise stopped
            # How it left after being stopped is worth keeping, but the stop is the cause.
            return result.model_copy(update={"cause": stopped.cause, "error": stopped.error})
        if result is not None and result.running and not await self._stop_agent():
            await self._end_machine()
        return result or AgentResult(cause=Cause.INTERNAL, error="The agent's end is not known.")

    async def _end_agent(self, handle: workflow.ActivityHandle[AgentResult]) -> bool:
        """Stop the agent, and its machine if that does not help. False when its follower has not told of the end."""
        stopped = await self._stop_agent()
        if handle.done() or not workflow.patched(_BOUNDED):
            return True
        if stopped and await self._done(handle, steps.REPORT):
            return True
        if not self._away:
            await self._end_machine()
            if await self._done(handle, steps.SETTLE):
                return True
        return await self._called_off(handle)

    async def _stop_agent(self) -> bool:
        """Stop the agent by a step of its own, so that a stop never waits for a heartbeat. Whether that succeeded."""
        request = StopAgentRequest(machine_id=self._machine_id, force=self._forced())
        stop = asyncio.create_task(self._try(steps.STOP_AGENT, request, "Stop Claude Code"))
        if not request.force:
            # A force that comes during the grace period is carried out at once.
            await workflow.wait_condition(lambda: stop.done() or self._forced())
            if not stop.done():
                kill = StopAgentRequest(machine_id=self._machine_id, force=True)
                await self._try(steps.STOP_AGENT, kill, "Kill Claude Code")
        return await stop

    async def _end_machine(self) -> None:
        """End the machine's process from its host: nothing in the guest can prevent that, and its disks stay."""
        self._note("The agent could not be stopped in its guest: the machine was ended from its host.")
        request = StopAgentRequest(machine_id=self._machine_id, force=True, machine=True)
        await self._try(steps.STOP_AGENT, request, "End the machine")

    def _forced(self) -> bool:
        return self._cancel is not None and self._cancel.force

    async def _converse(self) -> None:
        """Deliver messages in order, one at a time, and close the session when nothing more is to come.

        Serving both here is what makes the close safe: no message can slip in between the look at the queue and
        the close, since this one coroutine does both. A follower that was told to close takes it from here.
        """
        while True:
            await workflow.wait_condition(lambda: bool(self._inbox) or self._may_close())
            if self._closed:
                return
            if not self._inbox:
                closing = CloseRequest(machine_id=self._machine_id)
                if not await self._try(steps.CLOSE, closing, "Close the session") and workflow.patched(_REDELIVERS):
                    self._given_up = RunEnded(
                        Cause.MACHINE_LOST,
                        "The agent had answered, but its guest could not be told to close the session.",
                    )
                return
            message_id, text = self._inbox.first()
            was_idle, self._idle = self._idle, False
            request = DeliverRequest(
                task_id=self._task_id, machine_id=self._machine_id, message_id=message_id, text=text
            )
            if await self._try(steps.DELIVER, request, "Deliver a message"):
                self._inbox.delivered()
                continue
            if not workflow.patched(_REDELIVERS):
                return
            # The agent waits for input as it did before; should the message have reached it all the same, a close
            # waits for the answer.
            self._idle = self._idle or was_idle
            self._inbox.give_up()
            self._note("A message could not be delivered; it was tried again for some minutes.")

    def _may_close(self) -> bool:
        return self._idle and (self._manifest.claude.headless or self._close_wanted)

    def _takes_messages(self) -> bool:
        over = self._status.state.terminal or self._status.state is TaskState.COMPLETING
        return not (over or self._close_wanted or self._closed)

    async def _complete(self, agent: AgentResult | None) -> None:
        """Collect what is there and let go of the machine, whatever happened before."""
        gone = False
        if self._staged is not None:
            self._enter(TaskState.COMPLETING, remember=True)
            gone = await self._collect(agent, self._staged)
        if self._cancel is not None:
            end = self._cancellation()
            self._take_cause(end.cause, end.error)
        if not gone and not self._leaves_machine():
            await self._release()

    async def _collect(self, agent: AgentResult | None, staged: StageResult) -> bool:
        """Store the artifacts. Whether the machine is torn down too."""
        handle = self._start(
            steps.COLLECT,
            CollectRequest(
                task_id=self._task_id,
                machine_id=self._machine_id,
                repository=self._manifest.repository,
                base_commit=staged.base_commit,
                patterns=self._manifest.lifecycle.artifact_patterns,
                secrets=self._manifest.secrets,
                agent=agent,
                status=self._status,
                vm=self._manifest.vm,
                # The machine of a run that went well is never kept, whatever comes meanwhile.
                release=self._status.cause is None,
            ),
            "Collect the artifacts",
        )
        try:
            if await self._called_off_by_cancel(handle):
                self._note("The collection of the artifacts was called off: those that are listed may not be all.")
                if not handle.done():
                    return False
            collected = await handle
        except ActivityError as error:
            end = self._ended_by(steps.COLLECT, error)
            self._take_cause(end.cause, end.error)
            return False
        self._note(*collected.notes)
        return collected.released

    async def _called_off_by_cancel(self, handle: workflow.ActivityHandle[Any]) -> bool:
        """Wait for a collection; a cancel that comes meanwhile calls it off when it is forced or the host is away."""
        seen = self._cancel
        while True:
            await workflow.wait_condition(lambda seen=seen: handle.done() or self._cancel is not seen)  # type: ignore[misc]
            if handle.done() or not workflow.patched(_BOUNDED):
                return False
            seen = self._cancel
            if not self._forced():
                # The stop has nothing to do any more: whether it begins at all tells of the host's worker.
                await self._try(steps.STOP_AGENT, StopAgentRequest(machine_id=self._machine_id), "Look for the host")
            if self._forced() or self._away:
                await self._called_off(handle)
                return True

    async def _release(self) -> None:
        # A machine that was started beside a staging that failed has nothing in it to be looked at.
        entered = self._status.vm_name is not None
        preserve = (
            entered and self._outcome() is TaskState.FAILED and self._manifest.lifecycle.failure_action == "preserve"
        )
        handle = self._start(
            steps.RELEASE,
            ReleaseRequest(task_id=self._task_id, machine_id=self._machine_id, preserve=preserve),
            "Preserve the machine" if preserve else "Tear the machine down",
            wait=steps.HOST_PATIENCE if preserve else None,
        )
        if preserve:
            await workflow.wait_condition(lambda: handle.done() or self._cancel is not None)
            if not handle.done() and workflow.patched(_BOUNDED):
                await self._called_off(handle)
                end = self._cancellation()
                self._take_cause(end.cause, end.error)
                await self._release()
                return
        try:
            released = await handle
            self._status.ssh_command = released.ssh_command
            self._status.preserved_until = released.preserved_until
        except ActivityError as error:
            # The sweeper takes a machine whose owner has ended; the run's outcome stands.
            workflow.logger.warning("the machine could not be released: %s", error.cause)
            self._hear(steps.RELEASE, error)
            if not self._away:
                self._note("The machine could not be torn down at once; the sweeper of its host tries it again.")

    def _leaves_machine(self) -> bool:
        """Whether the host's worker is away, so that nothing more is asked of it."""
        return self._away and workflow.patched(_BOUNDED)

    # --- outcome

    def _take_agent_result(self, agent: AgentResult) -> None:
        self._status.exit_code = agent.exit_code
        self._status.result = agent.result
        self._status.usage = agent.usage
        self._status.progress = agent.progress
        if agent.cause is not None:
            self._take_cause(agent.cause, agent.error or STATE_MESSAGES[TaskState.FAILED])

    def _take_cause(self, cause: Cause, error: str) -> None:
        """The first cause stands, except that a cancellation asked for before the end is what the user is told."""
        if self._status.cause is None or cause is Cause.CANCELLED:
            self._status.cause = cause
            self._status.error = error

    def _note(self, *sentences: str) -> None:
        """Add to the notes of the status, within limits: they are in its memo."""
        notes = self._status.notes
        for sentence in sentences:
            if len(notes) < _NOTES_MOST and sentence not in notes:
                notes.append(sentence if len(sentence) <= _NOTE_CHARS else sentence[: _NOTE_CHARS - 1] + "…")

    def _outcome(self) -> TaskState:
        if self._status.cause is None:
            return TaskState.COMPLETED
        if self._status.cause is Cause.CANCELLED:
            return TaskState.CANCELLED
        return TaskState.FAILED_PRESERVED if self._status.ssh_command else TaskState.FAILED

    def _cancellation(self) -> RunEnded:
        request = self._cancel or CancelRequest()
        return RunEnded(Cause.CANCELLED, f"Cancelled: {request.reason}")

    def _unwanted(self) -> RunEnded | None:
        """Why the run is to end before its agent does, if so."""
        return self._given_up if self._cancel is None else self._cancellation()

    def _mind_history(self) -> None:
        info = workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        if self._given_up is None and (events > _EVENTS_MOST or size > _HISTORY_BYTES_MOST):
            self._given_up = RunEnded(
                Cause.INTERNAL,
                f"The run was ended: messages and signals have filled its history ({events} events, {size} bytes).",
            )

    def _hear(self, step: Step[In, Out], error: ActivityError) -> None:
        self._away = self._away or (step.queue is Queue.HOST and host_is_away(error))

    def _ended_by(self, step: Step[In, Out], error: ActivityError) -> RunEnded:
        self._hear(step, error)
        return ended_by(step.name, error, self._manifest.lifecycle, self._status.host)

    # --- calling steps

    async def _interruptible(
        self, step: Step[In, Out], request: In, summary: str, limit: timedelta | None = None
    ) -> Out:
        """Run a step to its end, or until the run is cancelled. Raises RunEnded."""
        if (unwanted := self._unwanted()) is not None:
            raise unwanted
        handle = self._start(step, request, summary, limit)
        await workflow.wait_condition(lambda: handle.done() or self._unwanted() is not None)
        if not handle.done():
            handle.cancel()
            unwanted = self._unwanted()
            if unwanted and workflow.patched(_BOUNDED) and not await self._done(handle, steps.SETTLE):
                raise unwanted
        try:
            result = await handle
        except ActivityError as error:
            # Whoever asked for the end is told of it, also when the attempt under way failed instead of being
            # cancelled: the server tries no further one then. A lost host stays one: nothing is to be done there.
            end = self._ended_by(step, error)
            if end.cause is not Cause.HOST_LOST:
                end = self._unwanted() or end
            raise end from error
        if (unwanted := self._unwanted()) is not None and step is not steps.RESERVE:
            raise unwanted
        return result

    async def _try(self, step: Step[In, Out], request: In, summary: str) -> bool:
        """Run a step whose failure does not end the run. Whether it succeeded."""
        try:
            await self._start(step, request, summary)
        except ActivityError as error:
            workflow.logger.warning("%s: %s", step.name, error.cause)
            self._hear(step, error)
            return False
        return True

    async def _done(self, handle: workflow.ActivityHandle[Any], limit: timedelta) -> bool:
        """Whether a step ends within a limit. It may have failed."""
        try:
            await workflow.wait_condition(handle.done, timeout=limit)
        except TimeoutError:
            return False
        return True

    async def _called_off(self, handle: workflow.ActivityHandle[Any]) -> bool:
        """Call a step off; whether it has stopped in time. One that has not is heard of no more."""
        handle.cancel()
        return await self._done(handle, steps.SETTLE)

    def _start(
        self,
        step: Step[In, Out],
        request: In,
        summary: str,
        limit: timedelta | None = None,
        wait: timedelta | None = None,
    ) -> workflow.ActivityHandle[Out]:
        """Hand a step to its queue. ``limit`` is in place of the step's bound, ``wait`` in place of its own."""
        queue = None
        if step.queue is Queue.HOST:
            if self._lease is None:
                raise ApplicationError(f"step {step.name} before a lease", non_retryable=True)
            queue = (self._lease.agent_queue if step.follows else None) or self._lease.task_queue
        wait = wait or step.wait
        if wait is not None and self._cancel is not None:
            wait = min(wait, steps.ABSENCE)
        if limit is None and step.bound is not None:
            limit = step.bound + (wait or timedelta())
        return workflow.start_activity(
            step.name,
            request,
            result_type=step.result,
            task_queue=queue,
            start_to_close_timeout=step.limit,
            schedule_to_close_timeout=limit,
            schedule_to_start_timeout=wait,
            heartbeat_timeout=step.heartbeat,
            retry_policy=step.retry,
            # An attempt that is told to stop says when it has: nothing of it runs on beside the tear-down.
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
            summary=summary,
        )

    def _start_at_once(self, step: Step[In, Out], request: In, summary: str) -> workflow.ActivityHandle[Out]:
        """One short attempt within the workflow's own task: no queue, no task of its own, no wait for one."""
        return workflow.start_local_activity(
            step.name,
            request,
            result_type=step.result,
            schedule_to_close_timeout=step.at_once,
            retry_policy=RetryPolicy(maximum_attempts=1),
            summary=summary,
        )

    # --- what the world sees

    def _enter(self, state: TaskState, *, remember: bool = False, shown: bool = True) -> None:
        """Change the state, in the search attributes and the UI's details; ``remember`` also in the memo.

        One that is not ``shown`` is among the transitions only.
        """
        now = workflow.now()
        status = self._status
        status.state = state
        status.state_changed_at = now
        status.state_message = status.error or STATE_MESSAGES[state] if state.terminal else STATE_MESSAGES[state]
        status.transitions.append(Transition(state=state, at=now))
        if not shown:
            return
        updates: list[SearchAttributeUpdate[Any]] = [
            STATE_KEY.value_set(state.value),
            CHANGED_KEY.value_set(now),
        ]
        if status.started_at is None:
            status.started_at = now
            updates.append(STARTED_KEY.value_set(now))
        workflow.upsert_search_attributes(updates)
        if remember or state.terminal:
            self._remember()
        workflow.set_current_details(self._details())

    def _remember(self) -> None:
        workflow.upsert_memo({STATUS_MEMO: self._status.model_dump(mode="json")})

    def _details(self) -> str:
        """The run as the Temporal UI shows it, in Markdown."""
        status = self._status
        rows = [("State", f"**{status.state}**: {status.state_message}"), ("Task", f"{status.name} (`{status.id}`)")]
        if status.host:
            rows.append(("Host", status.host))
        if status.vm_name:
            rows.append(("Machine", f"`{status.vm_name}`"))
        if status.ssh_command:
            rows.append(("Enter", f"`{status.ssh_command}`"))
        if status.cause:
            rows.append(("Cause", f"{status.cause}: {status.error}"))
        return "\n".join(f"- {label}: {text}" for label, text in rows)

    def _machine_deadline(self) -> datetime:
        lifecycle = self._manifest.lifecycle
        limits = ("stage_timeout", "provision_timeout", "timeout")
        return workflow.now() + sum((lifecycle.seconds(field) for field in limits), start=_DEADLINE_MARGIN)
