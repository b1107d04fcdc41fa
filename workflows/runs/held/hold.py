"""A run that was created and not started: it waits for its start, which may give it another prompt."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from workflows import names
from workflows.runs.interruption import Interruption
from workflows.runs.messages import StartHeld, TaskStatus, TaskSubmission
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.states import Cause
from workflows.specs.wire import Manifest

# Whoever has not started a run by then has forgotten it.
_HELD_MOST = timedelta(days=30)


class Hold:
    """Whether one run is held. It hears of its start by an update that is not public: the API sends it."""

    def __init__(self, submission: TaskSubmission, report: RunReport, interruption: Interruption) -> None:
        self._report = report
        self._interruption = interruption
        self._prompt: str | None = None
        report.status.held = submission.held
        workflow.set_update_handler(names.START_HELD, self.start)

    def start(self, request: StartHeld) -> TaskStatus:
        """Let the run begin; the status as it stands then. One that has begun, or ended, stays as it is."""
        if self._report.status.held and not self._report.status.state.terminal:
            self._report.status.held = False
            self._prompt = request.prompt
            self._report.remember()
        return self._report.status

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
        if self._prompt is None:
            return manifest
        return manifest.model_copy(update={"claude": manifest.claude.model_copy(update={"prompt": self._prompt})})
