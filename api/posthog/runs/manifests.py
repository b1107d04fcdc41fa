"""What a task and the options of a run say, as the manifest of a run that is executed here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from api.environments.core import applied
from api.posthog.forms import Form, Uuid
from api.runs.acceptance import accept
from foundation.documents import Document
from foundation.errors import InvalidBody, InvalidManifest
from foundation.faults import Fault
from foundation.git.hosts import CredentialReference, repository_of
from foundation.settings import Settings
from storage.environments.store import Environment
from workflows.parents.messages import ParentStatus
from workflows.specs.manifest import Manifest
from workflows.specs.wire import DEFAULT_BRANCH

Mode = Literal["interactive", "background"]
Adapter = Literal["claude", "codex"]

_GIT_SECRET = "GIT_HOST_TOKEN"  # noqa: S105 -- the name of a secret
_SHORT = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
_BYPASS = "bypassPermissions"
# What agents of each kind call their permission modes, and whose models they use.
_PERMISSION_MODES: Mapping[Adapter, frozenset[str]] = {
    "claude": frozenset({"default", "acceptEdits", "plan", "auto", "dontAsk", _BYPASS}),
    "codex": frozenset({"auto", "read-only", "full-access"}),
}
_PROVIDERS: Mapping[Adapter, str] = {"claude": "anthropic", "codex": "openai"}
_MOST_NAME = 200
# Fields of the manifest, as clients of this dialect know them.
_FIELDS: Mapping[str, str] = {
    "claude.prompt": "description",
    "claude.model": "model",
    "claude.effort": "reasoning_effort",
    "claude.permission_mode": "initial_permission_mode",
    "claude.output_schema": "json_schema",
    "repository.branch": "branch",
    "repository.url": "repository",
    "metadata.name": "title",
}


class RunOptions(Form):
    """How a run is to be executed, wherever that is (contract, section 1.2); what is null was not said."""

    mode: Mode | None = None
    branch: Annotated[str, Field(max_length=255)] | None = None
    sandbox_environment_id: Uuid | None = None
    pr_authorship_mode: Literal["user", "bot"] | None = None
    run_source: Literal["manual", "signal_report"] | None = None
    signal_report_id: Annotated[str, Field(max_length=200)] | None = None
    runtime_adapter: Adapter | None = None
    model: Annotated[str, Field(max_length=200)] | None = None
    reasoning_effort: Literal["low", "medium", "high", "xhigh", "max", "ultracode"] | None = None
    initial_permission_mode: Annotated[str, Field(max_length=64)] | None = None

    @field_validator("branch")
    @classmethod
    def _trimmed_branch(cls, value: str | None) -> str | None:
        return (value or "").strip() or None

    @model_validator(mode="after")
    def _belong_together(self) -> RunOptions:
        of_model = (self.runtime_adapter, self.model, self.reasoning_effort)
        if any(of_model) and not (self.runtime_adapter and self.model):
            raise ValueError("runtime_adapter and model are both required when one of them or an effort is given.")
        if self.initial_permission_mode is not None and self.runtime_adapter is None:
            raise ValueError("initial_permission_mode requires runtime_adapter.")
        return self

    @field_validator("initial_permission_mode")
    @classmethod
    def _known_to_adapter(cls, value: str | None, info: ValidationInfo) -> str | None:
        adapter: Adapter | None = info.data.get("runtime_adapter")
        if value is not None and adapter is not None and value not in _PERMISSION_MODES[adapter]:
            modes = ", ".join(sorted(_PERMISSION_MODES[adapter]))
            raise ValueError(f"'{adapter}' has no such mode; its modes are {modes}.")
        return value

    def told(self) -> dict[str, Any]:
        """As a run's state keeps them."""
        said = self.model_dump(include=set(RunOptions.model_fields) - {"branch"}, exclude_none=True)
        if self.run_source == "signal_report":
            said["pr_authorship_mode"] = "bot"
        if self.runtime_adapter is not None:
            said["provider"] = _PROVIDERS[self.runtime_adapter]
        if self.branch is not None:
            said["pr_base_branch"] = self.branch
        return said


class CloudOptions(RunOptions):
    """How a run is to be executed here."""

    @field_validator("runtime_adapter")
    @classmethod
    def _run_here(cls, value: Adapter | None) -> Adapter | None:
        if value not in {None, "claude"}:
            raise ValueError(f"'{value}' is not run in the cloud here; use 'claude', or a local run.")
        return value


def manifest_of(
    settings: Settings,
    parent: ParentStatus,
    options: CloudOptions,
    run_id: str,
    *,
    prompt: str | None = None,
    resumed: str | None = None,
    environment: Environment | None = None,
) -> Manifest:
    """The manifest of a run of the task in a sandbox environment, which goes on from the run ``resumed``, if from one.

    Raises InvalidBody, by the fields of this dialect, for what cannot be run.
    """
    if not parent.repository:
        raise InvalidBody.of([Fault("repository", "The task needs a repository to be run in the cloud.", "required")])
    claude: dict[str, Any] = {
        "prompt": prompt or parent.description or parent.title,
        "headless": options.mode != "interactive",
        "model": options.model,
        "effort": options.reasoning_effort,
        "output_schema": parent.output_schema,
    }
    permissions = options.initial_permission_mode
    if permissions is not None:
        claude |= {"permission_mode": permissions, "skip_permissions": permissions == _BYPASS}
    url, opens = _named_in_short(settings, parent.repository)
    data: dict[str, Any] = {
        "version": "1",
        "kind": "Task",
        "metadata": {"id": run_id, "name": (parent.title or f"Task {parent.number}")[:_MOST_NAME]},
        "repository": {"url": url, "branch": options.branch or DEFAULT_BRANCH},
        "claude": {name: value for name, value in claude.items() if value is not None},
        "vm": dict(settings.default_vm),
    }
    if opens is not None:
        # The work goes where it came from.
        data["secrets"] = [{"name": _GIT_SECRET, **opens.model_dump()}]
        data["repository"] |= {"credentials": _GIT_SECRET, "push": {"pull_request": {}}}
    if environment is not None:
        data = applied(environment, data)
    if resumed is not None:
        data["resume"] = {"run": resumed}
    try:
        return accept(Document(data)).manifest
    except InvalidManifest as error:
        faults = [
            Fault(_FIELDS.get(each["field"], each["field"]), each["message"], each["validation"])
            for each in error.details["errors"]
        ]
        raise InvalidBody.of(faults) from None


def _named_in_short(settings: Settings, repository: str) -> tuple[str, CredentialReference | None]:
    """The URL of a repository, which may be named as ``org/repo`` on the first git host, and what opens that host.

    Raises InvalidBody.
    """
    if _SHORT.fullmatch(repository) is None:
        return repository, None
    try:
        return repository_of(settings.git_hosts, repository)
    except ValueError as error:
        raise InvalidBody.of([Fault("repository", str(error), "invalid")]) from None
