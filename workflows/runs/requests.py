"""The steps of a run as messages: what each is asked, and what it answers."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from pydantic import ConfigDict, Field

from workflows.messages import Message, Name, Result, Sentence
from workflows.runs.budget import Budget
from workflows.runs.messages import AgentProgress, NetworkUse, TaskStatus, TokenUsage
from workflows.runs.states import Cause
from workflows.specs.wire import Claude, NetworkPolicy, Repository, Resume, SecretReference, VmSpec


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


class StageRequest(Message):
    """Make the workspace image of a repository; ``disk`` is the manifest's size of it.

    ``vm`` is the machine that the host may start meanwhile. ``credentials`` open the repository. ``resume`` names the
    run whose files and conversation are put into it.
    """

    task_id: str
    machine_id: str
    repository: Repository
    disk: str
    vm: VmSpec | None = None
    credentials: SecretReference | None = None
    resume: Resume | None = None


class StagedSubmodule(Message):
    """A submodule in the workspace, at ``path`` from its top; ``mirror`` is the name of its mirror on the host."""

    path: str
    url: str
    commit: str
    mirror: str


class StageResult(Message):
    """``workspace_image`` is a path on the host, ``mirror`` the name of the repository's mirror. Sizes in bytes.

    ``conversation`` is the id of the one that the agent is to continue, which lies in the workspace. ``notes`` are
    sentences about what of the earlier run is missing.
    """

    base_commit: str
    workspace_image: str
    files: int = 0
    size_bytes: int = 0
    mirror: str = ""
    submodules: list[StagedSubmodule] = []
    conversation: str | None = None
    notes: list[Sentence] = []


class ProvisionRequest(Message):
    """Make the reserved machine run, with the workspace attached, and what it may reach known to its host before.

    Runs of earlier versions do not say ``network``: theirs is that of ``vm``.
    """

    task_id: str
    machine_id: str
    vm: VmSpec
    workspace_image: str
    network: NetworkPolicy | None = None


class ProvisionResult(Message):
    """The running machine; ``image`` is the guest image's digest. Hosts of before say no ``machine_epoch``."""

    vm_name: str
    vm_ip: str
    acceleration: str
    image: str
    boot_seconds: float
    machine_epoch: str | None = None


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
    """Start (once) and follow the agent. ``secrets`` are redacted from what it writes; it may spend the ``budget``.

    ``conversation`` is the id of the one that it continues.
    """

    task_id: str
    machine_id: str
    claude: Claude
    subpath: str | None = None
    secrets: list[SecretReference] = []
    hang_timeout: timedelta
    budget: Budget | None = None
    conversation: str | None = None


class AgentResult(Message):
    """How the agent ended. ``cause`` is null when it succeeded: a result that is no error, exit code 0, a model asked.

    A follower that finds a reason to end the agent does not do so itself, since the stop may outlast its attempt: it
    gives the reason as ``cause`` with ``running``, and the workflow, which keeps it, stops the agent. ``output`` fits
    the manifest's ``claude.output_schema``; null without one.
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
    output: Any = None
    usage: TokenUsage | None = None
    network: NetworkUse | None = None
    progress: AgentProgress = Field(default_factory=AgentProgress)


class StopAgentRequest(Message):
    """Stop the agent: TERM, 30 s of grace, KILL; with ``force`` KILL at once.

    With ``machine``, end the machine's process from its host, for a guest in which nothing else helps; its disks stay.
    """

    machine_id: str
    force: bool = False
    machine: bool = False


class SetNetworkRequest(Message):
    """Bring a policy into force for a machine. ``revision`` counts a run's policies: an older one changes nothing.

    ``changes`` says in words what differs from the policy before, for the run's log.
    """

    task_id: str
    machine_id: str
    policy: NetworkPolicy
    revision: int
    changes: Sentence = ""


class PauseRequest(Message):
    """Save the machine's memory and give its room back; its host keeps it until ``deadline``. ``message`` says why."""

    task_id: str
    machine_id: str
    deadline: datetime
    message: Sentence


class PauseResult(Message):
    """What the agent has used by the time at which nothing that it asked for is under way any more."""

    usage: TokenUsage | None = None


class ResumeRequest(Message):
    """Let a paused machine go on with this budget, once its host has room for it: ``since`` is its place in the line.

    Its host keeps it until ``deadline``.
    """

    task_id: str
    machine_id: str
    budget: Budget
    deadline: datetime
    since: datetime


class DeliverRequest(Message):
    """Hand a user message to the agent, once for each ``message_id``."""

    task_id: str
    machine_id: str
    message_id: str
    text: str


class SteerRequest(Message):
    """Write one line of Claude Code's control protocol to the agent's stdin, once for each ``control_id``.

    ``event`` goes into the run's log then. ``since``: an earlier step, begun then, may have done all of it.
    """

    task_id: str
    machine_id: str
    control_id: str
    line: dict[str, Any]
    event: dict[str, Any] | None = None
    since: datetime | None = None


class CollectRequest(Message):
    """Collect artifacts from the workspace disk, whether the guest lives or not.

    ``status`` and ``vm`` become metadata.json; ``secrets`` are redacted from what is stored. With ``release`` the
    machine is torn down once all is stored.
    """

    task_id: str
    machine_id: str
    repository: Repository
    base_commit: str
    mirror: str = ""
    submodules: list[StagedSubmodule] = []
    patterns: list[str]
    secrets: list[SecretReference] = []
    agent: AgentResult | None = None
    status: TaskStatus
    vm: VmSpec | None = None
    release: bool = False


class Artifact(Message):
    """One stored artifact. ``name`` is unique in the run; ``path`` is relative to the workspace; sha256 in hex.

    A ``hidden`` one is kept for a run that continues this one, and is listed only for who asks for it.
    """

    name: str
    path: str
    size_bytes: int
    content_type: str
    sha256: str
    created_at: datetime
    redacted: bool = False
    hidden: bool = False


class CollectResult(Message):
    """What was stored, whether the machine is torn down, and sentences about what the artifacts lack.

    ``network`` is what the guest asked of the network until then; hosts of earlier versions do not say it. ``head`` is
    the commit that the guest had checked out, when it is the agent's own and in the bundle.
    """

    artifacts: list[Artifact] = []
    released: bool = False
    notes: list[str] = []
    network: NetworkUse | None = None
    head: str | None = None


class PushRequest(Message):
    """Push what was collected to a branch, and ask for it to be merged, as ``repository.push`` says.

    ``head`` is the agent's own last commit. ``at`` is the time of a commit that is made: the same for every attempt.
    ``secrets`` must not be in what is pushed.
    """

    task_id: str
    machine_id: str
    name: Name
    repository: Repository
    base_commit: str
    mirror: str = ""
    head: str | None = None
    at: datetime
    secrets: list[SecretReference] = []
    credentials: SecretReference | None = None
    api_credentials: SecretReference | None = None


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
