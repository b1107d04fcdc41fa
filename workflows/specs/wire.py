"""The task manifest as processes hand it to one another: its fields, types and defaults, and none of its rules.

What a user writes is held to the rules of ``workflows.specs.manifest``, whose models are these with every rule added. A
message is not: it may come from an older process, whose rules were others, or from a newer one, whose fields are more.
Both must be understood, so unknown fields are left out at every depth, and no value is refused for what it says.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from foundation.units import parse_duration

#: The branch of a repository whose default branch is meant.
DEFAULT_BRANCH = "HEAD"


class NetworkMode(StrEnum):
    """What the guest can reach beside the model gateway."""

    ISOLATED = "isolated"
    OUTBOUND = "outbound"
    FULL = "full"


class Part(BaseModel):
    """Base of the manifest's parts."""

    model_config = ConfigDict(extra="ignore")


class Metadata(Part):
    """Name, id and labels of the run. Without an id the server makes one."""

    id: str | None = Field(None, description="Unique id; made by the server when absent")
    name: str = Field(description="Shown in lists")
    labels: dict[str, str] = Field(default={}, description="Filterable key-value pairs")


class PullRequest(Part):
    """What asks for the pushed branch to be merged: a pull request, which GitLab calls a merge request."""

    title: str | None = Field(None, description="Its title; default: the run's name")
    body: str = Field("", description="Its text")
    base: str | None = Field(None, description="Branch into which it is to be merged; default: repository.branch")
    draft: bool = Field(False, description="Open it as a draft")
    credentials: str | None = Field(
        None, description="Secret of this manifest for the git host's API: a token; default: that of the push"
    )


class Push(Part):
    """The branch to which a run that succeeds pushes its work, from the VM host."""

    branch: str | None = Field(None, description="Its name; default: taskyard/ and the run's id")
    message: str | None = Field(
        None, description="Message of the commit of what the agent has not committed itself; default: the run's name"
    )
    author: str | None = Field(
        None, description="Author of that commit, as Name <address>; default: TASKYARD_GIT_AUTHOR"
    )
    credentials: str | None = Field(
        None, description="Secret of this manifest that may write; default: repository.credentials"
    )
    ci_files: bool = Field(
        False, description="Push also changes of files that git hosts act on by themselves, such as .github/workflows"
    )
    pull_request: PullRequest | None = Field(None, description="Open a pull request; {} takes every default")


class Repository(Part):
    """Where the work is. The machine never needs the network to get it."""

    url: str = Field(description="https, http, ssh or scp-like URL; file by setting")
    branch: str = Field(description="Branch to check out; HEAD: the default one of its server")
    commit: str | None = Field(None, description="Commit to check out instead of the branch's tip")
    subpath: str | None = Field(None, description="Directory in the repository in which the agent starts")
    credentials: str | None = Field(
        None,
        description="Secret of this manifest that opens the repository: a token, user:token, or an SSH private key",
    )
    known_hosts: str | None = Field(
        None, description="Keys of the SSH server, as lines of known_hosts; default: those that the VM host knows"
    )
    submodules: bool = Field(False, description="Clone the submodules too, those of submodules included")
    lfs: bool = Field(False, description="Fetch the contents of files of git LFS")
    push: Push | None = Field(None, description="Push the work of a run that succeeds to a branch; {} to its own")


class Claude(Part):
    """How Claude Code is run."""

    prompt: str = Field(description="What the agent is to do")
    headless: bool = Field(True, description="End the session after the result when no message is waiting")
    skip_permissions: bool = Field(True, description="Let the agent use its tools without asking")
    permission_timeout: str = Field(
        "30m", description="How long what the agent asks may go unanswered: then it is denied"
    )
    output_format: str = Field(
        "stream-json", description="Format of the run log's stdout; the agent's own event stream"
    )
    model: str = Field("claude-sonnet-4-5-20250929", description="Model name passed to Claude Code")
    allowed_tools: list[str] = Field(default=[], description="Tools the agent may use; empty means all")
    mcp_config: dict[str, Any] | None = Field(None, description="MCP servers; ${NAME} names a secret of the run")
    max_turns: int | None = Field(None, description="Most turns the agent may take")
    max_budget_usd: float | None = Field(None, description="Most that it may cost in US dollars, by the price table")
    max_tokens_total: int | None = Field(None, description="Most tokens it may use, those of the cache counted in")
    effort: str | None = Field(
        None, description="How hard the model thinks: low, medium, high, xhigh or max; default: as the model does"
    )
    permission_mode: str | None = Field(
        None, description="Claude Code's own mode: default, acceptEdits, plan, auto, dontAsk or bypassPermissions"
    )
    output_schema: dict[str, Any] | None = Field(
        None, description="JSON Schema of the output that the run is to end with, which its status then has"
    )

    def permission_wait(self) -> timedelta:
        """How long what the agent asks may go unanswered."""
        return timedelta(seconds=parse_duration(self.permission_timeout))


