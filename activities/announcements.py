"""Events that the steps themselves write into the run log: changes of state, progress, who the model is."""

from __future__ import annotations

import json
from typing import Any

from temporalio import activity

from storage.bucket import Bucket
from storage.runlog import append_event, read_entries
from workflows import steps


def announce(bucket: Bucket, task_id: str, kind: str, message: str, **facts: Any) -> None:
    """One event ``{type, message, ...}``. A later attempt of a step does not say again what an earlier one said."""
    event = {"type": kind, "message": message, **facts}
    if _may_be_repeated() and any(
        entry.stream == "event" and json.loads(entry.data) == event for entry in read_entries(bucket, task_id)
    ):
        return
    append_event(bucket, task_id, event)


def _may_be_repeated() -> bool:
    """Whether an earlier attempt may have said it. Those that are made within the workflow's own task do not count."""
    info = activity.info()
    return info.attempt > 1 or info.activity_type == steps.RESERVE.name


def announce_state(bucket: Bucket, task_id: str, state: str, message: str) -> None:
    """The run has entered ``state``."""
    announce(bucket, task_id, "state_change", message, state=state)


def announce_teardown(bucket: Bucket, task_id: str) -> None:
    """The run's machine is gone."""
    announce(bucket, task_id, "teardown", "The machine is torn down.")
