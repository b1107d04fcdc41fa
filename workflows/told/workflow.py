"""LocalRunWorkflow: a run whose agent works elsewhere and tells; it has no machine, and one step, at its end."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

with workflow.unsafe.imports_passed_through():
    from foundation.errors import Conflict
    from workflows import names, steps
    from workflows.calls import Calls
    from workflows.history import History
    from workflows.refusals import refusal
    from workflows.told.messages import FinishLocalRequest, LocalStatus
    from workflows.told.record import Change, Standing
    from workflows.told.states import STATE_MESSAGES, LocalState, Step, step
    from workflows.told.telling import Telling

# A run of which nothing was told for so long has lost its client.
IDLE_MOST = timedelta(days=30)
# Two changes of one moment still have two times, by which clients tell them apart.
_INSTANT = timedelta(milliseconds=1)


@workflow.defn(name=names.LOCAL_RUNS.type)
class LocalRunWorkflow:
    """Keeps one local run. It is shown by memo and search attributes alone, so that a look at it needs no worker."""

    @workflow.init
    def __init__(self, status: LocalStatus) -> None:
        self._status = status
        self._history = History()
        self._telling = Telling(status.told, is_over=lambda: self._status.state.terminal)

    @workflow.update(name=names.TELL, description="Tell of the run: its state, stage, branch, output and the rest")
    def tell(self, change: Change) -> Standing:
        """Not public: sent by the API. A run that has ended is told nothing more, and says so."""
        self._history.count_update()
        ended = self._status.state.terminal
        changed = self._telling.take(change, self._now())
        if not ended and change.enter is not None and step(self._status.state, change.enter) is Step.ENTERS:
            self._enter(change.enter)
        elif changed:
            self._show()
        else:
            return Standing(changed=False)
        return Standing(changed=True)

    @tell.validator
    def check_tell(self, change: Change) -> None:
        """What is refused at once costs no history."""
        self._history.check_steered()
        before = self._status.state
        if change.enter is not None and step(before, change.enter) is Step.REFUSED:
            raise refusal(Conflict(f"The run is {before} and does not go back to {change.enter}.", state=before.value))
        self._telling.check(change)

    @workflow.query(name=names.STATUS, description="State, times, and what was told of the run")
    def status(self) -> LocalStatus:
        """Public API: the run as ``LocalStatus``."""
        return self._status

    @workflow.run
    async def run(self, status: LocalStatus) -> LocalStatus:  # noqa: ARG002 -- taken in __init__
        """Wait for what is told until the run has ended, then leave its record and close its log."""
        finishing = asyncio.create_task(self._run())
        while not finishing.done():
            try:
                await asyncio.shield(finishing)
            except asyncio.CancelledError:
                # Temporal's own cancellation: the UI's button, the temporal CLI.
                self._end(LocalState.CANCELLED, "Cancelled through Temporal")
        return finishing.result()

    async def _run(self) -> LocalStatus:
        workflow.set_current_details(self._details())
        while not self._status.state.terminal:
            quiet = workflow.now() - self._status.changed_at
            try:
                await workflow.wait_condition(
                    lambda: self._status.state.terminal or self._history.is_to_be_renewed(),
                    timeout=max(_INSTANT, IDLE_MOST - quiet),
                )
            except TimeoutError:
                if workflow.now() - self._status.changed_at >= IDLE_MOST:
                    self._end(LocalState.FAILED, f"Nothing was told of the run for {IDLE_MOST.days} days.")
                continue
            if not self._status.state.terminal:
                self._begin_anew()
        request = FinishLocalRequest(status=self._status)
        try:
            await Calls(hurried=lambda: False).start(steps.FINISH_LOCAL, request, "Write the final record")
        except ActivityError as error:
            workflow.logger.warning("the final record could not be written: %s", error.cause)
        return self._status

    def _enter(self, state: LocalState) -> None:
        at = self._now()
        status = self._status
        status.state = state
        status.state_changed_at = at
        if state is LocalState.RUNNING:
            status.started_at = status.started_at or at
        if state.terminal:
            status.ended_at = at
        self._show()

    def _end(self, state: LocalState, sentence: str) -> None:
        if not self._status.state.terminal:
            self._telling.take(Change(error_message=sentence), self._now())
            self._enter(state)

    def _show(self) -> None:
        status = self._status
        status.told = self._telling.told
        status.changed_at = self._now()
        status.changes += 1
        workflow.upsert_memo({names.STATUS_MEMO: status.model_dump(mode="json")})
        workflow.upsert_search_attributes(
            [
                names.STATE_KEY.value_set(status.state.value),
                names.CHANGED_KEY.value_set(status.state_changed_at),
                *([names.STARTED_KEY.value_set(status.started_at)] if status.started_at else []),
            ]
        )
        workflow.set_current_details(self._details())

    def _now(self) -> datetime:
        """A time behind that of the last change, also when both are of one moment."""
        return max(workflow.now(), self._status.changed_at + _INSTANT)

    def _begin_anew(self) -> None:
        """Go on with an empty history; what the run shows is carried along."""
        workflow.continue_as_new(
            self._status,
            memo={names.STATUS_MEMO: self._status.model_dump(mode="json")},
            search_attributes=workflow.info().typed_search_attributes,
        )

    def _details(self) -> str:
        """The run as the Temporal UI shows it, in Markdown."""
        status = self._status
        return f"- State: **{status.state}**: {STATE_MESSAGES[status.state]}\n- Run: {status.name} (`{status.id}`)"
