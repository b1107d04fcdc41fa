"""Events that the steps write into the run log: changes of state, progress, who the model is, what users say."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextvars import copy_context
from datetime import datetime, timedelta
from typing import Any

import structlog
from temporalio import activity

from foundation.errors import BucketUnavailable, TaskyardError
from foundation.urls import without_credentials
from storage.bucket import Bucket
from storage.layout import TASKS, Place
from storage.redaction import Redactor
from storage.runlog import LogEntry, append_event, entries_since, read_entries
from workflows import steps

#: What somebody says to the agent: the prompt, and each message that was delivered.
USER_MESSAGE = "user_message"

# By how much the clocks of a host and of Temporal may differ.
_CLOCKS_APART = timedelta(minutes=5)
# Attempts of a step that has done its work and only cannot log it, and how long each waits for the bucket.
_LOGGING_ATTEMPTS = 5
_LOGGING_SECONDS = 20.0

_log = structlog.get_logger("step")


def log_done(announcement: Callable[[], None]) -> None:
    """Announce what is done, and stays so: no step fails because the log does not take it, or does not answer.

    It is tried again by further attempts of the step; then the log goes without it.
    """
    outcome: Future[None] = Future()

    def run() -> None:
        try:
            announcement()
            outcome.set_result(None)
        except Exception as error:  # noqa: BLE001 -- it is raised where the step waits
            outcome.set_exception(error)

    # A bucket that is silent is waited for longer than the step may last; a thread of its own waits for it then.
    threading.Thread(target=copy_context().run, args=(run,), daemon=True).start()
    try:
        outcome.result(_LOGGING_SECONDS)
    except (TaskyardError, TimeoutError) as error:
        reason = error if isinstance(error, TaskyardError) else BucketUnavailable("The bucket does not answer.")
        if reason.retryable and activity.info().attempt < _LOGGING_ATTEMPTS:
            raise reason from None
        _log.warning("not logged", step=activity.info().activity_type, code=reason.code, error=reason.message)


def announce(
    bucket: Bucket, task_id: str, kind: str, message: str, *, redactor: Redactor | None = None, **facts: Any
) -> None:
    """Log one event ``{type, message, ...}``, unless an earlier attempt of the step has logged the same."""
    # What users say stays as they said it; everything else may name URLs that a host's own git has rewritten.
    said = message if kind == USER_MESSAGE else without_credentials(message)
    announce_event(bucket, task_id, {"type": kind, "message": said, **facts}, redactor)


def announce_event(
    bucket: Bucket,
    task_id: str,
    event: dict[str, Any],
    redactor: Redactor | None = None,
    since: datetime | None = None,
) -> None:
    """Log an event as it stands, unless an earlier attempt has logged the same: of this step, or ``since`` then."""
    if redactor is not None:
        event = redactor.redact_json(event)
    place = TASKS.place(task_id)
    if not _is_logged(bucket, place, event, since):
        append_event(bucket, place, event)


def _is_logged(bucket: Bucket, place: Place, event: dict[str, Any], since: datetime | None) -> bool:
    """Whether an earlier attempt, if there was one, has logged the event."""
    info = activity.info()
    entries: Iterable[LogEntry]
    if info.activity_type == steps.RESERVE.name:
        # Its attempts within the workflow's own task do not count; but it comes first, when the log is short.
        entries = read_entries(bucket, place)
    elif since is not None or info.attempt > 1:
        entries = entries_since(bucket, place, (since or info.scheduled_time) - _CLOCKS_APART)
    else:
        return False
    return any(entry.stream == "event" and json.loads(entry.data) == event for entry in entries)


def announce_state(bucket: Bucket, task_id: str, state: str, message: str) -> None:
    """The run has entered ``state``."""
    announce(bucket, task_id, "state_change", message, state=state)


def announce_teardown(bucket: Bucket, task_id: str) -> None:
    """The run's machine is gone."""
    announce(bucket, task_id, "teardown", "The machine is torn down.")
