"""What a user may write in a manifest: the fields of the wire, each with its rules (contract, section 1)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from foundation.documents import Document, Unreadable, read_json, read_yaml, text_of
from foundation.errors import InvalidManifest
from foundation.faults import Fault
from foundation.schemas.json_schema import fault as schema_fault
from foundation.units import parse_size
from workflows.specs import access, faults, injection, mcp, patterns, pushing, wire
from workflows.specs.hosts import MAX_RULES
from workflows.specs.values import (
    MAX_ENTRY,
    Duration,
    Entry,
    HostText,
    LabelKey,
    LabelValue,
    Line,
    Number,
    Size,
    Words,
    at_most,
    one_line,
)

# The whole manifest as JSON: what is larger belongs into the repository, and Temporal takes no message of 2 MiB.
MAX_BYTES = 2**20
MAX_NAME = 200
MAX_LABELS = 64
MAX_URL = 2048
MAX_REF = 255
MAX_PATH = 1024
MAX_ENTRIES = 200
MAX_SECRETS = 64

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_ENVIRONMENT_KEY = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}/[A-Za-z_][A-Za-z0-9_]{0,127}")
_SCP_URL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*@[A-Za-z0-9][A-Za-z0-9.-]*:(?!//).+")
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")
_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\[\]-]{0,199}")
# Variables of the agent's session that Taskyard or the shell sets: a secret of this name would not arrive, or do harm.
_RESERVED = frozenset(
    {"BASHOPTS", "DISABLE_AUTOUPDATER", "ENV", "EUID", "HOME", "IFS", "IS_SANDBOX", "LANG", "LOGNAME", "OLDPWD", "PATH",
     "PPID", "PROMPT_COMMAND", "PS4", "PWD", "SHELL", "SHELLOPTS", "SHLVL", "UID", "USER"}
)  # fmt: skip
_RESERVED_PREFIXES = ("ANTHROPIC_", "BASH_", "CLAUDE_CODE_", "LD_")


def _has_host(url: str) -> bool:
    """Whether the URL has a host that is no option of a command, and a port only if it is a number."""
    try:
        parts = urlsplit(url)
        return parts.port != 0 and (parts.hostname or "-")[0] != "-"
    except ValueError:
        return False


def _is_vault_key(key: str) -> bool:
    """Whether the key is a path of names, with or without a field: nothing that could lead elsewhere."""
    path, colon, field = key.rpartition(":")
    names = (path if colon else key).split("/")
    return (
        not re.search(r"[?#\\]", key)
        and all(name == name.strip() and name.strip(".") for name in names)
        and (not colon or bool(field.strip()))
    )


# Unknown fields are refused. What a field may hold is said here, and what it is in the wire's form of it.
_STRICT = ConfigDict(extra="forbid")


class Metadata(wire.Metadata):
    """Name, id and labels of the run. Without an id the server makes one."""

    model_config = _STRICT

    name: Annotated[Line, at_most(MAX_NAME)]
    labels: dict[LabelKey, LabelValue] = Field(default={}, max_length=MAX_LABELS)

    @field_validator("id", mode="before")
    @classmethod
    def _blank_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("id")
    @classmethod
    def _safe_id(cls, value: str | None) -> str | None:
        if value is not None and not RUN_ID.fullmatch(value):
            raise ValueError(
                "may hold letters, digits, '.', '_' and '-', starts with a letter or digit, 63 characters at most"
            )
        return value


class Repository(wire.Repository):
    """Where the work is. The machine never needs the network to get it."""

    model_config = _STRICT

    url: Annotated[Line, at_most(MAX_URL)]
    branch: Annotated[Words, at_most(MAX_REF)]
    subpath: Annotated[str, AfterValidator(one_line), at_most(MAX_PATH)] | None = None
    credentials: Annotated[Words, at_most(MAX_ENTRY)] | None = None
    known_hosts: Annotated[str, AfterValidator(access.known_hosts)] | None = None
    push: pushing.Push | None = None

    @field_validator("url")
    @classmethod
    def _transport(cls, value: str) -> str:
        if not value.startswith(("https://", "http://", "ssh://", "file://")) and not _SCP_URL.fullmatch(value):
            raise ValueError("must start with https://, http://, ssh:// or be of the form user@host:path")
        if re.search(r"\s", value) or not (
            _SCP_URL.fullmatch(value) or value.startswith("file://") or _has_host(value)
        ):
            raise ValueError("is no URL: it has no host, a port that is none, or white space")
        if "${" in value:
            raise ValueError(
                "is taken as it stands: ${NAME} means nothing here; repository.credentials names the secret for it"
            )
        return value

    @field_validator("branch")
    @classmethod
    def _plain_ref(cls, value: str) -> str:
        return pushing.branch_name(value)

    @field_validator("commit")
    @classmethod
    def _hex_commit(cls, value: str | None) -> str | None:
        if value is not None and not _COMMIT.fullmatch(value):
            raise ValueError("must be a commit id of 7 to 64 hexadecimal digits")
        return value

    @field_validator("subpath")
    @classmethod
    def _inside(cls, value: str | None) -> str | None:
        if value is not None and (value.startswith("/") or ".." in value.split("/")):
            raise ValueError("must be a relative path inside the repository")
        return value or None


class Claude(wire.Claude):
    """How Claude Code is run."""

    model_config = _STRICT

    prompt: Words
    permission_timeout: Duration = "30m"
    output_format: Literal["stream-json"] = "stream-json"
    allowed_tools: list[Entry] = Field(default=[], max_length=MAX_ENTRIES)
    max_turns: Annotated[Number, Field(le=1_000_000)] | None = None
    max_budget_usd: Annotated[float, Field(gt=0, le=1e9, strict=True)] | None = None
    max_tokens_total: Annotated[Number, Field(le=10**15)] | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    permission_mode: Literal["default", "acceptEdits", "plan", "auto", "dontAsk", "bypassPermissions"] | None = None

    @field_validator("model")
    @classmethod
    def _model_name(cls, value: str) -> str:
        if not _MODEL.fullmatch(value):
            raise ValueError("is not a model's name: letters, digits and . _ : / @ + [ ] -, 200 characters at most")
        return value

    @model_validator(mode="after")
    def _one_rule_of_permissions(self) -> Claude:
        """A mode of its own means that permissions are not skipped, unless it is the one that skips them."""
        if self.permission_mode is not None:
            skips = self.permission_mode == "bypassPermissions"
            if "skip_permissions" in self.model_fields_set and self.skip_permissions is not skips:
                said = str(self.skip_permissions).lower()
                raise ValueError(
                    f"permission_mode '{self.permission_mode}' and skip_permissions: {said} contradict one another; "
                    "leave skip_permissions out"
                )
            self.skip_permissions = skips
        return self

    @field_validator("output_schema")
    @classmethod
    def _json_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and (reason := schema_fault(value)):
            raise ValueError(reason)
        if value is not None and value.get("type") != "object":
            raise ValueError("must say 'type: object': Claude Code gives its output as one")
        return value


class Resume(wire.Resume):
    """An earlier run that this one continues. Whether there is one is not said here."""

    model_config = _STRICT

    @field_validator("run")
    @classmethod
    def _is_an_id(cls, value: str) -> str:
        if not RUN_ID.fullmatch(value):
            raise ValueError("is no id of a run")
        return value


class VmSpec(wire.VmSpec):
    """Shape and network of the machine. Whether a host can give it is not said here."""

    model_config = _STRICT

    profile: str = Field("agentic-dev", pattern=r"^[a-z0-9][a-z0-9-]{0,40}\z")
    cpus: Number = 4
    memory: Size = "8G"
    disk: Size = "40G"
    allowed_hosts: list[HostText] = Field(default=[], max_length=MAX_RULES)

    @field_validator("memory")
    @classmethod
    def _enough_to_boot(cls, value: str) -> str:
        if parse_size(value) < 512 * 2**20:
            raise ValueError(f"'{value}' is too little for a guest to start; give at least 512M")
        return value

    @field_validator("disk")
    @classmethod
    def _enough_for_image(cls, value: str) -> str:
        if parse_size(value) < 4 * 2**30:
            raise ValueError(f"'{value}' is too little for the guest image; give at least 4G")
        return value


class SecretReference(wire.SecretReference):
    """A secret by reference: resolved on the VM host, never written to history."""

    model_config = _STRICT

    source: Literal["env", "file", "vault", "environment"]
    key: Entry
    inject: injection.Injection | None = None

    @field_validator("name")
    @classmethod
    def _env_name(cls, value: str) -> str:
        if not _ENV_NAME.fullmatch(value):
            raise ValueError("is not a name for an environment variable: letters, digits and '_', 128 at most")
        if value in _RESERVED or value.startswith(_RESERVED_PREFIXES):
            raise ValueError(f"'{value}' is set for the agent by Taskyard or its shell; give the secret another name")
        return value

    @model_validator(mode="after")
    def _key_of_source(self) -> SecretReference:
        if self.source == "file" and not self.key.startswith("/"):
            raise ValueError("key must be an absolute path when source is file")
        if self.source == "env" and re.search(r"[\s=]", self.key):
            raise ValueError("key must be the name of an environment variable when source is env")
        if self.source == "environment" and not _ENVIRONMENT_KEY.fullmatch(self.key):
            raise ValueError("key must be ID/NAME when source is environment: a sandbox environment and its variable")
        if self.source == "vault" and not _is_vault_key(self.key):
            raise ValueError(
                "key must be path or path:field when source is vault: names divided by '/', without '..', '?' and '#', "
                "below the mount"
            )
        return self


class Lifecycle(wire.Lifecycle):
    """Time limits and what happens at the end."""

    model_config = _STRICT

    timeout: Duration = "24h"
    failure_action: Literal["destroy", "preserve"] = "destroy"
    artifact_patterns: list[Annotated[str, AfterValidator(patterns.checked)]] = Field(default=[])
    stage_timeout: Duration = "15m"
    provision_timeout: Duration = "10m"
    hang_timeout: Duration = "30m"
    budget_action: Literal["fail", "pause"] = "fail"
    decision_timeout: Duration = "168h"

    @field_validator("artifact_patterns")
    @classmethod
    def _few_patterns(cls, value: list[str]) -> list[str]:
        patterns.checked_together(value)
        return value


class Manifest(wire.Manifest):
    """A task as its author writes it."""

    model_config = _STRICT

    version: Literal["1"] = "1"
    kind: Literal["Task"] = "Task"
    metadata: Metadata
    repository: Repository
    claude: Claude
    vm: VmSpec = Field(default_factory=VmSpec)
    secrets: list[SecretReference] = Field(default=[], max_length=MAX_SECRETS)  # type: ignore[assignment] # stricter
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)
    resume: Resume | None = None

    @field_validator("secrets")
    @classmethod
    def _unique_names(cls, value: list[SecretReference]) -> list[SecretReference]:
        seen: set[str] = set()
        for secret in value:
            if secret.name in seen:
                raise ValueError(f"secret '{secret.name}' is given twice")
            seen.add(secret.name)
        return value


def load_yaml(text: str | bytes) -> Document:
    """What stands in YAML text. Raises InvalidManifest when it is not YAML, or would cost too much to read."""
    try:
        return read_yaml(text if isinstance(text, str) else text_of(text))
    except Unreadable as error:
        raise unreadable("YAML", error) from None


def load_json(text: str | bytes) -> Document:
    """What stands in JSON text. Raises InvalidManifest when it is not JSON, or would cost too much to read."""
    try:
        return read_json(text if isinstance(text, str) else text_of(text))
    except Unreadable as error:
        raise unreadable("JSON", error) from None


def unreadable(kind: str, error: Exception) -> InvalidManifest:
    """The refusal of text that could not be read."""
    return InvalidManifest.of([Fault("", f"The manifest is not readable as {kind}: {error}", "syntax")])


def parse(data: Any, found: Sequence[Fault] = ()) -> Manifest:
    """A manifest from parsed data, of which some faults may be ``found`` already.

    Raises InvalidManifest whose details list every fault with its field.
    """
    if not isinstance(data, dict):
        message = "The manifest is not a mapping; start it with 'version: \"1\"' and 'kind: Task'."
        raise InvalidManifest.of([*found, Fault("", message, "type")])
    claude = data.get("claude")
    config = claude.get("mcp_config") if isinstance(claude, dict) else None
    wrong = [*found, *faults.of_credentials(data)]
    try:
        manifest = Manifest.model_validate(data)
    except ValidationError as error:
        wrong += faults.of_rules(error.errors(include_url=False, include_input=False), Manifest)
    else:
        wrong += [] if wrong else _together(manifest)
    wrong += faults.of_rules(mcp.errors(config), Manifest, ("claude", "mcp_config"))
    if wrong:
        raise InvalidManifest.of(wrong)
    return manifest


def _together(manifest: Manifest) -> Iterator[Fault]:
    """Faults of parts that are right by themselves."""
    yield from _too_large(manifest)
    yield from injection.faults(manifest.secrets, manifest.vm)
    yield from access.faults(manifest.repository, manifest.secrets)
    yield from pushing.faults(manifest.repository, manifest.secrets)


def _too_large(manifest: Manifest) -> Iterator[Fault]:
    size = len(manifest.model_dump_json().encode())
    if size > MAX_BYTES:
        prompt = len(manifest.claude.model_dump_json(include={"prompt"}).encode())
        yield Fault(
            "claude.prompt" if prompt > size // 2 else "",
            f"is too long: the manifest has {size} bytes as JSON, and {MAX_BYTES} are the most; "
            "put large inputs into the repository",
            "too_large",
        )
