"""Whether the machine of a run that failed is still kept: its host says so, not the record of the run's end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from api.runs.core import TaskView
from foundation.errors import BucketUnavailable
from storage.bucket import Bucket
from storage.preserved import PreservedMachine, preserved_on
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

_GONE = "Task failed; the VM that was preserved for debugging is gone"


async def as_kept_now(view: TaskView, bucket: Bucket) -> TaskView:
    """The run with the way into its machine and the deadline of this moment, and with neither when it is gone.

    While its host has said nothing, or the bucket does not answer, the record of the run's end counts, up to the
    deadline that stands in it.
    """
    status = view.status
    if status.state is not TaskState.FAILED_PRESERVED:
        return view
    kept = await _kept(status, bucket)
    if kept is None or kept.until <= datetime.now(UTC):
        facts: dict[str, Any] = {"ssh_command": None, "preserved_until": None, "state_message": _GONE}
    else:
        facts = {"ssh_command": kept.ssh_command, "preserved_until": kept.until}
    return replace(view, status=status.model_copy(update=facts))


async def _kept(status: TaskStatus, bucket: Bucket) -> PreservedMachine | None:
    try:
        machines = await asyncio.to_thread(preserved_on, bucket, status.host or "")
    except BucketUnavailable:
        machines = None
    if machines is not None:
        return machines.get(status.id)
    if status.preserved_until is None:
        return None
    return PreservedMachine(
        machine_id=status.vm_name or "", until=status.preserved_until, ssh_command=status.ssh_command
    )