class Resume(Part):
    """An earlier run that this one continues: on its files, and in its agent's conversation."""

    run: str = Field(description="Id of the run, which has ended; of the same repository and branch")
    conversation: bool = Field(True, description="Continue the agent's conversation too; false: its files alone")


class NetworkPolicy(Part):
    """What a guest may reach beside the model gateway: ``hosts`` are host rules (``workflows.specs.hosts``).

    They count in the mode ``outbound`` alone: ``isolated`` reaches none, and ``full`` every public one.
    """

    mode: NetworkMode = NetworkMode.ISOLATED
    hosts: list[str] = []


class VmSpec(Part):
    """Shape and network of the machine."""

    profile: str = Field("agentic-dev", description="Guest image profile")
    cpus: int = Field(4, description="Virtual CPUs")
    memory: str = Field("8G", description="Memory, such as 512M or 8G")
    disk: str = Field("40G", description="Size of the root disk and of the workspace disk, both thin")
    network_mode: NetworkMode = Field(NetworkMode.ISOLATED, description="isolated, outbound or full")
    allowed_hosts: list[str] = Field(default=[], description="Host rules that outbound mode lets through")

    def network(self) -> NetworkPolicy:
        """The policy with which the machine starts."""
        return NetworkPolicy(mode=self.network_mode, hosts=self.allowed_hosts)


class Injection(Part):
    """Requests into which the egress proxy puts a secret, whose value then never enters the machine."""

    hosts: list[str] = Field(description="Host rules; without a port, port 443. Over TLS alone")
    header: str = Field("Authorization", description="Header of the request that holds the value")
    format: str = Field("Bearer {}", description="The header's value, with {} in the secret's place")


class SecretReference(Part):
    """A secret by reference: resolved on the VM host, never written to history."""

    name: str = Field(description="Environment variable of the agent that holds the value")
    source: str = Field(
        description="env: the worker's environment; file: a file of the VM host; vault: Vault; environment: a sandbox "
        "environment of the API"
    )
    key: str = Field(
        description="Variable name; absolute path; path below Vault's mount, as path or path:field; ID/NAME of the "
        "environment and its variable"
    )
    inject: Injection | None = Field(
        None, description="Give the agent a placeholder, and put the value into requests to these hosts"
    )


class Lifecycle(Part):
    """Time limits and what happens at the end."""

    timeout: str = Field("24h", description="Longest run of the agent")
    failure_action: str = Field("destroy", description="What becomes of a failed machine: destroy or preserve")
    artifact_patterns: list[str] = Field(default=[], description="Globs from the top of the workspace")
    stage_timeout: str = Field("15m", description="Longest clone")
    provision_timeout: str = Field("10m", description="Longest machine start")
    hang_timeout: str = Field("30m", description="Longest time without output of the agent")
    budget_action: str = Field("fail", description="What becomes of a run that has used up its budget: fail or pause")
    decision_timeout: str = Field("168h", description="How long a paused run waits for somebody to continue it")

    def seconds(self, field: str) -> timedelta:
        """The named duration as a timedelta."""
        return timedelta(seconds=parse_duration(getattr(self, field)))


class Manifest(Part):
    """A task, whole."""

    version: str = "1"
    kind: str = "Task"
    metadata: Metadata
    repository: Repository
    claude: Claude
    vm: VmSpec = Field(default_factory=VmSpec)
    secrets: list[SecretReference] = []
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    resume: Resume | None = Field(None, description="The earlier run that this one continues")

    def credentials(self) -> SecretReference | None:
        """The secret that opens the repository."""
        return self._named(self.repository.credentials)

    def push_credentials(self) -> SecretReference | None:
        """The secret with which the run's work is pushed."""
        push = self.repository.push
        return self._named((push and push.credentials) or self.repository.credentials)

    def api_credentials(self) -> SecretReference | None:
        """The secret for the API of the repository's git host."""
        push = self.repository.push
        asked = push and push.pull_request
        return self._named(asked.credentials) if asked and asked.credentials else self.push_credentials()

    def guest_secrets(self) -> list[SecretReference]:
        """What the guest gets: all but the secrets that are for git and its host alone."""
        kept = {each.name for each in (self.credentials(), self.push_credentials(), self.api_credentials()) if each}
        return [secret for secret in self.secrets if secret.name not in kept or secret.inject is not None]

    def _named(self, name: str | None) -> SecretReference | None:
        return next((secret for secret in self.secrets if secret.name == name), None)
