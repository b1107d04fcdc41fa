"""The one boundary between the project's errors and Temporal's: every step is wrapped in ``boundary``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import structlog
from temporalio.exceptions import ApplicationError, FailureError

from foundation.errors import TaskyardError

Function = TypeVar("Function", bound=Callable[..., Any])

log = structlog.get_logger("step")

# Faults of the program itself: the next attempt meets them again.
_PROGRAM_FAULTS = (TypeError, AttributeError, LookupError, AssertionError, NameError, ImportError)


def boundary(step: Function) -> Function:
    """Decorator of an activity: what it raises reaches the workflow as an ApplicationError.

    A TaskyardError keeps its sentence and details, its code becomes the error's type, and it is retried only if it is
    retryable. Any other exception becomes ``internal_error``, retried unless it is a fault of the program.
    Cancellation and ApplicationErrors pass. Goes below ``activity.defn``; takes plain and async functions.
    """
    if inspect.iscoroutinefunction(step):

        @functools.wraps(step)
        async def guarded_async(*arguments: Any, **named: Any) -> Any:
            with translated(step.__name__):
                return await step(*arguments, **named)

        return cast("Function", guarded_async)

    @functools.wraps(step)
    def guarded(*arguments: Any, **named: Any) -> Any:
        with translated(step.__name__):
            return step(*arguments, **named)

    return cast("Function", guarded)


@contextmanager
def translated(step: str) -> Iterator[None]:
    """Raise what the block raises as ``boundary`` tells; ``step`` names the block in the log."""
    try:
        yield
    except FailureError:
        raise
    except TaskyardError as error:
        log.info("step failed", step=step, code=error.code, error=error.message, retryable=error.retryable)
        details = [error.details] if error.details else []
        # Without a cause: history shows one sentence, not the host's stack and paths.
        raise ApplicationError(error.message, *details, type=error.code, non_retryable=not error.retryable) from None
    except Exception as error:
        if type(error).__module__.startswith("temporalio."):
            raise
        log.exception("step failed by a fault", step=step)
        raise ApplicationError(
            f"Taskyard failed in {step}: {type(error).__name__}: {error}",
            type=TaskyardError.code,
            non_retryable=isinstance(error, _PROGRAM_FAULTS),
        ) from None
