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

SLUG_PREFIX = "TASK"

# The states of a run, as this dialect calls them.
_STATUSES: Mapping[TaskState, str] = {
    TaskState.PENDING: "queued",
    TaskState.COMPLETED: "completed",
    TaskState.FAILED: "failed",
    TaskState.FAILED_PRESERVED: "failed",
    TaskState.CANCELLED: "cancelled",
}
_UNDER_WAY = "in_progress"
ENDED = frozenset({"completed", "failed", "cancelled"})


def status_of(state: TaskState) -> str:
    """A state of a run in this dialect's word."""
    return _STATUSES.get(state, _UNDER_WAY)


def run_object(request: Request, found: FoundRun) -> dict[str, Any]:
    """A run in full (contract, section 1.0)."""
    return _of_cloud(request, found, found.cloud.status)


def _of_cloud(request: Request, found: FoundRun, status: TaskStatus) -> dict[str, Any]:
    parent = found.parent
    manifest = status.manifest
    ended = status.state.terminal
    return {
        "id": status.id,
        "task": parent.id,
        "stage": None,
        "branch": manifest.repository.branch if manifest else None,
        "status": status_of(status.state),
        "environment": "cloud",
        "runtime_adapter": "claude",
        "provider": "anthropic",
        "model": manifest.claude.model if manifest else None,
        "reasoning_effort": None,
        "log_url": _log_url(request, parent, status.id),
        "error_message": status.error,
        "output": None,
        "state": {"mode": "background" if manifest is None or manifest.claude.headless else "interactive"},
        "artifacts": artifact_entries(found.artifacts),
        "created_at": status.created_at,
        "updated_at": status.state_changed_at,
        "completed_at": status.state_changed_at if ended else None,
    }


def task_object(request: Request, parent: ParentStatus, latest: dict[str, Any] | None) -> dict[str, Any]:  # noqa: ARG001
    """A parent task with its latest run (contract, section 1.16)."""
    facts = parent.facts
    return {
        "id": parent.id,
        "task_number": parent.number,
        "slug": f"{SLUG_PREFIX}-{parent.number}",
        "title": parent.title,
        "title_manually_set": bool(facts.get("title_manually_set")),
        "description": parent.description,
        "origin_product": parent.origin or "user_created",
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


def _log_url(request: Request, parent: ParentStatus, run_id: str) -> str:
    path = f"/api/projects/{parent.project}/tasks/{parent.id}/runs/{run_id}/logs/"
    return str(request.base_url).rstrip("/") + path
