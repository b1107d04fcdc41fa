"""Models in and out of the workflow: submission, signals, queries and the steps' requests and results.

The names and payloads of the signals ``cancel`` and ``user_message`` and of the query ``status`` are public API:
other systems use them directly (docs/signals.md).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from workflows.runs.states import Cause, TaskState
from workflows.specs.wire import Claude, Manifest, Repository, SecretReference, VmSpec


class Message(BaseModel):
    """Base of all messages: unknown fields are kept out, so that old and new processes understand one another."""

    model_config = ConfigDict(extra="ignore")


# --- limits: what others say goes into history and memo, and Temporal ends a run that overfills them

SENTENCE_CHARS = 2_000
NAME_CHARS = 500
RESULT_CHARS = 32_768
MESSAGE_ID_CHARS = 200
MESSAGE_BYTES = 256 * 1024
LABELS_MOST = 100


def cut(text: str, most: int) -> str:
    """The text, cut to ``most`` characters of which the last then is an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _cut_labels(labels: Any) -> Any:
    """So many labels, so long, of those that are text."""
    if not isinstance(labels, dict):
        return labels
    kept = list(labels.items())[:LABELS_MOST]
    return {cut(str(key), NAME_CHARS): cut(str(value), NAME_CHARS) for key, value in kept}


Sentence = Annotated[str, AfterValidator(lambda text: cut(text, SENTENCE_CHARS))]
Name = Annotated[str, AfterValidator(lambda text: cut(text, NAME_CHARS))]
Result = Annotated[str, AfterValidator(lambda text: cut(text, RESULT_CHARS))]
Labels = Annotated[dict[str, str], BeforeValidator(_cut_labels)]


# --- what goes into the workflow


class TaskSubmission(Message):
    """Argument of ``TaskWorkflow``; its task id is the workflow id without the prefix ``task-``."""

    task_id: str
    manifest: Manifest


class CancelRequest(Message):
    """Payload of the signal ``cancel``. ``force`` kills the agent without its grace period."""

    reason: Sentence = "User requested cancellation"
    force: bool = False


class UserMessage(Message):
    """Payload of the signal ``user_message``: a further turn for the running agent.

    ``id`` makes the delivery idempotent; without one, each signal is a message of its own. A text of more than
    MESSAGE_BYTES is not delivered.
    """

    text: str = Field(min_length=1)
    id: str | None = None


class TurnEnded(Message):
    """Payload of the update ``end_turn``, sent by the follower: the agent has answered and waits for input."""

    results: int


# --- what comes out of it


class AgentProgress(Message):
    """Live figures of the agent, derived from its stream-json output."""

    output_bytes: int = 0
    tool_calls: int = 0
    current_tool: Name | None = None
    last_activity_at: datetime | None = None


# Guests say them of themselves: whatever they say must pass through JSON and back.
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


class MachineFigures(Message):
    """What the guest used at ``at``: percent of all its CPUs, bytes, and its load over 1, 5 and 15 minutes."""

    at: datetime
    cpu_percent: Amount
    memory_used_bytes: Count
    memory_total_bytes: Count
    disk_used_bytes: Count
    disk_total_bytes: Count
    load_avg: tuple[Amount, Amount, Amount]


class LiveProgress(AgentProgress):
    """Details of the follower's heartbeat: the progress, and the last figures of the guest. They are kept nowhere."""

    machine: MachineFigures | None = None

    def without_figures(self) -> AgentProgress:
        """The progress alone."""
        return AgentProgress.model_validate(self.model_dump())


class TokenUsage(Message):
    """Tokens that the model gateway counted for the run."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0


class Transition(Message):
    """One change of state."""

    state: TaskState
    at: datetime


class TaskStatus(Message):
    """Answer of the query ``status``, and (as JSON) the memo and the final record of a run.

    ``error`` is a sentence and ``cause`` its class; both are null while nothing went wrong. ``ssh_command`` is set
    when the machine was preserved, which ends at ``preserved_until``. ``notes`` are sentences about what the run lacks
    although nothing failed: files left out, patterns without a match, messages not delivered. The agent takes further
    messages while ``takes_messages``; ``waiting_messages`` of them are still to be delivered. Texts are cut to the
    limits above, also when they are assigned.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: Name
    name: Name
    labels: Labels = {}
    state: TaskState = TaskState.PENDING
    state_message: Sentence | None = None
    created_at: datetime
    started_at: datetime | None = None
    state_changed_at: datetime
    vm_name: str | None = None
    vm_ip: str | None = None
    host: str | None = None
    exit_code: int | None = None
    cause: Cause | None = None
    error: Sentence | None = None
    ssh_command: Sentence | None = None
    preserved_until: datetime | None = None
    base_commit: Name | None = None
    result: Result | None = None
    usage: TokenUsage | None = None
    progress: AgentProgress = Field(default_factory=AgentProgress)
    transitions: list[Transition] = []
    takes_messages: bool = True
    waiting_messages: int = 0
    undelivered_messages: list[str] = []
    notes: list[str] = []
    manifest: Manifest | None = None


