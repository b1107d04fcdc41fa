"""TaskWorkflow: one execution of a manifest, from reserving a host to the final record."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from datetime import datetime, timedelta
from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RetryPolicy, SearchAttributeKey, SearchAttributeUpdate
from temporalio.exceptions import ActivityError, ApplicationError, FailureError

with workflow.unsafe.imports_passed_through():
    from workflows import steps
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
    from workflows.outcome import RunEnded, ended_by
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

# Notes of one run that its status keeps, and characters of each.
_NOTES_MOST = 40
_NOTE_CHARS = 500

# What a machine may outlive its run's own limits by before the sweeper takes it.
_DEADLINE_MARGIN = timedelta(hours=2)


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
        self._messages: deque[tuple[str, str]] = deque()
        self._message_ids: set[str] = set()
        self._close_wanted = False
        self._idle = False
        self._closed = False

    @workflow.signal(description="End the run: stop the agent, collect its artifacts, tear the machine down")
    def cancel(self, request: CancelRequest | None = None) -> None:
        """Public API. The first reason stands; a later ``force`` still takes the grace period away."""
        request = request or CancelRequest()
        if self._cancel is None:
            self._cancel = request
        elif request.force:
            self._cancel = self._cancel.model_copy(update={"force": True})

    @workflow.signal(description="Hand a further message to the running agent")
    def user_message(self, message: UserMessage) -> None:
        """Public API. A message with a known id is a repetition and changes nothing."""
        message_id = message.id or str(workflow.uuid4())
        if message_id in self._message_ids:
            return
        self._message_ids.add(message_id)
        self._messages.append((message_id, message.text))

    @workflow.signal(description="Close the agent's session once it has answered what it was given")
    def close(self) -> None:
        """Public API: ends a run with ``headless: false`` as a success."""
        self._close_wanted = True

    @workflow.update(description="Sent by Taskyard's own follower when the agent has answered")
    def end_turn(self, _: TurnEnded) -> bool:
        """Not public: the follower tells that the agent waits for input, and closes the session when this is true."""
        self._idle = True
        self._closed = self._closed or (self._may_close() and not self._messages)
        return self._closed

    @workflow.signal(description="How followers of earlier versions tell that the agent has answered")
    def turn_ended(self, _: TurnEnded) -> None:
        """Not public."""
        self._idle = True

    @workflow.query(description="State, times, machine, outcome and manifest of the run")
    def status(self) -> TaskStatus:
        """Public API: the run as ``TaskStatus``."""
        return self._status.model_copy(update={"manifest": self._manifest})

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
        if self._lease is not None and self._status.cause is not Cause.HOST_LOST:
            await self._complete(agent)
        # From here on nothing is awaited that another signal could overtake, except the record of this very end.
        outcome = self._outcome()
        self._status.undelivered_messages = [message_id for message_id, _ in self._messages]
        self._enter(outcome)
        await self._start(steps.FINISH, FinishRequest(status=self.status()), "Write the final record")
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
            await self._interruptible(
                steps.SECRETS,
                SecretsRequest(task_id=self._task_id, machine_id=self._machine_id, secrets=manifest.secrets),
                "Secrets: " + ", ".join(secret.name for secret in manifest.secrets),
            )
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
            await workflow.wait_condition(lambda: handle.done() or self._cancel is not None, timeout=timeout)
        except TimeoutError:
            stopped = RunEnded(
                Cause.RUN_TIMEOUT,
                f"The agent was stopped: lifecycle.timeout of {lifecycle.timeout} passed; set a longer one.",
            )
        if not handle.done():
            stopped = stopped or self._cancellation()
            await self._stop_agent()
        try:
            result: AgentResult = await handle
        except ActivityError as error:
            raise stopped or self._ended_by(steps.RUN_AGENT, error) from error
        finally:
            conversation.cancel()
        if stopped is not None:
            # How it left after being stopped is worth keeping, but the stop is the cause.
            return result.model_copy(update={"cause": stopped.cause, "error": stopped.error})
        return result

    async def _stop_agent(self) -> None:
        """Stop the agent by a step of its own, so that a stop never waits for a heartbeat."""
        request = StopAgentRequest(machine_id=self._machine_id, force=self._forced())
        stop = asyncio.create_task(self._try(steps.STOP_AGENT, request, "Stop Claude Code"))
        if not request.force:
            # A force that comes during the grace period is carried out at once.
            await workflow.wait_condition(lambda: stop.done() or self._forced())
            if not stop.done():
                kill = StopAgentRequest(machine_id=self._machine_id, force=True)
                await self._try(steps.STOP_AGENT, kill, "Kill Claude Code")
        await stop

    def _forced(self) -> bool:
        return self._cancel is not None and self._cancel.force

    async def _converse(self) -> None:
        """Deliver messages in order, one at a time, and close the session when nothing more is to come.

        Serving both here is what makes the close safe: no message can slip in between the look at the queue and
        the close, since this one coroutine does both. A follower that was told to close takes it from here.
        """
        while True:
            await workflow.wait_condition(lambda: bool(self._messages) or self._may_close())
            if self._closed:
                return
            if self._messages:
                message_id, text = self._messages[0]
                self._idle = False
                request = DeliverRequest(
                    task_id=self._task_id, machine_id=self._machine_id, message_id=message_id, text=text
                )
                if not await self._try(steps.DELIVER, request, "Deliver a message"):
                    return
                self._messages.popleft()
            else:
                await self._try(steps.CLOSE, CloseRequest(machine_id=self._machine_id), "Close the session")
                return

    def _may_close(self) -> bool:
        return self._idle and (self._manifest.claude.headless or self._close_wanted)

    async def _complete(self, agent: AgentResult | None) -> None:
        """Collect what is there and let go of the machine, whatever happened before."""
        gone = False
        if self._staged is not None:
            self._enter(TaskState.COMPLETING, remember=True)
            try:
                collected = await self._start(
                    steps.COLLECT,
                    CollectRequest(
                        task_id=self._task_id,
                        machine_id=self._machine_id,
                        repository=self._manifest.repository,
                        base_commit=self._staged.base_commit,
                        patterns=self._manifest.lifecycle.artifact_patterns,
                        secrets=self._manifest.secrets,
                        agent=agent,
                        status=self._status,
                        # The machine of a run that went well is never kept, whatever comes meanwhile.
                        release=self._status.cause is None,
                    ),
                    "Collect the artifacts",
                )
                gone = collected.released
                self._note(*collected.notes)
            except ActivityError as error:
                end = self._ended_by(steps.COLLECT, error)
                self._take_cause(end.cause, end.error)
        if self._cancel is not None:
            end = self._cancellation()
            self._take_cause(end.cause, end.error)
        if gone:
            return
        # A machine that was started beside a staging that failed has nothing in it to be looked at.
        entered = self._status.vm_name is not None
        preserve = (
            entered and self._outcome() is TaskState.FAILED and self._manifest.lifecycle.failure_action == "preserve"
        )
        try:
            released = await self._start(
                steps.RELEASE,
                ReleaseRequest(task_id=self._task_id, machine_id=self._machine_id, preserve=preserve),
                "Preserve the machine" if preserve else "Tear the machine down",
            )
            self._status.ssh_command = released.ssh_command
            self._status.preserved_until = released.preserved_until
        except ActivityError as error:
            # The sweeper takes a machine whose owner has ended; the run's outcome stands.
            workflow.logger.warning("the machine could not be released: %s", error.cause)

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

    def _ended_by(self, step: Step[In, Out], error: ActivityError) -> RunEnded:
        return ended_by(step.name, error, self._manifest.lifecycle, self._status.host)

    # --- calling steps

    async def _interruptible(
        self, step: Step[In, Out], request: In, summary: str, limit: timedelta | None = None
    ) -> Out:
        """Run a step to its end, or until the run is cancelled. Raises RunEnded."""
        if self._cancel is not None:
            raise self._cancellation()
        handle = self._start(step, request, summary, limit)
        await workflow.wait_condition(lambda: handle.done() or self._cancel is not None)
        if not handle.done():
            handle.cancel()
        try:
            result = await handle
        except ActivityError as error:
            # Whoever asked for the end is told of it, also when the attempt under way failed instead of being
            # cancelled: the server tries no further one then. A lost host stays one: nothing is to be done there.
            end = self._ended_by(step, error)
            if self._cancel is not None and end.cause is not Cause.HOST_LOST:
                end = self._cancellation()
            raise end from error
        if self._cancel is not None and step is not steps.RESERVE:
            raise self._cancellation()
        return result

    async def _try(self, step: Step[In, Out], request: In, summary: str) -> bool:
        """Run a step whose failure does not end the run. Whether it succeeded."""
        try:
            await self._start(step, request, summary)
        except ActivityError as error:
            workflow.logger.warning("%s: %s", step.name, error.cause)
            return False
        return True

    def _start(
        self, step: Step[In, Out], request: In, summary: str, limit: timedelta | None = None
    ) -> workflow.ActivityHandle[Out]:
        queue = None
        if step.queue is Queue.HOST:
            if self._lease is None:
                raise ApplicationError(f"step {step.name} before a lease", non_retryable=True)
            queue = self._lease.task_queue
        return workflow.start_activity(
            step.name,
            request,
            result_type=step.result,
            task_queue=queue,
            start_to_close_timeout=step.limit,
            schedule_to_close_timeout=limit,
            schedule_to_start_timeout=step.wait,
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
            workflow.upsert_memo({STATUS_MEMO: status.model_dump(mode="json")})
        workflow.set_current_details(self._details())

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
