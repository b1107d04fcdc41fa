"""Tasks and runs as this dialect shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request

from api.posthog.lookup import FoundRun
from api.posthog.users import user
from storage.uploads.manifest import UploadedArtifact
from workflows.parents.messages import ParentStatus
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState
from workflows.told.messages import LocalStatus
from workflows.told.record import Told
from workflows.told.states import LocalState

SLUG_PREFIX = "TASK"
DEFAULT_ORIGIN = "user_created"

#: This dialect's words for where a run stands, and for what a client may say of it.
STATES: Mapping[str, LocalState] = {
    "not_started": LocalState.CREATED,
    "queued": LocalState.QUEUED,
    "in_progress": LocalState.RUNNING,
    "completed": LocalState.COMPLETED,
    "failed": LocalState.FAILED,
    "cancelled": LocalState.CANCELLED,
}
_LOCAL = {state: word for word, state in STATES.items()}
_CLOUD: Mapping[TaskState, str] = {
    TaskState.PENDING: "queued",
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.FAILED_PRESERVED: "failed",
    TaskState.CANCELLED: "cancelled",
}
_UNDER_WAY = "in_progress"


def status_of(found: FoundRun) -> str:
    """Where a run stands, in this dialect's word."""
    status = found.run.status
    return _LOCAL[status.state] if isinstance(status, LocalStatus) else _CLOUD.get(status.state, _UNDER_WAY)


def environment_of(found: FoundRun) -> str:
    """Where a run is executed."""
    return "local" if found.local is not None else "cloud"


def run_object(request: Request, found: FoundRun) -> dict[str, Any]:
    """A run in full (contract, section 1.0)."""
    status = found.run.status
    shown = _of_local(status) if isinstance(status, LocalStatus) else _of_cloud(status)
    told = found.run.told
    state = told.state | ({"mode": told.mode} if told.mode else {})
    parent = found.parent
    return {
        "id": status.id,
        "task": parent.id,
        "stage": told.stage,
        "branch": told.branch,
        "status": status_of(found),
        "environment": environment_of(found),
        "runtime_adapter": state.get("runtime_adapter"),
        "provider": state.get("provider"),
        "model": state.get("model"),
        "reasoning_effort": state.get("reasoning_effort"),
        "log_url": f"{str(request.base_url).rstrip('/')}/api/projects/{parent.project}/tasks/{parent.id}"
        f"/runs/{status.id}/logs/",
        "error_message": told.error_message,
        "output": told.output,
        "state": state,
        "artifacts": artifact_entries(found.artifacts),
        "created_at": status.created_at,
    } | shown


def _of_local(status: LocalStatus) -> dict[str, Any]:
    return {"updated_at": status.changed_at, "completed_at": status.ended_at}


def _of_cloud(status: TaskStatus) -> dict[str, Any]:
    told = status.told or Told()
    claude = status.manifest.claude if status.manifest else None
    changed = max(status.state_changed_at, told.changed_at or status.state_changed_at)
    return {
        "branch": told.branch or (told.state.get("pr_base_branch") if told.state else None),
        "runtime_adapter": "claude",
        "provider": "anthropic",
        "model": status.progress.model or (claude and claude.model),
        "reasoning_effort": claude and claude.effort,
        "error_message": status.error or told.error_message,
        "output": _output(status, told),
        "updated_at": changed,
        "completed_at": status.state_changed_at if status.state.terminal else None,
    }


def _output(status: TaskStatus, told: Told) -> Any:
    """What a client told of the output, over what the run itself gave; its facts beside it when that is no schema's."""
    if told.output is not None and not isinstance(told.output, dict):
        return told.output
    given = status.output
    if given is None:
        pushed = status.pushed
        facts = {
            "pr_url": pushed and pushed.pull_request_url,
            "head_branch": pushed and pushed.branch,
            "commit_sha": pushed and pushed.commit,
            "final_message": status.result,
        }
        given = {name: fact for name, fact in facts.items() if fact is not None}
        if "pr_url" in given:
            given["pr_urls"] = [given["pr_url"]]
    if told.output is None:
        return given or None
    return given | told.output if isinstance(given, dict) else told.output


def task_object(parent: ParentStatus, latest: dict[str, Any] | None) -> dict[str, Any]:
    """A parent task with its latest run (contract, section 1.16)."""
    facts = parent.facts
    return {
        "id": parent.id,
        "task_number": parent.number,
        "slug": f"{SLUG_PREFIX}-{parent.number}",
        "title": parent.title,
        "title_manually_set": bool(facts.get("title_manually_set")),
        "description": parent.description,
        "origin_product": parent.origin or DEFAULT_ORIGIN,
        "repository": parent.repository,
        "github_integration": facts.get("github_integration"),
        "github_user_integration": facts.get("github_user_integration"),
        "signal_report": facts.get("signal_report"),
        "json_schema": parent.output_schema,
        "internal": parent.internal,
        "archived": parent.archived,
        "ci_prompt": facts.get("ci_prompt"),
        "latest_run": latest,
        "created_at": parent.created_at,
        "updated_at": parent.updated_at,
        "created_by": user(parent.created_by),
    }


def artifact_entries(artifacts: Sequence[UploadedArtifact]) -> list[dict[str, Any]]:
    """Artifacts as the manifest of a run shows them (contract, section 2.4)."""
    return [
        {
            "id": artifact.id,
            "name": artifact.name,
            "type": artifact.kind,
            "source": artifact.source,
            "size": artifact.size_bytes,
            "content_type": artifact.content_type,
            "storage_path": artifact.key,
            "uploaded_at": artifact.created_at.isoformat(),
        }
        for artifact in artifacts
    ]
