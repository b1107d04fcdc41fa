"""What a run does that has used up its budget and may be continued: its machine sleeps until somebody decides."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from foundation.errors import Conflict, InvalidParameter, TaskyardError
from workflows import steps
from workflows.refusals import refusal
from workflows.runs.budget import TOKENS_MOST, USD_MOST, Budget
from workflows.runs.calls import RunCalls
from workflows.runs.interruption import Interruption
from workflows.runs.messages import Continued, ContinueRequest, TokenUsage
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.requests import AgentResult, PauseRequest, PauseResult, ResumeRequest
from workflows.runs.states import STATE_MESSAGES, Cause, TaskState
from workflows.specs.wire import Manifest

# Each costs the run's history some forty events, and its memo two transitions.
PAUSES_MOST = 100
# What a machine may outlive what its run waits for by, before the sweeper takes it.
_MARGIN = timedelta(hours=3)
_CONTINUED = "Continued; waiting for room on its host"


class Decision:
    """The budget of one run, and the decision that it waits for when that is used up."""

    def __init__(
        self, calls: RunCalls, report: RunReport, interruption: Interruption, machine_id: str, manifest: Manifest
    ) -> None:
        lifecycle = manifest.lifecycle
        self.budget = Budget(
            usd=manifest.claude.max_budget_usd,
            tokens=manifest.claude.max_tokens_total,
            pause=lifecycle.budget_action == "pause",
        )
        self._calls = calls
        self._report = report
        self._interruption = interruption
        self._machine_id = machine_id
        self._lifecycle = lifecycle
        self._usage = TokenUsage()
        self._awaited = False
        self._closed = False
        self._pauses = 0

    # --- what is told from outside

    def check(self, more: ContinueRequest) -> None:
        """Raise ApplicationError, with the code of an error of ours, for what would not continue the run now."""
        try:
            self._raised(more)
        except TaskyardError as error:
            raise refusal(error) from None

    def take(self, more: ContinueRequest) -> Continued:
        """Raise the budget and let the run go on. Raises as ``check`` does, and then nothing has changed."""
        self.check(more)
        self.budget = self._raised(more)
        self._awaited = False
        return Continued(budget_usd=self.budget.usd, budget_tokens=self.budget.tokens)

    def take_or_note(self, more: ContinueRequest) -> None:
        """The same for who waits for no answer: what is refused is noted."""
        try:
            self.take(more)
        except ApplicationError as error:
            self._report.note(f"A request to continue was refused: {error.message}")

    def close(self) -> None:
        """The session is to be closed: a run that waits for a decision has it with that."""
        self._closed = self._awaited

    # --- what the run does

    def is_due(self, result: AgentResult) -> bool:
        """Whether the agent, by what its follower says, is held back until somebody decides."""
        return result.running and result.cause is Cause.BUDGET_EXCEEDED and self.budget.pause

    async def outlast(self, result: AgentResult, left: timedelta) -> None:
        """Pause the machine, wait for the decision, and resume it; ``left`` is what remains of the agent's time.

        Raises RunEnded when the run does not go on.
        """
        sentence = result.error or STATE_MESSAGES[TaskState.AWAITING_DECISION]
        self._pauses += 1
        if self._pauses > PAUSES_MOST:
            raise RunEnded(
                Cause.BUDGET_EXCEEDED, f"{sentence} The run was continued {PAUSES_MOST} times, the most for one."
            )
        patience = self._lifecycle.seconds("decision_timeout")
        until = workflow.now() + patience
        self._usage = result.usage or TokenUsage()
        self._awaited, self._closed = True, False
        self._report.await_decision(result, until, sentence)
        try:
            await self._pause(sentence, until + steps.ROOM_PATIENCE + left + _MARGIN)
            await self._wait(sentence, until)
        finally:
            self._awaited = False
        self._usage = self._usage.model_copy(
            update={"budget_usd": self.budget.usd, "budget_tokens": self.budget.tokens}
        )
        self._report.decided(self._usage, _CONTINUED)
        await self._calls.interruptible(
            steps.RESUME,
            ResumeRequest(
                task_id=self._report.status.id,
                machine_id=self._machine_id,
                budget=self.budget,
                deadline=workflow.now() + steps.ROOM_PATIENCE + left + _MARGIN,
                since=workflow.info().start_time,
            ),
            "Resume the machine",
        )
        self._report.enter(TaskState.RUNNING, remember=True)

    async def _pause(self, sentence: str, deadline: datetime) -> None:
        request = PauseRequest(
            task_id=self._report.status.id, machine_id=self._machine_id, deadline=deadline, message=sentence
        )
        try:
            result = await self._calls.interruptible(steps.PAUSE, request, "Pause the machine")
        except RunEnded as end:
            if end.cause is not Cause.BUDGET_EXCEEDED:
                raise
            raise RunEnded(end.cause, f"{sentence} Its machine could not be paused: {end.error}") from end
        # A worker of an earlier version gives nothing.
        if isinstance(result, PauseResult) and result.usage is not None:
            # What was under way when the budget was found used up is in it: whoever continues adds enough for that too.
            self._usage = self._report.status.usage = result.usage

    async def _wait(self, sentence: str, until: datetime) -> None:
        """Return once the run is continued. Raises RunEnded for every other decision, and for none in time."""

        def decided() -> bool:
            return not self._awaited or self._closed or self._interruption.reason is not None

        try:
            # Where pausing took all of that time, a decision that came meanwhile counts.
            if not decided():
                await workflow.wait_condition(decided, timeout=max(until - workflow.now(), timedelta()))
        except TimeoutError:
            limit = self._lifecycle.decision_timeout
            raise RunEnded(
                Cause.BUDGET_EXCEEDED, f"{sentence} Nobody continued it within lifecycle.decision_timeout of {limit}."
            ) from None
        if (unwanted := self._interruption.reason) is not None:
            raise unwanted
        if self._awaited:
            raise RunEnded(Cause.BUDGET_EXCEEDED, f"{sentence} Its session was closed instead of being continued.")

    def _raised(self, more: ContinueRequest) -> Budget:
        if not self._awaited or self._closed or self._interruption.reason is not None:
            raise Conflict("The run does not wait for a decision about its budget; nothing was added to it.")
        if not (0 <= (more.budget_usd or 0.0) <= USD_MOST and 0 <= (more.tokens or 0) <= TOKENS_MOST):
            raise InvalidParameter(
                f"From nothing to ${USD_MOST:,.0f} and {TOKENS_MOST:,} tokens can be added at once, and nothing was."
            )
        budget = self.budget.raised(more)
        if (sentence := budget.used_up_by(self._usage)) is not None:
            raise InvalidParameter(f"{sentence} What is added is not enough, and nothing was; add more to that limit.")
        return budget
