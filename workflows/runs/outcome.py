"""How a step that failed for good becomes the one cause of its run."""

from __future__ import annotations

from temporalio.exceptions import ActivityError, ApplicationError, TimeoutType
from temporalio.exceptions import TimeoutError as StepTimeout

from workflows import steps
from workflows.runs.states import Cause
from workflows.specs.wire import Lifecycle

# Error codes of a step (foundation.errors) that name the cause better than the step does.
_CAUSE_OF_CODE = {
    "insufficient_resources": Cause.RESOURCES,
    "secret_unavailable": Cause.SECRET,
    "secret_source_away": Cause.SECRET,
    "machine_lost": Cause.MACHINE_LOST,
    "agent_start_failed": Cause.AGENT_START,
    "internal_error": Cause.INTERNAL,
}
# Codes that mean something else in one step than in the others.
_NO_ROOM = "no_room"
_CAUSE_OF_STEP_AND_CODE = {
    (steps.RUN_AGENT.name, "guest_unreachable"): Cause.MACHINE_LOST,
    (steps.RESUME.name, _NO_ROOM): Cause.RESOURCES,
}
_CAUSE_OF_STEP = {
    steps.RESERVE.name: Cause.RESOURCES,
    steps.STAGE.name: Cause.REPOSITORY,
    steps.PROVISION.name: Cause.PROVISION,
    steps.SECRETS.name: Cause.SECRET,
    steps.NETWORK.name: Cause.PROVISION,
    steps.RUN_AGENT.name: Cause.AGENT_START,
    steps.PAUSE.name: Cause.BUDGET_EXCEEDED,
    steps.RESUME.name: Cause.MACHINE_LOST,
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
        return _timed_out(step, cause, lifecycle, host)
    code = (cause.type if isinstance(cause, ApplicationError) else None) or ""
    message = cause.message if isinstance(cause, ApplicationError) else str(cause or error)
    if (step, code) == (steps.RESUME.name, _NO_ROOM):
        hours = round(steps.ROOM_PATIENCE.total_seconds() / 3600)
        message = f"The run was continued, but host {host} had no room for its machine within {hours} h."
    by_code = _CAUSE_OF_STEP_AND_CODE.get((step, code)) or _CAUSE_OF_CODE.get(code)
    return RunEnded(by_code or _CAUSE_OF_STEP.get(step, Cause.INTERNAL), message)


def _timed_out(step: str, cause: StepTimeout, lifecycle: Lifecycle, host: str | None) -> RunEnded:
    if cause.type is TimeoutType.SCHEDULE_TO_START:
        return RunEnded(
            Cause.HOST_LOST,
            f"Host {host} did not come back in time for the step '{step}'; start its worker again, or submit the task "
            "again.",
        )
    last = cause.cause
    silent = f" Host {host} was not heard of at last." if isinstance(last, StepTimeout) else ""
    if step in _CAUSE_OF_TIMEOUT:
        timeout, field = _CAUSE_OF_TIMEOUT[step]
        limit = getattr(lifecycle, field)
        return RunEnded(timeout, f"The step took longer than lifecycle.{field} of {limit} allows.{silent}")
    last_words = f" {last.message}" if isinstance(last, ApplicationError) else silent
    return RunEnded(_CAUSE_OF_STEP.get(step, Cause.INTERNAL), f"The step '{step}' did not end in time.{last_words}")
