"""Changes that clients tell of a run: its record is theirs, its state is the run's own until they have it end."""

from __future__ import annotations

from temporalio import workflow

from workflows import names
from workflows.runs.interruption import Interruption
from workflows.runs.messages import CancelRequest
from workflows.runs.outcome import RunEnded
from workflows.runs.report import RunReport
from workflows.runs.states import Cause, TaskState
from workflows.told.record import Change, Standing, Told
from workflows.told.states import LocalState
from workflows.told.telling import Telling


class RunTold:
    """What one run was told. It hears of changes by an update that is not public: the API sends it."""

    def __init__(self, told: Told | None, report: RunReport, interruption: Interruption) -> None:
        self._report = report
        self._interruption = interruption
        self._telling = Telling(told, is_over=lambda: report.status.state.terminal)
        report.status.told = told
        workflow.set_update_handler(names.TELL, self.tell, validator=self.check)

    def check(self, change: Change) -> None:
        """What is refused at once costs no history."""
        ends = change.enter is not None and change.enter.terminal
        # However much was told: a client can still have the run end.
        (self._interruption.history.check_steered if ends else self._interruption.history.check_told)()
        self._telling.check(change)

    def tell(self, change: Change) -> Standing:
        """Merge a change into the record; a state that ends a run ends this one, any other one is its own affair.

        The first word about the end counts, also while the run is ending; a later one changes nothing.
        """
        self._interruption.mind_update()
        if self._report.status.state.terminal:
            return Standing(changed=False)
        changed = self._telling.take(change, workflow.now())
        if changed:
            self._report.status.told = self._telling.told
        ends = change.enter is not None and change.enter.terminal and self._end(change)
        return Standing(changed=changed or ends)

    def hear_last_word(self) -> None:
        """What was said about the end of a run while it was ending counts, as long as it has not ended."""
        word, before = self._interruption.word, self._report.status.cause
        if word is None or word.cause in {before, Cause.FINISHED}:
            return
        # Runs of earlier versions did not hear it any more.
        if (before is None or word.cause is Cause.CANCELLED) and workflow.patched(names.HEARS):
            self._report.take_end(word)

    def _end(self, change: Change) -> bool:
        """Have the run end as a client says; false when it ends otherwise already, or so anyway."""
        sentence = change.error_message or self._telling.told.error_message
        counts = self._interruption.reason is None and self._report.status.cause is None
        if change.enter is LocalState.CANCELLED:
            counts = self._interruption.cancel is None
            self._interruption.ask(CancelRequest(reason=sentence or "A client said that the run is cancelled"))
        elif change.enter is LocalState.FAILED:
            self._interruption.end(RunEnded(Cause.TOLD, sentence or "A client said that the run has failed."))
        else:
            counts = counts and self._report.status.state is not TaskState.COMPLETING
            self._interruption.end(RunEnded(Cause.FINISHED, "A client said that the run is completed."))
        return counts