# --- the steps: one request and one result each


class ReserveRequest(Message):
    """Ask the hosts for room. ``machine_id`` is the run's own, so asking twice reserves once.

    ``since`` is when the run was submitted, by Temporal's clock: its place among those that wait. Runs of earlier
    versions do not say it.
    """

    task_id: str
    workflow_id: str
    run_id: str
    machine_id: str
    vm: VmSpec
    deadline: datetime
    since: datetime | None = None


class Lease(Message):
    """Room reserved on one host: later steps run on ``task_queue``, which only that host polls.

    The agent is followed on ``agent_queue``, so that no other step waits behind followers; hosts of earlier versions
    give none and do all on one queue.
    """

    machine_id: str
    host: Name
    task_queue: str
    agent_queue: str | None = None


class StageRequest(Message):
    """Make the workspace image of a repository; ``disk`` is the manifest's size of it.

    ``vm`` is the machine that the host may start meanwhile.
    """

    task_id: str
    machine_id: str
    repository: Repository
    disk: str
    vm: VmSpec | None = None


class StageResult(Message):
    """``workspace_image`` is a path on the host. Sizes in bytes."""

    base_commit: str
    workspace_image: str
    files: int = 0
    size_bytes: int = 0


class ProvisionRequest(Message):
    """Make the reserved machine run, with the workspace attached."""

    task_id: str
    machine_id: str
    vm: VmSpec
    workspace_image: str


class ProvisionResult(Message):
    """The running machine; ``image`` is the guest image's digest."""

    vm_name: str
    vm_ip: str
    acceleration: str
    image: str
    boot_seconds: float


class SecretsRequest(Message):
    """Resolve the references on the host and write the values into the guest's tmpfs."""

    machine_id: str
    task_id: str
    secrets: list[SecretReference]


class SecretsResult(Message):
    """Names only; values never leave the step. ``notes`` are sentences about values that cannot be redacted."""

    names: list[str] = []
    notes: list[str] = []


class AgentRequest(Message):
    """Start (once) and follow the agent. ``secrets`` are redacted from what it writes."""

    task_id: str
    machine_id: str
    claude: Claude
    subpath: str | None = None
    secrets: list[SecretReference] = []
    hang_timeout: timedelta


class AgentResult(Message):
    """How the agent ended. ``cause`` is null when it succeeded: a result that is no error, exit code 0, a model asked.

    A follower that finds a reason to end the agent does not do so itself, since the stop may outlast its attempt: it
    gives the reason as ``cause`` with ``running``, and the workflow, which keeps it, stops the agent.
    """

    model_config = ConfigDict(validate_assignment=True)

    running: bool = False
    exit_code: int | None = None
    cause: Cause | None = None
    error: Sentence | None = None
    result: Result | None = None
    session_id: Name | None = None
    num_turns: int | None = None
    total_cost_usd: float | None = None
    usage: TokenUsage | None = None
    progress: AgentProgress = Field(default_factory=AgentProgress)


class StopAgentRequest(Message):
    """Stop the agent: TERM, 30 s of grace, KILL; with ``force`` KILL at once.

    With ``machine``, end the machine's process from its host, for a guest in which nothing else helps; its disks stay.
    """

    machine_id: str
    force: bool = False
    machine: bool = False


class DeliverRequest(Message):
    """Hand a user message to the agent, once for each ``message_id``."""

    task_id: str
    machine_id: str
    message_id: str
    text: str


class CollectRequest(Message):
    """Collect artifacts from the workspace disk, whether the guest lives or not.

    ``status`` and ``vm`` become metadata.json; ``secrets`` are redacted from what is stored. With ``release`` the
    machine is torn down once all is stored.
    """

    task_id: str
    machine_id: str
    repository: Repository
    base_commit: str
    patterns: list[str]
    secrets: list[SecretReference] = []
    agent: AgentResult | None = None
    status: TaskStatus
    vm: VmSpec | None = None
    release: bool = False


class Artifact(Message):
    """One stored artifact. ``name`` is unique in the run; ``path`` is relative to the workspace; sha256 in hex."""

    name: str
    path: str
    size_bytes: int
    content_type: str
    sha256: str
    created_at: datetime
    redacted: bool = False


class CollectResult(Message):
    """What was stored, whether the machine is torn down, and sentences about what the artifacts lack."""

    artifacts: list[Artifact] = []
    released: bool = False
    notes: list[str] = []


class ReleaseRequest(Message):
    """End of the machine: torn down, or kept until ``preserve_for`` has passed."""

    task_id: str
    machine_id: str
    preserve: bool = False


class ReleaseResult(Message):
    """Set when the machine was preserved."""

    ssh_command: str | None = None
    preserved_until: datetime | None = None


class CloseRequest(Message):
    """Close the agent's session: it ends after the messages that were delivered before."""

    machine_id: str


class FinishRequest(Message):
    """Write the final record and close the run log."""

    status: TaskStatus
