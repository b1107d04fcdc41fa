"""Changes that clients tell of a run: its record is theirs, its state is the run's own until they have it end."""

from __future__ import annotations

from temporalio import workflow

from workflows import names
from workflows.runs.interruption import Interruption
from workflows.runs.messages import CancelRequest
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.states import Cause
from workflows.told.record import Change, Standing, Told
from workflows.told.states import LocalState
from workflows.told.telling import Telling

# Temporal takes 2,000 updates of one run, of which some are its follower's; what else fills its history must not end it
# before its own steps do.
_CHANGES_MOST = 1500
_EVENTS_MOST = 30_000
_HISTORY_BYTES_MOST = 25 * 2**20


class RunTold:
    """What one run was told. It hears of changes by an update that is not public: the API sends it."""

    def __init__(self, told: Told | None, report: RunReport, interruption: Interruption) -> None:
        self._report = report
        self._interruption = interruption
        self._telling = Telling(told, is_over=lambda: report.status.state.terminal, is_full=self._is_full)
        report.status.told = told
        workflow.set_update_handler(names.TELL, self.tell, validator=self.check)

    def check(self, change: Change) -> None:
        """What is refused at once costs no history."""
        self._telling.check(change)

    def tell(self, change: Change) -> Standing:
        """Merge a change into the record; a state that ends a run ends this one, any other one is its own affair."""
        if self._report.status.state.terminal:
            return Standing(changed=False)
        changed = self._telling.take(change, workflow.now())
        if changed:
            self._report.status.told = self._telling.told
        ends = change.enter is not None and change.enter.terminal
        if ends:
            self._end(change)
        return Standing(changed=changed or ends)

    def _end(self, change: Change) -> None:
        sentence = change.error_message or self._telling.told.error_message
        if change.enter is LocalState.CANCELLED:
            self._interruption.ask(CancelRequest(reason=sentence or "A client said that the run is cancelled"))
        elif change.enter is LocalState.FAILED:
            self._interruption.end(RunEnded(Cause.TOLD, sentence or "A client said that the run has failed."))
        else:
            self._interruption.end(RunEnded(Cause.FINISHED, "A client said that the run is completed."))

    def _is_full(self) -> bool:
        info = workflow.info()
        return (
            self._telling.taken >= _CHANGES_MOST
            or info.get_current_history_length() > _EVENTS_MOST
            or info.get_current_history_size() > _HISTORY_BYTES_MOST
        )
