"""Steering a run's agent: interrupts, another model or mode, answers to what it asks; done once the agent confirms."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from foundation.errors import (
    Conflict,
    InvalidParameter,
    RateLimitExceeded,
    ServiceUnavailable,
    SessionClosed,
    TaskyardError,
    TimedOut,
)
from workflows import names
from workflows.refusals import refusal
from workflows.runs.report import RunReport
from workflows.runs.steering import control
from workflows.runs.steering.messages import (
    AgentSaid,
    Configuration,
    Configured,
    ControlAnswer,
    Interrupted,
    PermissionAnswer,
    PermissionAnswered,
    PermissionDecision,
    PermissionMode,
    PermissionRequest,
)
from workflows.runs.steering.questions import Control, Question, check_answers
from workflows.specs.wire import Claude

# What one run takes in all, and at once: each costs its history some fifteen events.
STEERINGS_MOST = 500
WAITING_MOST = 50
# Requests that a status shows. The follower denies more than a few open ones by itself.
SHOWN_MOST = 20

_CONFIRMATION = timedelta(minutes=5)
# Between two attempts at an answer that may not have reached the agent: the first pause doubles up to the longest.
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(minutes=1), timedelta(hours=1)
_MODEL_CHARS = 200
# Refusals of signals of which the status tells each.
_NOTED_MOST = 10


@dataclass
class _Agent:
    """Whether it can be spoken to."""

    runs: bool = False
    asleep: bool = False
    over: bool = False


@dataclass
class Steering:
    """What is asked of one run's agent, and what it asks. The conversation hands over what is in the ``outbox``."""

    report: RunReport
    claude: Claude
    outbox: deque[Control] = field(default_factory=deque)
    _agent: _Agent = field(default_factory=_Agent)
    _controls: dict[str, Control] = field(default_factory=dict)
    _questions: dict[str, Question] = field(default_factory=dict)
    _taken: int = 0
    _noted: int = 0
    # Whether the agent has confirmed an interrupt of ours in the turn that is under way.
    _interrupted: bool = False

    # --- the agent

    def begin(self) -> None:
        """It runs."""
        self._agent.runs = True

    def suspend(self) -> None:
        """It sleeps: answers are kept until it is awake, and its requests do not grow older."""
        self._agent.asleep = True

    def resume(self) -> None:
        """It is awake again."""
        self._agent.asleep = False

    def end(self) -> None:
        """It is gone, or takes no more."""
        self._agent.over = True
        self.outbox.clear()
        for question in self._questions.values():
            question.gone = True

    def said(self, said: AgentSaid) -> None:
        """It asks, takes back what it asked, and confirms. Whatever it has said before changes nothing."""
        for request in said.asked:
            self._ask(request)
        for request_id in said.withdrawn:
            if (question := self._questions.get(request_id)) is not None:
                question.gone = question.gone or question.given is None or workflow.patched(names.KEEPS_ANSWERS)
        for answer in said.answered:
            if (sent := self._controls.get(answer.id)) is not None and sent.answer is None:
                sent.answer = answer
                interrupt = sent.id.startswith(control.INTERRUPT) and answer.in_turn and answer.error is None
                self._interrupted = self._interrupted or interrupt

    def end_turn(self) -> bool:
        """The agent's turn is over. Whether it has confirmed in it an interrupt that this run has asked of it."""
        interrupted, self._interrupted = self._interrupted, False
        return interrupted

    def handed_over(self, sent: Control, *, delivered: bool) -> None:
        """The first one of the outbox has reached the agent, or never will."""
        sent.delivered = delivered
        if self.outbox and self.outbox[0] is sent:
            self.outbox.popleft()

    # --- what is asked of it

    def check(self) -> None:
        """Raise ApplicationError for what cannot be said to the agent now; that costs no history."""
        try:
            self._check()
        except TaskyardError as error:
            raise refusal(error) from None

    async def interrupt(self) -> Interrupted:
        """Stop the turn that is under way. Raises ApplicationError with the code of an error of ours."""
        try:
            self._check_awake()
            sent = self._send(control.INTERRUPT, control.interrupt, "Interrupt the turn")
            return Interrupted(interrupted=(await self._confirmed(sent)).in_turn)
        except TaskyardError as error:
            raise refusal(error) from None

    async def configure(self, wanted: Configuration) -> Configured:
        """Change model and permission mode. Raises as ``interrupt`` does; a model may have been changed then."""
        try:
            self._check_awake()
            self._check_configuration(wanted)
            sent = []
            if (model := wanted.model) is not None:
                sent.append(self._send(control.SET_MODEL, lambda id_: control.set_model(id_, model), f"Model {model}"))
            if (mode := wanted.permission_mode) is not None:
                sent.append(
                    self._send(
                        control.SET_PERMISSION_MODE,
                        lambda id_: control.set_permission_mode(id_, mode),
                        f"Permission mode {mode}",
                    )
                )
            for each in sent:
                await self._confirmed(each)
        except TaskyardError as error:
            raise refusal(error) from None
        return Configured(model=wanted.model, permission_mode=wanted.permission_mode)

    def check_answer(self, given: PermissionAnswer) -> None:
        """Raise ApplicationError for an answer that would be refused now."""
        try:
            self._wanted(given)
        except TaskyardError as error:
            raise refusal(error) from None

    async def answer(self, given: PermissionAnswer) -> PermissionAnswered:
        """Answer a request, once. The same answer again is a repetition, and is sent again if it did not arrive.

        Another one is refused: the agent may have the first.
        """
        try:
            return await self._answer(given)
        except TaskyardError as error:
            raise refusal(error) from None

    async def noted(self, what: str, action: Callable[[], Awaitable[object]]) -> None:
        """Do something about which nobody waits for an answer: what is refused of it is told in the status."""
        try:
            await action()
        except ApplicationError as error:
            self._noted += 1
            if self._noted <= _NOTED_MOST:
                self.report.note(f"{what} was refused: {error.message}")
            else:
                self.report.note("Further attempts to steer the agent were refused.")

    # --- what it asks

    @property
    def requests(self) -> list[PermissionRequest]:
        """The requests that wait for an answer, oldest first, as many as are shown."""
        waiting = [each.request for each in self._questions.values() if each.given is None and not each.gone]
        return waiting[:SHOWN_MOST]

    def _ask(self, request: PermissionRequest) -> None:
        if self._agent.over or request.request_id in self._questions:
            return
        left = self.claude.permission_wait()
        question = Question(request.model_copy(update={"expires_at": workflow.now() + left}), left)
        self._questions[request.request_id] = question
        asyncio.create_task(self._expire(question))  # noqa: RUF006 -- the workflow's own loop holds its tasks

    async def _expire(self, question: Question) -> None:
        """Deny what nobody answers in time. No time passes while the agent sleeps, or while an answer is on its way."""

        def stands() -> bool:
            return not question.gone and not self._agent.asleep and question.given is None

        while not question.gone:
            began = workflow.now()
            try:
                await workflow.wait_condition(lambda: not stands(), timeout=question.left)
            except TimeoutError:
                denied = PermissionAnswer(
                    request_id=question.request.request_id,
                    decision=PermissionDecision.DENY,
                    message=control.NOBODY_ANSWERED,
                )
                self._decide(question, denied, "Nobody has answered in time: denied.")
            question.left = max(question.left - (workflow.now() - began), timedelta())
            await workflow.wait_condition(lambda: stands() or question.gone or question.answered)
            if question.answered:
                return
            if not question.gone:
                question.request.expires_at = workflow.now() + question.left

    async def _answer(self, given: PermissionAnswer) -> PermissionAnswered:
        question = self._wanted(given)
        if question.control is None:
            self._taken += 1
            self._decide(question, given, f"Answered: {given.decision}.")
        else:
            self._repeat(question.control)
        sent = question.control
        await workflow.wait_condition(
            lambda: sent is None or sent.delivered is not None or self._agent.asleep or self._agent.over
        )
        delivered = sent is not None and bool(sent.delivered)
        if not delivered and self._agent.over:
            raise SessionClosed("The agent has ended before it got the answer.")
        if sent is not None and sent.delivered is False:
            unsure = "The agent's machine has not confirmed that it took the answer, and may have it all the same."
            if question.gone:
                raise ServiceUnavailable(f"{unsure} The agent does not wait for it any more.")
            raise ServiceUnavailable(f"{unsure} Give the same one once more to learn whether it has arrived.")
        return PermissionAnswered(request_id=given.request_id, decision=given.decision, delivered=delivered)

    def _wanted(self, given: PermissionAnswer) -> Question:
        """The request that is answered. Raises what the answer is refused with."""
        question = self._questions.get(given.request_id)
        if question is None or (question.gone and not question.answered):
            raise Conflict(
                "The agent does not wait for an answer to this request: it was never asked, was taken back, or its "
                "turn is over. The run's status names the requests that are open."
            )
        if question.given is None:
            self._check()
            check_answers(question.request, given)
        elif question.given != given:
            raise Conflict(f"This request has its answer already ({question.given.decision}), and takes no other.")
        elif question.control is not None and question.control.delivered is False:
            self._check()
        return question

    def _decide(self, question: Question, given: PermissionAnswer, sentence: str) -> None:
        request = question.request
        question.given = given
        question.control = self._put(
            f"answer-{request.request_id}",
            control.answer(request, given),
            f"{given.decision}: {request.tool}",
            {
                "type": "permission_resolved",
                "message": sentence,
                "request_id": request.request_id,
                "tool": request.tool,
                "decision": given.decision.value,
            },
        )
        asyncio.create_task(self._settle(question, question.control))  # noqa: RUF006 -- as above

    async def _settle(self, question: Question, sent: Control) -> None:
        """Send an answer until it is known to have arrived, for as long as the agent waits for it.

        The guest takes one line for each id: what it did not confirm it may have, and another answer it would not take.
        """
        pause = _FIRST_PAUSE
        while True:
            await workflow.wait_condition(lambda: sent.delivered is not None or self._agent.over)
            if sent.delivered is not False or question.gone:
                return
            if not workflow.patched(names.KEEPS_ANSWERS):
                question.given = question.control = None
                question.gone = not question.left
                return
            self.report.note("An answer to the agent could not be delivered; it is tried again while the agent waits.")
            try:
                await workflow.wait_condition(lambda: sent.delivered is not False or question.gone, timeout=pause)
            except TimeoutError:
                if self._taken >= STEERINGS_MOST:
                    self.report.note("That answer is not tried again: the agent was steered too often for that.")
                    return
                self._repeat(sent)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _repeat(self, sent: Control) -> None:
        """Hand over once more what the agent may not have got; its machine knows it by its id."""
        if sent.delivered is False:
            self._taken += 1
            sent.delivered, sent.repeated = None, True
            self.outbox.append(sent)

    # --- how

    def _check(self) -> None:
        if self._agent.over:
            raise SessionClosed("The agent's session is closed; it cannot be steered any more.")
        if not self._agent.runs:
            raise Conflict("The agent does not run yet; steer it once the run is in state 'running'.")
        if self._taken >= STEERINGS_MOST:
            raise RateLimitExceeded(f"The agent was steered {STEERINGS_MOST} times, the most for one run.")
        if len(self.outbox) >= WAITING_MOST:
            raise RateLimitExceeded(f"{WAITING_MOST} things wait to be told to the agent; send this one later.")

    def _check_awake(self) -> None:
        self._check()
        if self._agent.asleep:
            raise Conflict("The agent sleeps until somebody decides about its budget; continue the run first.")

    def _check_configuration(self, wanted: Configuration) -> None:
        if wanted.model is None and wanted.permission_mode is None:
            raise InvalidParameter("Say what is to be changed: 'model', 'permission_mode', or both.")
        model = wanted.model
        if model is not None and not (0 < len(model) <= _MODEL_CHARS and model.isprintable() and " " not in model):
            raise InvalidParameter("'model' is no model's name.", field="model")
        if wanted.permission_mode is None:
            return
        if wanted.permission_mode not in set(PermissionMode):
            raise InvalidParameter(f"'permission_mode' is one of {', '.join(PermissionMode)}.", field="permission_mode")
        if self.claude.skip_permissions:
            raise Conflict(
                "The agent was started with claude.skip_permissions, and asks nobody; only a run with "
                "'skip_permissions: false' has permission modes."
            )

    def _send(self, prefix: str, line: Callable[[str], dict[str, Any]], summary: str) -> Control:
        self._taken += 1
        control_id = f"{prefix}{self._taken}"
        return self._put(control_id, line(control_id), summary)

    def _put(self, control_id: str, line: dict[str, Any], summary: str, event: dict[str, Any] | None = None) -> Control:
        sent = Control(control_id, line, summary, workflow.now(), event)
        self._controls[control_id] = sent
        self.outbox.append(sent)
        return sent

    async def _confirmed(self, sent: Control) -> ControlAnswer:
        """What the agent has said to it. Nothing is told as done before."""
        try:
            await workflow.wait_condition(
                lambda: sent.answer is not None or sent.delivered is False or self._agent.over, timeout=_CONFIRMATION
            )
        except TimeoutError:
            raise TimedOut("The agent has not confirmed this, and may do it yet; look at the run.") from None
        if sent.answer is None:
            if self._agent.over:
                raise SessionClosed("The agent has ended before it confirmed this.")
            raise ServiceUnavailable("The agent's machine did not take this; try it again.")
        if sent.answer.error is not None:
            raise Conflict(f"The agent refused this: {sent.answer.error}")
        return sent.answer
