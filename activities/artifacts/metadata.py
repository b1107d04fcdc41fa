"""What a run's metadata.json says of the run itself; the collection adds what it stored and what it left out."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from activities.artifacts.changes import Changes
from foundation.urls import without_credentials
from workflows.runs.messages import NetworkUse
from workflows.runs.requests import CollectRequest
from workflows.runs.states import Cause, TaskState


def run_facts(request: CollectRequest, use: NetworkUse | None) -> dict[str, Any]:
    """State, times, repository, machine, network, agent and usage of a run, JSON-ready."""
    status = request.status
    policy = status.network_policy
    # Runs that began under earlier versions say it in the manifest only, if at all.
    vm = request.vm or (status.manifest.vm if status.manifest else None)
    return {
        "task_id": request.task_id,
        "name": status.name,
        "labels": status.labels,
        "state": _state(status.cause),
        "cause": status.cause,
        "error": status.error,
        "exit_code": status.exit_code,
        "timings": {
            "created_at": _time(status.created_at),
            "started_at": _time(status.started_at),
            "collected_at": _time(datetime.now(UTC)),
            "transitions": [{"state": each.state, "at": _time(each.at)} for each in status.transitions],
        },
        "repository": {
            "url": without_credentials(request.repository.url),
            "branch": request.repository.branch,
            "commit": request.repository.commit,
            "subpath": request.repository.subpath,
            "base_commit": request.base_commit,
        },
        "vm": {**(vm.model_dump(mode="json") if vm else {}), "name": status.vm_name, "host": status.host},
        "network_policy": policy.model_dump(mode="json") if policy else None,
        "network": use.model_dump(mode="json") if use else None,
        "agent": request.agent.model_dump(mode="json", exclude={"usage", "network"}) if request.agent else None,
        "usage": request.agent.usage.model_dump() if request.agent and request.agent.usage else None,
    }


def change_facts(changes: Changes) -> dict[str, int]:
    """Counts of what a patch changes."""
    return {
        "files": changes.files,
        "insertions": changes.insertions,
        "deletions": changes.deletions,
        "untracked": len(changes.untracked),
    }


def _state(cause: Cause | None) -> TaskState:
    if cause is None:
        return TaskState.COMPLETED
    return TaskState.CANCELLED if cause is Cause.CANCELLED else TaskState.FAILED


def _time(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
