"""Models in and out of the workflow of a run: its submission, its signals, and its status.

The names and payloads of the signals ``cancel``, ``user_message`` and ``network``, and of the query ``status``, are
public API: other systems use them directly (docs/signals.md). Those that steer the agent are in ``steering/``.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from workflows.messages import Labels, Message, Name, Result, Sentence
from workflows.runs.states import Cause, TaskState
from workflows.runs.steering.messages import PermissionRequest
from workflows.specs.wire import Manifest, NetworkMode, NetworkPolicy
from workflows.told.record import Told

# A longer text is not delivered; a longer id is cut.
MESSAGE_ID_CHARS = 200
MESSAGE_BYTES = 256 * 1024
# Earlier runs that a run names as those that it goes on from.
CHAIN_MOST = 10
# The output of a run, as JSON.
OUTPUT_BYTES = 64 * 1024

# Guests and other systems say them: whatever they say must pass through JSON and back.
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, lt=2**63)]


# --- what goes into the workflow


class TaskSubmission(Message):
    """Argument of ``TaskWorkflow``; its task id is the workflow id without the prefix ``task-``.

    ``parent`` is the id of the parent task that the run belongs to, if to one. ``told`` is what its client says of it
    from the beginning. ``continues`` are the runs that it goes on from, as in its status. A run that is ``held`` waits
    to be started.
    """

    task_id: str
    manifest: Manifest
    parent: str | None = None
    told: Told | None = None
    continues: list[Name] = []
    held: bool = False


class StartHeld(Message):
    """Payload of the update ``start``: a run that is held begins, with another prompt if one is given."""

    prompt: str | None = None


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


class NetworkChange(Message):
    """Payload of the signal ``network``: another mode, and host rules to be added or removed, each as it stands.

    What is left out stays as it is. The update that the API sends has the same.
    """

    mode: NetworkMode | None = None
    allow: list[str] = []
    remove: list[str] = []


class ContinueRequest(Message):
    """Payload of the signal ``continue``: what is added to the budget of a run that has used it up and waits.

    What no budget can be raised by is refused by the run, which can say so; a payload that cannot be read is not.
    """

    budget_usd: float | None = None
    tokens: int | None = None


class Continued(Message):
    """Answer to a request to continue: the limits from now on, null where there is none."""

    budget_usd: Amount | None = None
    budget_tokens: Count | None = None


class TurnEnded(Message):
    """Payload of the update ``end_turn``, sent by the follower: the agent has answered and waits for input.

    One that was ``interrupted`` has not answered: its run waits for what comes next.
    """

    results: int
    interrupted: bool = False


# --- what comes out of it


class AgentProgress(Message):
    """Live figures of the agent, derived from its stream-json output; its model and permission mode as it says them."""

    output_bytes: int = 0
    tool_calls: int = 0
    current_tool: Name | None = None
    last_activity_at: datetime | None = None
    model: Name | None = None
    permission_mode: Name | None = None


class MachineFigures(Message):
    """What the guest used at ``at``: percent of all its CPUs, bytes, and its load over 1, 5 and 15 minutes."""

    at: datetime
    cpu_percent: Amount
    memory_used_bytes: Count
    memory_total_bytes: Count
    disk_used_bytes: Count
    disk_total_bytes: Count
    load_avg: tuple[Amount, Amount, Amount]


class TokenUsage(Message):
    """Tokens that the model gateway counted for the run, and what they cost by its price table, in US dollars.

    ``cost_usd`` is null where nothing was priced. The tokens of models without a price are ``unpriced_tokens`` too, and
    ``unpriced_usd`` is what they would cost of the dearest model of the table: that much counts against a budget.
    ``budget_usd`` and ``budget_tokens`` are the limits as they stand, null without one.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    cost_usd: Amount | None = None
    unpriced_tokens: Count = 0
    unpriced_usd: Amount = 0.0
    unpriced_models: list[Name] = []
    budget_usd: Amount | None = None
    budget_tokens: Count | None = None


