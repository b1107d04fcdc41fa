"""How a workflow refuses what it is told: with an error of the one tree, which the API raises again."""

from __future__ import annotations

from temporalio.exceptions import ApplicationError

from foundation.errors import TaskyardError


def refusal(error: TaskyardError) -> ApplicationError:
    """An error of ours as the failure of an update; its code is the failure's type."""
    details = [error.details] if error.details else []
    return ApplicationError(error.message, *details, type=error.code, non_retryable=True)
