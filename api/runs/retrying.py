"""Submitting the manifest of a run again, under an id of its own: to repeat the run, or to go on from its end."""

from __future__ import annotations

from api.runs.acceptance import accept
from api.runs.core import Core
from foundation.documents import Document
from foundation.errors import Conflict
from workflows.runs.messages import TaskStatus
from workflows.specs.wire import Manifest

# Names the run whose manifest was submitted again.
RETRY_LABEL = "retry-of"


async def retry(core: Core, task_id: str, viewer: str | None) -> tuple[TaskStatus, list[dict[str, str]]]:
    """Start a run of the same manifest for a ``viewer``; its first status, and what the manifest says in vain.

    Raises TaskNotFound, Conflict when the manifest is not kept any more, and whatever submitting it today raises.
    """
    manifest = await _manifest(core, task_id)
    data = manifest.model_dump(mode="json", exclude_none=True)
    data["metadata"] |= {"id": None, "labels": manifest.metadata.labels | {RETRY_LABEL: task_id}}
    submission = accept(Document(data))
    return await core.submit(submission.manifest, viewer=viewer), submission.warnings


async def resume(
    core: Core, task_id: str, viewer: str | None, prompt: str, *, new_id: str | None = None, conversation: bool = True
) -> tuple[TaskStatus, list[dict[str, str]]]:
    """Start a run that goes on from where an ended one has stopped, with another prompt and its manifest otherwise.

    Its first status, and what the manifest says in vain. Raises TaskNotFound, Conflict when the run has not ended or
    its manifest is not kept any more, and whatever submitting it today raises.
    """
    manifest = await _manifest(core, task_id)
    data = manifest.model_dump(mode="json", exclude_none=True)
    data["metadata"]["id"] = new_id
    data["claude"]["prompt"] = prompt
    # The earlier run says at which commit to go on.
    data["repository"].pop("commit", None)
    data["resume"] = {"run": task_id, "conversation": conversation}
    submission = accept(Document(data))
    return await core.submit(submission.manifest, viewer=viewer), submission.warnings


async def _manifest(core: Core, task_id: str) -> Manifest:
    manifest = (await core.status(task_id, definition=True)).status.manifest
    if manifest is None:
        raise Conflict(f"The manifest of task '{task_id}' is not kept any more; submit it again from its file.")
    return manifest