class HostUse(Message):
    """What a guest asked of one host and port: connections let through and refused, and bytes of the former.

    ``reason`` is the sentence of the last refusal.
    """

    host: Name
    port: int
    allowed: int = 0
    blocked: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    reason: Sentence | None = None


class NetworkUse(Message):
    """What a guest asked of the egress proxy so far, in all and by host; of many hosts those asked most are named."""

    allowed: int = 0
    blocked: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    hosts: list[HostUse] = []


class LiveProgress(AgentProgress):
    """Details of the follower's heartbeat: the progress, the guest's last figures, and its use of network and model."""

    machine: MachineFigures | None = None
    network: NetworkUse | None = None
    usage: TokenUsage | None = None

    def without_figures(self) -> AgentProgress:
        """The progress alone."""
        return AgentProgress.model_validate(self.model_dump())


class NetworkStanding(Message):
    """Answer to a change of the network. Not ``in_force`` is what waits for the machine, which starts with it."""

    policy: NetworkPolicy
    in_force: bool


class Pushed(Message):
    """What became of a run's push: the branch and its commit once they are on the git host, and the pull request.

    ``error`` says why a part of it was not done; ``note`` what is worth knowing of what was.
    """

    branch: Name | None = None
    commit: Name | None = None
    base: Name | None = None
    pull_request_url: Name | None = None
    pull_request_number: Count | None = None
    error: Sentence | None = None
    note: Sentence | None = None


class Transition(Message):
    """One change of state."""

    state: TaskState
    at: datetime


class TaskStatus(Message):
    """Answer of the query ``status``, and (as JSON) the memo and the final record of a run.

    ``error`` is a sentence and ``cause`` its class; both are null while nothing went wrong. ``ssh_command`` is set
    when the machine was preserved, which ends at ``preserved_until``. ``notes`` are sentences about what the run lacks
    although nothing failed: files left out, patterns without a match, messages not delivered. The agent takes further
    messages while ``takes_messages``; ``waiting_messages`` of them are still to be delivered. The machine may reach
    what ``network_policy`` says once that is ``network_in_force``; ``network`` is what it asked for. A run that has
    used up its budget and may be continued waits for that until ``decision_until``. ``output`` is any JSON of at most
    OUTPUT_BYTES that fits the manifest's schema. ``continues`` are the runs that it goes on from, each from the one
    before it, the last of them at most CHAIN_MOST. Texts are cut to the limits of
    workflows/messages.py, also when they are assigned. ``machine_epoch`` says which start of the machine is meant; null
    when its host did not say. ``permission_requests`` are what the agent asks and waits for. ``told`` is what clients
    tell of the run. ``pushed`` is null until a run that pushes its work has done so, or could not. One that is ``held``
    was created, and not started yet.
    """

    model_config = ConfigDict(validate_assignment=True)

    id: Name
    name: Name
    labels: Labels = {}
    parent: Name | None = None
    held: bool = False
    state: TaskState = TaskState.PENDING
    state_message: Sentence | None = None
    created_at: datetime
    started_at: datetime | None = None
    state_changed_at: datetime
    vm_name: str | None = None
    vm_ip: str | None = None
    machine_epoch: str | None = None
    host: str | None = None
    exit_code: int | None = None
    cause: Cause | None = None
    error: Sentence | None = None
    ssh_command: Sentence | None = None
    preserved_until: datetime | None = None
    decision_until: datetime | None = None
    base_commit: Name | None = None
    continues: list[Name] = []
    result: Result | None = None
    output: Any = None
    usage: TokenUsage | None = None
    network_policy: NetworkPolicy | None = None
    network_in_force: bool = False
    network: NetworkUse | None = None
    pushed: Pushed | None = None
    progress: AgentProgress = Field(default_factory=AgentProgress)
    transitions: list[Transition] = []
    takes_messages: bool = True
    waiting_messages: int = 0
    undelivered_messages: list[str] = []
    permission_requests: list[PermissionRequest] = []
    notes: list[str] = []
    told: Told | None = None
    manifest: Manifest | None = None
