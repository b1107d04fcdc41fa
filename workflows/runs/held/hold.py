"""A run that was created and not started: it waits for its start, which may give it another prompt."""

from __future__ import annotations

import hashlib
from datetime import timedelta

from temporalio import workflow

from foundation.errors import Conflict
from workflows import names
from workflows.refusals import refusal
from workflows.runs.conversation import Conversation
from workflows.runs.interruption import Interruption
from workflows.runs.messages import StartHeld, TaskStatus, TaskSubmission, UserMessage
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.states import Cause
from workflows.specs.wire import Manifest

# Whoever has not started a run by then has forgotten it.
_HELD_MOST = timedelta(days=30)


class Hold:
    """Whether one run is held. It hears of its start by an update that is not public: the API sends it."""

    def __init__(
        self, submission: TaskSubmission, report: RunReport, interruption: Interruption, conversation: Conversation
    ) -> None:
        self._report = report
        self._interruption = interruption
        self._conversation = conversation
        # What the run begins with, as far as that is known.
        self._prompt = submission.manifest.claude.prompt
        report.status.held = submission.held
        workflow.set_update_handler(names.START_HELD, self.start, validator=self.check)

    def check(self, request: StartHeld) -> None:
        """Raise ApplicationError for a prompt that would be lost: the run has begun, and takes no message."""
        self._interruption.history.check_steered()
        message = self._message(request)
        if message is None:
            return
        if (sentence := self._conversation.refusal(message)) is not None:
            raise refusal(Conflict(f"The run was started before, and does not take this prompt any more: {sentence}"))

    def start(self, request: StartHeld) -> TaskStatus:
        """Let the run begin; the status as it stands then.

        One that has begun gets another prompt than it began with as a message; the same one is a repetition.
        """
        self._interruption.mind_update()
        status = self._report.status
        if (message := self._message(request)) is not None:
            # Runs of earlier versions have not heard it.
            if workflow.patched(names.HEARS):
                self._conversation.take(message)
        elif status.held and not status.state.terminal:
            status.held = False
            self._prompt = request.prompt or self._prompt
            self._report.remember()
        return status

    async def released(self, manifest: Manifest) -> Manifest:
        """What the run is to do, once it may begin. Raises RunEnded when it is to end before."""
        if self._report.status.held:
            try:
                await workflow.wait_condition(
                    lambda: not self._report.status.held or self._interruption.reason is not None, timeout=_HELD_MOST
                )
            except TimeoutError:
                sentence = f"Cancelled: the run was not started within {_HELD_MOST.days} days."
                raise RunEnded(Cause.CANCELLED, sentence) from None
            if (unwanted := self._interruption.reason) is not None:
                raise unwanted
        return manifest.model_copy(update={"claude": manifest.claude.model_copy(update={"prompt": self._prompt})})

    def _message(self, request: StartHeld) -> UserMessage | None:
        """What a run is to be told that has begun with something else; the same text is one message."""
        if self._report.status.held or request.prompt in {None, "", self._prompt}:
            return None
        digest = hashlib.sha256((request.prompt or "").encode(errors="replace")).hexdigest()
        return UserMessage(text=request.prompt or "", id=f"start-{digest[:32]}")
