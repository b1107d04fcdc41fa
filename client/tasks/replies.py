"""What the server answers, typed. Fields that this version does not know are kept and do no harm."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, RootModel, model_validator

TERMINAL = frozenset({"completed", "failed", "failed_preserved", "cancelled"})


class _Reply(BaseModel):
    model_config = ConfigDict(extra="allow")


class Progress(_Reply):
    """Live figures of the agent."""

    output_bytes: int = 0
    tool_calls: int = 0
    current_tool: str | None = None
    last_activity_at: datetime | None = None
    model: str | None = None
    permission_mode: str | None = None


class NetworkPolicy(_Reply):
    """What a machine may reach beside the model gateway: ``hosts`` are the run's rules, read in mode ``outbound``."""

    mode: str
    hosts: list[str] = []


class HostUse(_Reply):
    """Connections to one host and port that were let through and refused; ``reason`` is that of the last refusal."""

    host: str
    port: int
    allowed: int = 0
    blocked: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    reason: str | None = None


class NetworkUse(_Reply):
    """What a guest asked of the network so far, in all, and by host for those asked most."""

    allowed: int = 0
    blocked: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    hosts: list[HostUse] = []


class RunNetwork(_Reply):
    """The network of a run. A policy that is not ``in_force`` is the one that the machine will start with."""

    task_id: str
    policy: NetworkPolicy
    in_force: bool = False
    live: bool = True
    use: NetworkUse | None = None
    warnings: list[dict[str, str]] = []


class Usage(_Reply):
    """Tokens, costs in US dollars and limits as the model gateway counts them; limits are None without one."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cost_usd: float | None = None
    unpriced_tokens: int = 0
    unpriced_usd: float = 0.0
    unpriced_models: list[str] = []
    budget_usd: float | None = None
    budget_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """Tokens of all kinds, as they count against a budget."""
        return self.input_tokens + self.output_tokens + self.cache_creation_input_tokens + self.cache_read_input_tokens


class Continued(_Reply):
    """The limits of a run that goes on, None where there is none."""

    task_id: str
    budget_usd: float | None = None
    budget_tokens: int | None = None


class Transition(_Reply):
    """One change of state."""

    state: str
    at: datetime


class PermissionOption(_Reply):
    """One of the answers that a request takes."""

    id: str
    name: str


class PermissionRequest(_Reply):
    """What an agent asks and waits for; ``input`` is what the tool would get."""

    request_id: str
    tool: str
    input: dict[str, Any] = {}
    input_cut: bool = False
    description: str | None = None
    options: list[PermissionOption] = []
    asked_at: datetime
    expires_at: datetime | None = None

    def questions(self) -> list[str]:
        """The agent's own questions, in their order, when it asks for answers."""
        asked = self.input.get("questions") if self.tool == "AskUserQuestion" else None
        texts = [each.get("question") for each in asked if isinstance(each, dict)] if isinstance(asked, list) else []
        return [text for text in texts if isinstance(text, str)]


class Interrupted(_Reply):
    """The agent has confirmed."""

    interrupted: bool


class OpenRequests(_Reply):
    """What an agent asks and waits for."""

    permission_requests: list[PermissionRequest]


class Answered(_Reply):
    """The answer that counts. Not ``delivered``: the agent gets it when its machine is awake."""

    request_id: str
    decision: str
    delivered: bool


class Configured(_Reply):
    """What the agent has confirmed; an answer that does not say is none."""

    model: str | None
    permission_mode: str | None


class WaitingMessage(_Reply):
    """A message that the agent has not got yet."""

    id: str
    text: str
    delivering: bool = False


class Waiting(_Reply):
    """The messages that wait, in their order."""

    messages: list[WaitingMessage]


class Cleared(_Reply):
    """Ids of messages that will not be delivered, and of one whose delivery was under way."""

    cleared: list[str]
    delivering: str | None = None


class Pushed(_Reply):
    """What became of a run's push; ``error`` says why a part of it was not done."""

    branch: str | None = None
    commit: str | None = None
    base: str | None = None
    pull_request_url: str | None = None
    pull_request_number: int | None = None
    error: str | None = None
    note: str | None = None


class Task(_Reply):
    """A run. Lists leave what follows ``progress`` empty."""

    id: str
    name: str
    state: str
    labels: dict[str, str] = {}
    created_at: datetime
    started_at: datetime | None = None
    state_changed_at: datetime
    state_message: str | None = None
    vm_name: str | None = None
    vm_ip: str | None = None
    exit_code: int | None = None
    error: str | None = None
    cause: str | None = None
    progress: Progress = Progress()
    live: bool = True
    host: str | None = None
    base_commit: str | None = None
    continues: list[str] = []
    result: str | None = None
    output: Any = None
    ssh_command: str | None = None
    preserved_until: datetime | None = None
    decision_until: datetime | None = None
    usage: Usage | None = None
    network_policy: NetworkPolicy | None = None
    network: NetworkUse | None = None
    pushed: Pushed | None = None
    transitions: list[Transition] = []
    undelivered_messages: list[str] = []
    permission_requests: list[PermissionRequest] = []
    notes: list[str] = []
    definition: dict[str, Any] | None = None

    @property
    def terminal(self) -> bool:
        """Whether the run has ended: ``completed``, ``failed``, ``failed_preserved`` or ``cancelled``."""
        return self.state in TERMINAL


class TaskPage(_Reply):
    """A page of a list."""

    tasks: list[Task]
    total_count: int
    limit: int
    offset: int
    has_more: bool


class Submitted(_Reply):
    """A run was accepted."""

    task_id: str


class Accepted(_Reply):
    """A cancellation, a message or a close was handed to the run."""

    task_id: str
    message: str = ""


class Checked(_Reply):
    """A manifest was looked at, and nothing was started."""

    valid: bool


class Artifact(_Reply):
    """One stored artifact; ``checksum`` is ``sha256:`` and hex digits.

    A ``hidden`` one is kept for runs that continue this one, and is listed only when asked for.
    """

    name: str
    path: str
    size_bytes: int
    content_type: str
    checksum: str
    created_at: datetime
    hidden: bool = False


class ArtifactPage(_Reply):
    """What a run has left so far."""

    artifacts: list[Artifact]


# Each health path has one of these.
_FACTS = {"status": str, "http": str, "alive": bool, "ready": bool}


class Facts(RootModel[dict[str, Any]]):
    """A server's health page; which of the fields are set depends on the path."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not any(isinstance(self.root.get(name), kind) for name, kind in _FACTS.items()):
            raise ValueError("none of the facts that a server of this kind tells")
        return self


class LogLine(_Reply):
    """One entry of the run log. ``data`` is a line of output, or null for an event, whose fields are its own."""

    timestamp: datetime
    stream: str
    id: int | None = None
    data: str | None = None
    type: str | None = None

    @property
    def event(self) -> dict[str, Any]:
        """Fields of an event."""
        return {"type": self.type} | (self.model_extra or {})
