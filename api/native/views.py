"""What the Task Orchestration dialect answers: supersets of the contract's replies (sections 2.1 to 2.7)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from api.runs.core import TaskView
from api.runs.listing import Page
from api.runs.network import RunNetwork
from api.runs.shown import definition
from foundation.faults import Fault
from workflows.runs.messages import AgentProgress, NetworkUse, Pushed, TaskStatus, TokenUsage, Transition
from workflows.runs.requests import Artifact
from workflows.runs.states import Cause, TaskState
from workflows.runs.steering.messages import PermissionRequest
from workflows.specs.wire import NetworkPolicy

BASE = "/api/v1/tasks"


class Links(BaseModel):
    """Where the parts of a run are."""

    self: str
    logs: str
    artifacts: str


class Unheeded(BaseModel):
    """A part of the manifest that changes nothing here."""

    field: str = Field(examples=["parent_id"])
    message: str


class SubmitReply(BaseModel):
    """A run was accepted."""

    task_id: str = Field(examples=["1ssrg4b-k3f9q"])
    accepted: bool = True
    state: TaskState = TaskState.PENDING
    message: str = "Task accepted and queued for execution"
    created_at: datetime
    links: Links
    warnings: list[Unheeded] = Field(default=[], description="What the manifest says in vain")


class CheckReply(BaseModel):
    """A manifest was looked at: it would be accepted, and nothing was started."""

    valid: bool = True
    accepted: bool = False
    task_id: str = ""
    message: str = "The manifest is valid; nothing was started"
    warnings: list[Unheeded] = Field(default=[], description="What the manifest says in vain")


class TaskSummary(BaseModel):
    """A run in a list; every key is always there."""

    id: str = Field(examples=["task-001"])
    name: str = Field(examples=["Fix auth bug"])
    state: TaskState
    labels: dict[str, str]
    created_at: datetime
    started_at: datetime | None
    state_changed_at: datetime
    state_message: str | None
    vm_name: str | None
    vm_ip: str | None
    exit_code: int | None
    error: str | None
    cause: Cause | None = Field(description="Class of the error, null while nothing went wrong")
    progress: AgentProgress


class TaskDetail(TaskSummary):
    """A run in full. ``definition`` is the manifest without its secrets."""

    live: bool = Field(description="False when no worker answered and the last recorded status is shown")
    host: str | None
    base_commit: str | None
    continues: list[str] = Field(description="The runs that it goes on from, each from the one before it, at most 10")
    result: str | None = Field(description="The agent's closing words")
    output: Any = Field(description="What fits the manifest's claude.output_schema; null without one")
    ssh_command: str | None = Field(description="How to enter a preserved machine, on its host; null once it is gone")
    preserved_until: datetime | None = Field(description="When a preserved machine will be torn down")
    decision_until: datetime | None = Field(
        description="Until when a run that has used up its budget waits for somebody to continue it; else null"
    )
    usage: TokenUsage | None = Field(description="Tokens, costs and limits as the model gateway counts them")
    network_policy: NetworkPolicy | None = Field(
        description="What the machine may reach; null for runs that do not say"
    )
    network: NetworkUse | None = Field(description="What the guest asked of the network")
    pushed: Pushed | None = Field(description="Branch, commit and pull request of a run that pushes its work")
    transitions: list[Transition]
    undelivered_messages: list[str]
    permission_requests: list[PermissionRequest] = Field(description="What the agent asks and waits for")
    notes: list[str] = Field(description="Sentences about what the run lacks although nothing failed")
    definition: dict[str, Any] | None


class TaskList(BaseModel):
    """One page of runs."""

    tasks: list[TaskSummary]
    total_count: int = Field(description="Runs that the filters let through, on all pages")
    limit: int
    offset: int
    has_more: bool


class CancelReply(BaseModel):
    """The run was told to end."""

    success: bool = True
    task_id: str
    previous_state: TaskState
    new_state: TaskState = TaskState.CANCELLED
    message: str
    cancelled_at: datetime


class MessageReply(BaseModel):
    """The message or the close was handed to the run."""

    accepted: bool = True
    task_id: str
    message_id: str | None = None


class NetworkReply(BaseModel):
    """What a run's machine may reach, and what it asked for."""

    task_id: str
    policy: NetworkPolicy
    in_force: bool = Field(description="False while the machine is not there yet; it starts with the policy")
    live: bool = Field(description="False when no worker answered and the last recorded status is shown")
    use: NetworkUse | None = Field(description="Connections and bytes so far; null before anything is known of them")
    warnings: list[Unheeded] = Field(default=[], description="What the change says in vain")


