"""Why a run is to end before its agent does: a cancel, a session that cannot be closed, a history that is full."""

from __future__ import annotations

from temporalio import workflow

from workflows import names
from workflows.history import WHOLE, History
from workflows.runs.messages import CancelRequest
from workflows.runs.outcome import RunEnded
from workflows.runs.states import Cause


class Interruption:
    """What has come to one run so far. ``cancel``: what was asked, if anybody did."""

    def __init__(self) -> None:
        self.history = History()
        self.cancel: CancelRequest | None = None
        self._overfull: RunEnded | None = None
        self._given_up: RunEnded | None = None
        self._ended: RunEnded | None = None

    @property
    def reason(self) -> RunEnded | None:
        """Why the run is to end before its agent does, if so."""
        return self.cancellation() if self.cancel is not None else self._overfull or self._given_up or self._ended

    @property
    def word(self) -> RunEnded | None:
        """What somebody has said about the end of the run, which counts for as long as it has not ended."""
        return self.cancellation() if self.cancel is not None else self._ended

    @property
    def forced(self) -> bool:
        """Whether the agent is to be killed without its grace period."""
        return self.cancel is not None and self.cancel.force

    def ask(self, request: CancelRequest) -> None:
        """Cancel the run. The first reason stands; a later ``force`` still takes the grace period away."""
        if self.cancel is None:
            self.cancel = request
        elif request.force and not self.cancel.force:
            self.cancel = self.cancel.model_copy(update={"force": True})

    def cancellation(self) -> RunEnded:
        """The end of a run that was cancelled."""
        request = self.cancel or CancelRequest()
        return RunEnded(Cause.CANCELLED, f"Cancelled: {request.reason}")

    def give_up(self, end: RunEnded) -> None:
        """The session cannot be closed, for this reason."""
        self._given_up = end

    def end(self, end: RunEnded) -> None:
        """A client has said how the run ends; the first word stands."""
        self._ended = self._ended or end

    def mind_update(self) -> None:
        """Count an update that was accepted, as every handler of one does first."""
        self.history.count_update()
        self.mind_history()

    def mind_history(self) -> None:
        """End the run when its history has grown so long that little more fits into it.

        Only signals and updates from outside can bring it there. Temporal would end it without its artifacts.
        """
        if self._overfull is not None or not self.history.is_past(WHOLE):
            return
        info = workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        # Runs of earlier versions went on with any number of updates.
        if events > WHOLE.events or size > WHOLE.size or workflow.patched(names.COUNTS):
            self._overfull = RunEnded(
                Cause.INTERNAL,
                "The run was ended: messages, signals and updates have filled its history "
                f"({events} events, {size} bytes, {self.history.updates} updates).",
            )
