"""The one boundary between the project's errors and Temporal's: every step is wrapped in ``boundary``.

A step that is retried without limit is wrapped in ``bounded_retries`` too.
"""

from __future__ import annotations

import functools
import inspect
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import structlog
from temporalio import activity
from temporalio.exceptions import ApplicationError, FailureError
from temporalio.service import RPCError, RPCStatusCode

from foundation.errors import BucketUnavailable, EngineUnavailable, TaskyardError
from foundation.urls import without_credentials
from machines.ledger import NoRoom
from workflows.messages import SENTENCE_CHARS, cut

Function = TypeVar("Function", bound=Callable[..., Any])

log = structlog.get_logger("step")

# Faults of the program itself: the next attempt meets them again.
_PROGRAM_FAULTS = (TypeError, AttributeError, LookupError, AssertionError, NameError, ImportError)

# An unlimited step that fails for this long, and so often, ends with its failure. An attempt that worked for
# WORKED_SECONDS before it failed begins the count anew.
FAILING_SECONDS = 900.0
FAILURES_LEAST = 8
WORKED_SECONDS = 300.0
# What is no fault of guest or machine is waited for: the agent works meanwhile, and the run's own timeout ends that.
_WAITED_FOR = frozenset({BucketUnavailable.code, EngineUnavailable.code, NoRoom.code, "worker_stopping"})
_ENGINE_AWAY = frozenset({RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED})


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
    """Raise what the block raises as ``boundary`` does; ``step`` names the block in the log."""
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
            cut(without_credentials(f"Taskyard failed in {step}: {type(error).__name__}: {error}"), SENTENCE_CHARS),
            type=TaskyardError.code,
            non_retryable=isinstance(error, _PROGRAM_FAULTS),
        ) from None


@dataclass(frozen=True)
class _Spell:
    """Failures of one step, one after another: how many, and when the first and the last were."""

    failures: int
    since: float
    last: float


_spells: dict[tuple[str, str], _Spell] = {}
_spells_lock = threading.Lock()


@contextmanager
def bounded_retries() -> Iterator[None]:
    """Decorator of a blocking activity, above ``boundary``, that Temporal retries without limit in count.

    A failure after FAILURES_LEAST others, over FAILING_SECONDS, is raised as one that is not retried. Counted in this
    process: a worker that is started anew is another chance.
    """
    info = activity.info()
    key = (info.workflow_run_id or "", info.activity_id)
    begun = time.monotonic()
    try:
        yield
    except (FailureError, RPCError) as error:
        if isinstance(error, FailureError) and not isinstance(error, ApplicationError):
            raise
        if _is_waited_for(error) or not _has_failed_enough(key, begun, time.monotonic()):
            raise
        code = error.type if isinstance(error, ApplicationError) else TaskyardError.code
        log.warning("step failed again and again", step=info.activity_type, error=error.message)
        raise ApplicationError(error.message, type=code, non_retryable=True) from None
    with _spells_lock:
        _spells.pop(key, None)


def _is_waited_for(error: FailureError | RPCError) -> bool:
    if isinstance(error, ApplicationError):
        return error.type in _WAITED_FOR
    return isinstance(error, RPCError) and error.status in _ENGINE_AWAY


def _has_failed_enough(key: tuple[str, str], begun: float, now: float) -> bool:
    """Note a failure of an attempt that began at ``begun``; whether it is to be the last."""
    with _spells_lock:
        for other, spell in list(_spells.items()):
            if now - spell.last > 2 * FAILING_SECONDS:
                del _spells[other]
        before = _spells.get(key)
        if before is None or now - begun > WORKED_SECONDS:
            before = _Spell(0, now, now)
        spell = _Spell(before.failures + 1, before.since, now)
        _spells[key] = spell
        return spell.failures > FAILURES_LEAST and now - spell.since >= FAILING_SECONDS
