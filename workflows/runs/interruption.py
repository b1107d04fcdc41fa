"""Why a run is to end before its agent does: a cancel, a session that cannot be closed, a history that is full."""

from __future__ import annotations

from temporalio import workflow

from workflows.runs.messages import CancelRequest
from workflows.runs.outcome import RunEnded
from workflows.runs.states import Cause

# Temporal ends a run past 51,200 events or 50 MiB of history, without its artifacts. Only signals and updates from
# outside can bring it there; a run that comes close ends itself while it still can do so in order.
_EVENTS_MOST = 45_000
_HISTORY_BYTES_MOST = 40 * 2**20


class Interruption:
    """What has come to one run so far. ``cancel``: what was asked, if anybody did."""

    def __init__(self) -> None:
        self.cancel: CancelRequest | None = None
        self._overfull: RunEnded | None = None
        self._given_up: RunEnded | None = None
        self._ended: RunEnded | None = None

    @property
    def reason(self) -> RunEnded | None:
        """Why the run is to end before its agent does, if so."""
        return self.cancellation() if self.cancel is not None else self._overfull or self._given_up or self._ended

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

    def mind_history(self) -> None:
        """End the run when its history has grown so long that little more fits into it."""
        info = workflow.info()
        events, size = info.get_current_history_length(), info.get_current_history_size()
        if self._overfull is None and (events > _EVENTS_MOST or size > _HISTORY_BYTES_MOST):
            self._overfull = RunEnded(
                Cause.INTERNAL,
                f"The run was ended: messages and signals have filled its history ({events} events, {size} bytes).",
            )
