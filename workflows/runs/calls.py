"""How a run calls its steps: until it is interrupted, and with the cause that a failure is of the run's end."""

from __future__ import annotations

from datetime import datetime, timedelta

from temporalio import workflow
from temporalio.exceptions import ActivityError

from workflows import names, steps
from workflows.calls import Calls, In, Out, is_done
from workflows.runs.interruption import Interruption
from workflows.runs.outcome import RunEnded, ended_by
from workflows.runs.report import RunReport
from workflows.runs.states import Cause
from workflows.specs.wire import Lifecycle
from workflows.steps import Step

# What a machine may outlive its run's own limits by before the sweeper takes it.
_DEADLINE_MARGIN = timedelta(hours=3)


class RunCalls(Calls):
    """The steps of one run. A cancelled one waits for its host no longer than it must."""

    def __init__(self, lifecycle: Lifecycle, report: RunReport, interruption: Interruption) -> None:
        super().__init__(hurried=lambda: interruption.cancel is not None)
        self._lifecycle = lifecycle
        self._report = report
        self._interruption = interruption

    def ended_by(self, step: Step[In, Out], error: ActivityError) -> RunEnded:
        """The end of the run whose step has failed for good."""
        self.note_failure(step, error)
        return ended_by(step.name, error, self._lifecycle, self._report.status.host)

    def machine_deadline(self) -> datetime:
        """When the sweeper may take the machine of a run that begins now."""
        limits = ("stage_timeout", "provision_timeout", "timeout")
        return workflow.now() + sum((self._lifecycle.seconds(field) for field in limits), start=_DEADLINE_MARGIN)

    async def interruptible(
        self, step: Step[In, Out], request: In, summary: str, limit: timedelta | None = None
    ) -> Out:
        """Run a step to its end, or until the run is interrupted. Raises RunEnded."""
        if (unwanted := self._interruption.reason) is not None:
            raise unwanted
        handle = self.start(step, request, summary, limit)
        await workflow.wait_condition(lambda: handle.done() or self._interruption.reason is not None)
        if not handle.done():
            handle.cancel()
            unwanted = self._interruption.reason
            if unwanted and workflow.patched(names.BOUNDED) and not await is_done(handle, steps.SETTLE):
                raise unwanted
        try:
            result = await handle
        except ActivityError as error:
            # The cancellation is the cause, also when the attempt under way failed instead of being
            # cancelled: the server tries no further one then. A lost host stays one: nothing is to be done there.
            end = self.ended_by(step, error)
            if end.cause is not Cause.HOST_LOST:
                end = self._interruption.reason or end
            raise end from error
        if (unwanted := self._interruption.reason) is not None and step is not steps.RESERVE:
            raise unwanted
        return result
