"""The conversation with a run's agent: messages in, turns out, and the close of the session."""

from __future__ import annotations

from temporalio import workflow

from workflows import names, steps
from workflows.calls import Calls
from workflows.history import MESSAGES
from workflows.runs.inbox import Inbox, short_id
from workflows.runs.interruption import Interruption
from workflows.runs.messages import UserMessage
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.requests import CloseRequest, DeliverRequest, SteerRequest
from workflows.runs.states import Cause
from workflows.runs.steering.messages import Cleared, WaitingMessage, WaitingMessages
from workflows.runs.steering.steering import Steering


class Conversation:
    """One session. One that cannot be closed is a reason for ``interruption``."""

    def __init__(
        self,
        calls: Calls,
        report: RunReport,
        interruption: Interruption,
        steering: Steering,
        machine_id: str,
        *,
        headless: bool,
    ) -> None:
        self.inbox = Inbox()
        self._steering = steering
        self._calls = calls
        self._report = report
        self._interruption = interruption
        self._machine_id = machine_id
        self._headless = headless
        self._close_wanted = False
        self._idle = False
        self._interrupted = False
        self._closed = False
        self._over = False
        # How often the agent's machine was put to sleep, and whether it sleeps now.
        self._sleeps = 0
        self._asleep = False

    @property
    def is_open(self) -> bool:
        """Whether the agent takes further messages, if the run has room for them."""
        return not (self._over or self._close_wanted or self._closed)

    @property
    def takes_messages(self) -> bool:
        """Whether a message that comes now is taken, unless too many wait."""
        return self.is_open and not self.inbox.is_full and self._no_room() is None

    def refusal(self, message: UserMessage) -> str | None:
        """Why a message that came now would be refused, as a sentence; one that came before is none the second time."""
        if message.id is not None and self.inbox.has_heard(short_id(message.id)):
            return None
        return self.inbox.refusal(message, closed=not self.is_open) or self._no_room()

    def take(self, message: UserMessage) -> None:
        """Queue a message, unless one with its id came before; what cannot be taken is noted."""
        message_id = short_id(message.id or str(workflow.uuid4()))
        if self.inbox.knows(message_id):
            return
        refusal, since = self.inbox.refusal(message, closed=not self.is_open), names.REFUSES
        if refusal is None:
            refusal, since = self._no_room(), names.COUNTS
        if refusal is not None and workflow.patched(since):
            self.inbox.refuse(message_id)
            self._report.note(refusal)
        else:
            self.inbox.add(message_id, message.text)

    def want_close(self) -> None:
        """Close the session once the agent has answered its messages."""
        self._close_wanted = True

    def turn_ended(self, *, interrupted: bool = False) -> None:
        """The agent waits for input; after an interrupt, its run waits for the next message too.

        That it was ``interrupted`` is the guest's word, and taken only of a turn that this run has interrupted.
        """
        asked = self._steering.end_turn()
        if interrupted and not asked and workflow.patched(names.OWN_INTERRUPTS):
            interrupted = False
        self._idle, self._interrupted = True, interrupted

    def close_if_idle(self) -> bool:
        """Whether the follower that asks is to close the session."""
        self._closed = self._closed or (self._may_close() and not self.inbox)
        if self._closed:
            self._steering.end()
        return self._closed

    def waiting(self) -> WaitingMessages:
        """The messages that the agent has not got yet."""
        return WaitingMessages(
            messages=[
                WaitingMessage(id=message_id, text=text, delivering=message_id == self.inbox.delivering)
                for message_id, text in self.inbox.waiting
            ]
        )

    def clear(self) -> Cleared:
        """Drop the messages that wait. The one that is being delivered may be with the agent already, and stays."""
        cleared = self.inbox.clear()
        if cleared:
            self._report.note("Messages were cleared before they were delivered.")
        return Cleared(cleared=cleared, delivering=self.inbox.delivering)

    def suspend(self) -> None:
        """The agent sleeps: what comes for it is kept until it is awake."""
        self._sleeps += 1
        self._asleep = True
        self._steering.suspend()

    def resume(self) -> None:
        """The agent is awake again."""
        self._asleep = False
        self._steering.resume()

    def end(self) -> None:
        """The agent is gone."""
        self._over = True
        self._steering.end()

    async def run(self) -> None:
        """Deliver messages in order, one at a time, and close the session when nothing more is to come.

        Serving both here is what makes the close safe: no message can slip in between the look at the queue and
        the close, since this one coroutine does both. Once ``end_turn`` has answered true, the follower closes it.
        """
        self._steering.begin()
        outbox = self._steering.outbox
        while True:
            await workflow.wait_condition(
                lambda: not self._asleep and (bool(outbox) or bool(self.inbox) or self._may_close())
            )
            if self._closed:
                return
            # First what steers the agent: a message that is handed over before an interrupt would be interrupted too.
            if not await (self._steer() if outbox else self._deliver() if self.inbox else self._close()):
                return

    async def _steer(self) -> bool:
        """Hand over what is first in the outbox. False when the conversation is at its end."""
        sent = self._steering.outbox[0]
        sleeps = self._sleeps
        request = SteerRequest(
            task_id=self._report.status.id,
            machine_id=self._machine_id,
            control_id=sent.id,
            line=sent.line,
            event=sent.event,
            since=sent.since if sent.repeated else None,
        )
        delivered = await self._calls.attempt(steps.STEER, request, sent.summary)
        if self._over:
            return False
        if delivered or not (self._asleep or self._sleeps != sleeps):
            self._steering.handed_over(sent, delivered=delivered)
        return True

    async def _deliver(self) -> bool:
        """Deliver the message whose turn it is, or give it up. False when the conversation is at its end."""
        message_id, text = self.inbox.begin_delivery()
        was_idle, self._idle = self._idle, False
        sleeps = self._sleeps
        request = DeliverRequest(
            task_id=self._report.status.id, machine_id=self._machine_id, message_id=message_id, text=text
        )
        delivered = await self._calls.attempt(steps.DELIVER, request, "Deliver a message")
        self.inbox.delivering = None
        if delivered:
            self.inbox.delivered(message_id)
        # A delivery that was under way when the agent ended comes back here although its task was cancelled.
        if self._over and (not delivered or not self.inbox or workflow.patched(names.REDELIVERS)):
            return False
        if delivered:
            return True
        if not workflow.patched(names.REDELIVERS):
            return False
        # The agent waits for input as it did before; should the message have reached it all the same, a close waits
        # for the answer.
        self._idle = self._idle or was_idle
        if self._asleep or self._sleeps != sleeps:
            return True  # it was no fault of the message: it is delivered when the agent is awake
        self.inbox.give_up()
        self._report.note("A message could not be delivered; it was tried again for some minutes.")
        return True

    async def _close(self) -> bool:
        """Close the session, or have the run end. True when that is to be tried again: its machine fell asleep."""
        sleeps = self._sleeps
        closed = await self._calls.attempt(steps.CLOSE, CloseRequest(machine_id=self._machine_id), "Close the session")
        if closed or self._over or not workflow.patched(names.REDELIVERS):
            self._steering.end()
            return False
        if self._asleep or self._sleeps != sleeps:
            return True
        self._interruption.give_up(
            RunEnded(
                Cause.MACHINE_LOST, "The agent had answered, but its guest could not be told to close the session."
            )
        )
        return False

    def _no_room(self) -> str | None:
        if not self._interruption.history.is_past(MESSAGES):
            return None
        return "A message was not delivered because the run's history has room for no more."

    def _may_close(self) -> bool:
        return self._idle and (self._close_wanted or (self._headless and not self._interrupted))