class ContinueReply(BaseModel):
    """The run goes on with these limits, null where there is none, as soon as its host has room for its machine."""

    accepted: bool = True
    task_id: str
    budget_usd: float | None
    budget_tokens: int | None


class ArtifactView(BaseModel):
    """One stored artifact; ``path`` is relative to the workspace."""

    name: str = Field(examples=["report.md"])
    path: str = Field(examples=["report.md"])
    size_bytes: int
    content_type: str
    checksum: str = Field(examples=["sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"])
    created_at: datetime
    download_url: str = Field(examples=["/api/v1/tasks/task-001/artifacts/report.md"])
    redacted: bool = Field(description="Whether secret values were taken out of it")
    hidden: bool = Field(description="Whether it is kept for runs that continue this one, and listed only when asked")


class ArtifactList(BaseModel):
    """Everything that a run has left so far."""

    task_id: str
    artifacts: list[ArtifactView]
    total_count: int
    total_size_bytes: int


def submitted(status: TaskStatus, warnings: list[dict[str, str]]) -> SubmitReply:
    """The reply to a submission."""
    here = f"{BASE}/{status.id}"
    links = Links(self=here, logs=f"{here}/logs", artifacts=f"{here}/artifacts")
    unheeded = [Unheeded.model_validate(warning) for warning in warnings]
    return SubmitReply(task_id=status.id, created_at=status.created_at, links=links, warnings=unheeded)


def checked(warnings: list[dict[str, str]]) -> CheckReply:
    """The reply to a manifest that was only looked at."""
    return CheckReply(warnings=[Unheeded.model_validate(warning) for warning in warnings])


def task_list(page: Page, limit: int, offset: int) -> bytes:
    """A ``TaskList`` as JSON: the rows hold theirs ready, since to write a thousand anew would hold up all others."""
    about = {
        "total_count": page.total,
        "limit": limit,
        "offset": offset,
        "has_more": offset + len(page.rows) < page.total,
    }
    return b'{"tasks":[' + b",".join(row.packed for row in page.rows) + b"]," + json.dumps(about)[1:].encode()


def detail(view: TaskView) -> TaskDetail:
    """A run in full."""
    manifest = view.status.manifest
    facts = view.status.model_dump() | {
        "live": view.live,
        "definition": definition(manifest) if manifest is not None else None,
    }
    return TaskDetail.model_validate(facts)


def network_reply(task_id: str, network: RunNetwork, in_vain: Sequence[Fault] = ()) -> NetworkReply:
    """A run's network."""
    return NetworkReply(
        task_id=task_id,
        policy=network.policy,
        in_force=network.in_force,
        live=network.live,
        use=network.use,
        warnings=[Unheeded(field=fault.field, message=fault.message) for fault in in_vain],
    )


def artifact_list(task_id: str, artifacts: list[Artifact]) -> ArtifactList:
    """A run's artifacts."""
    return ArtifactList(
        task_id=task_id,
        artifacts=[artifact_view(task_id, artifact) for artifact in artifacts],
        total_count=len(artifacts),
        total_size_bytes=sum(artifact.size_bytes for artifact in artifacts),
    )


def artifact_view(task_id: str, artifact: Artifact) -> ArtifactView:
    """One artifact."""
    return ArtifactView(
        **artifact.model_dump(exclude={"sha256"}),
        checksum=f"sha256:{artifact.sha256}",
        download_url=f"{BASE}/{task_id}/artifacts/{quote(artifact.name)}",
    )
