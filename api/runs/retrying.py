"""Submitting the manifest of a run again: under an id of its own, with a label that names the run it repeats."""

from __future__ import annotations

from api.runs.acceptance import accept
from api.runs.core import Core
from foundation.documents import Document
from foundation.errors import Conflict
from workflows.runs.messages import TaskStatus

# Names the run whose manifest was submitted again.
RETRY_LABEL = "retry-of"


async def retry(core: Core, task_id: str) -> tuple[TaskStatus, list[dict[str, str]]]:
    """Start a run of the same manifest; its first status, and what the manifest says in vain.

    Raises TaskNotFound, Conflict when the manifest is not kept any more, and whatever submitting it today raises.
    """
    manifest = (await core.status(task_id, definition=True)).status.manifest
    if manifest is None:
        raise Conflict(f"The manifest of task '{task_id}' is not kept any more; submit it again from its file.")
    data = manifest.model_dump(mode="json", exclude_none=True)
    data["metadata"] |= {"id": None, "labels": manifest.metadata.labels | {RETRY_LABEL: task_id}}
    submission = accept(Document(data))
    return await core.submit(submission.manifest), submission.warnings
