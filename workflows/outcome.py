"""How a step that failed for good becomes the one cause of its run."""

from __future__ import annotations

from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as StepTimeout

from foundation.units import format_seconds
from workflows import steps
from workflows.states import Cause
from workflows.wire import Lifecycle

# Error codes of a step (foundation.errors) that name the cause better than the step does.
_CAUSE_OF_CODE = {
    "insufficient_resources": Cause.RESOURCES,
    "secret_unavailable": Cause.SECRET,
    "machine_lost": Cause.MACHINE_LOST,
    "agent_start_failed": Cause.AGENT_START,
}
_CAUSE_OF_STEP = {
    steps.RESERVE.name: Cause.RESOURCES,
    steps.STAGE.name: Cause.REPOSITORY,
    steps.PROVISION.name: Cause.PROVISION,
    steps.SECRETS.name: Cause.SECRET,
    steps.RUN_AGENT.name: Cause.AGENT_START,
    steps.COLLECT.name: Cause.COLLECT,
}
_CAUSE_OF_TIMEOUT = {
    steps.STAGE.name: (Cause.STAGE_TIMEOUT, "stage_timeout"),
    steps.PROVISION.name: (Cause.PROVISION_TIMEOUT, "provision_timeout"),
}


class RunEnded(Exception):
    """The run is over before its agent succeeded. ``error`` is the sentence for the user."""

    def __init__(self, cause: Cause, error: str) -> None:
        super().__init__(error)
        self.cause = cause
        self.error = error


def ended_by(step: str, error: ActivityError, lifecycle: Lifecycle, host: str | None) -> RunEnded:
    """The cause and sentence of a run whose ``step`` failed for good on ``host``."""
    cause = error.cause
    if isinstance(cause, StepTimeout):
        if cause.type is TimeoutType.SCHEDULE_TO_START:
            patience = format_seconds(steps.HOST_PATIENCE.total_seconds())
            return RunEnded(
                Cause.HOST_LOST,
                f"Host {host} did not come back within {patience}; start its worker again, or submit the task again.",
            )
        if step in _CAUSE_OF_TIMEOUT:
            timeout, field = _CAUSE_OF_TIMEOUT[step]
            limit = getattr(lifecycle, field)
            return RunEnded(timeout, f"The step took longer than lifecycle.{field} of {limit} allows.")
    code = cause.type if isinstance(cause, ApplicationError) else None
    message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
    return RunEnded(_CAUSE_OF_CODE.get(code or "", _CAUSE_OF_STEP.get(step, Cause.INTERNAL)), message)
