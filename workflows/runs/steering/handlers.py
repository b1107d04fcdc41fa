"""What a run's workflow is told and asked about its agent while that runs: interrupts, answers, settings, the queue."""

from __future__ import annotations

from temporalio import workflow

from workflows import names
from workflows.runs.conversation import Conversation
from workflows.runs.interruption import Interruption
from workflows.runs.steering.messages import (
    AgentSaid,
    Cleared,
    ClearRequest,
    Configuration,
    Configured,
    Interrupted,
    InterruptRequest,
    PermissionAnswer,
    PermissionAnswered,
    WaitingMessages,
)
from workflows.runs.steering.steering import Steering


class Steered:
    """The part of ``TaskWorkflow`` that steers its agent. Updates are sent by the API, and are not public."""

    _steering: Steering
    _conversation: Conversation
    _interruption: Interruption

    @workflow.signal(name=names.INTERRUPT, description="Stop the agent's turn, without ending the run")
    async def interrupt(self, _: InterruptRequest | None = None) -> None:
        """Public API. What is refused is noted in the status."""
        self._interruption.mind_history()
        await self._steering.noted("An interrupt", self._steering.interrupt)

    @workflow.update(name=names.INTERRUPT_TURN, description="The signal 'interrupt', answered when the agent confirms")
    async def interrupt_turn(self, _: InterruptRequest) -> Interrupted:
        """Not public."""
        self._interruption.mind_update()
        return await self._steering.interrupt()

    @interrupt_turn.validator
    def check_interrupt(self, _: InterruptRequest) -> None:
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()
        self._steering.check()

    @workflow.signal(name=names.ANSWER, description="Answer what the agent asks: allow, allow_always or deny")
    async def answer(self, given: PermissionAnswer) -> None:
        """Public API. What is refused is noted in the status."""
        self._interruption.mind_history()
        await self._steering.noted("An answer", lambda: self._steering.answer(given))

    @workflow.update(name=names.ANSWER_REQUEST, description="The signal 'answer', answered once the agent has it")
    async def answer_request(self, given: PermissionAnswer) -> PermissionAnswered:
        """Not public."""
        self._interruption.mind_update()
        return await self._steering.answer(given)

    @answer_request.validator
    def check_answer(self, given: PermissionAnswer) -> None:
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()
        self._steering.check_answer(given)

    @workflow.signal(name=names.CONFIGURE, description="Change the agent's model or permission mode")
    async def configure(self, wanted: Configuration) -> None:
        """Public API. What is refused is noted in the status."""
        self._interruption.mind_history()
        await self._steering.noted("A configuration", lambda: self._steering.configure(wanted))

    @workflow.update(name=names.CONFIGURE_AGENT, description="The signal 'configure', answered when the agent confirms")
    async def configure_agent(self, wanted: Configuration) -> Configured:
        """Not public."""
        self._interruption.mind_update()
        return await self._steering.configure(wanted)

    @configure_agent.validator
    def check_configure(self, wanted: Configuration) -> None:  # noqa: ARG002 -- named as the update's
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()
        self._steering.check()

    @workflow.signal(name=names.CLEAR_MESSAGES, description="Drop the messages that wait for the agent")
    def clear_messages(self, _: ClearRequest | None = None) -> None:
        """Public API."""
        self._interruption.mind_history()
        self._conversation.clear()

    @workflow.update(
        name=names.CLEAR_WAITING, description="The signal 'clear_messages', answered with what was dropped"
    )
    def clear_waiting(self, _: ClearRequest) -> Cleared:
        """Not public."""
        self._interruption.mind_update()
        return self._conversation.clear()

    @clear_waiting.validator
    def check_clear(self, _: ClearRequest) -> None:
        """What is refused at once costs no history."""
        self._interruption.history.check_steered()

    @workflow.query(name=names.MESSAGES, description="The messages that wait for the agent")
    def messages(self) -> WaitingMessages:
        """Public API: the queue as ``WaitingMessages``."""
        return self._conversation.waiting()

    @workflow.signal(
        name=names.AGENT_SAID, description="Sent by Taskyard's own follower: what the agent asks, confirms"
    )
    def agent_said(self, said: AgentSaid) -> None:
        """Not public."""
        self._steering.said(said)
        self._interruption.mind_history()
