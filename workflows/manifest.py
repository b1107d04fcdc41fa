"""What a user may write in a manifest: the fields of the wire, each with its rules (contract, section 1)."""

from __future__ import annotations

import difflib
import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from foundation.errors import InvalidManifest
from foundation.units import parse_duration, parse_size
from workflows import patterns, wire

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SCP_URL = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:(?!//).+")
_COMMIT = re.compile(r"[0-9a-fA-F]{7,64}")
_MAX_NODES = 100_000
_SURROGATE = re.compile("[\ud800-\udfff]")
_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def _check_size(text: str) -> str:
    parse_size(text)
    return text


def _check_duration(text: str) -> str:
    parse_duration(text)
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


Size = Annotated[str, AfterValidator(_check_size)]
Duration = Annotated[str, AfterValidator(_check_duration)]
Text = Annotated[str, AfterValidator(_not_blank)]


# Unknown fields are refused. What a field may hold is said here, and what it is in the wire's form of it.
_STRICT = ConfigDict(extra="forbid")


class Metadata(wire.Metadata):
    """Name, id and labels of the run. Without an id the server makes one."""

    model_config = _STRICT

    @field_validator("id", mode="before")
    @classmethod
    def _blank_is_absent(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("id")
    @classmethod
    def _safe_id(cls, value: str | None) -> str | None:
        if value is not None and not _TASK_ID.fullmatch(value):
            raise ValueError(
                "may hold letters, digits, '.', '_' and '-', starts with a letter or digit, 63 characters at most"
            )
        return value

    _words = field_validator("name")(_not_blank)

    @field_validator("labels")
    @classmethod
    def _label_keys(cls, value: dict[str, str]) -> dict[str, str]:
        for key in value:
            if not _LABEL_KEY.fullmatch(key):
                raise ValueError(f"label key '{key}' may hold letters, digits, '.', '_', '-' and '/', 63 at most")
        return value


class Repository(wire.Repository):
    """Where the work is. The machine never needs the network to get it."""

    model_config = _STRICT

    _words = field_validator("url", "branch")(_not_blank)

    @field_validator("url")
    @classmethod
    def _transport(cls, value: str) -> str:
        if value.startswith(("https://", "http://", "ssh://", "file://")) or _SCP_URL.fullmatch(value):
            if re.match(r"^https?://[^/@]*:[^/@]*@", value):
                raise ValueError("must not hold a password; name the credentials in the host's git configuration")
            return value
        raise ValueError("must start with https://, http://, ssh:// or be of the form user@host:path")

    @field_validator("branch")
    @classmethod
    def _plain_ref(cls, value: str) -> str:
        if value.startswith("-") or re.search(r"[\s~^:?*\[\\]|\.\.|@\{|//|\.lock$|/$|\.$", value):
            raise ValueError(f"'{value}' is not a branch name")
        return value

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

    output_format: Literal["stream-json"] = "stream-json"
    allowed_tools: list[Text] = Field(default=[])
    max_turns: int | None = Field(None, ge=1)

    _words = field_validator("prompt", "model")(_not_blank)


class VmSpec(wire.VmSpec):
    """Shape and network of the machine."""

    model_config = _STRICT

    profile: str = Field("agentic-dev", pattern=r"^[a-z0-9][a-z0-9-]{0,40}$")
    cpus: int = Field(4, ge=1)
    memory: Size = "8G"
    disk: Size = "40G"
    allowed_hosts: list[Text] = Field(default=[])

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

    source: Literal["env", "file"]
    key: Text

    @field_validator("name")
    @classmethod
    def _env_name(cls, value: str) -> str:
        if not _ENV_NAME.fullmatch(value):
            raise ValueError(f"'{value}' is not a name for an environment variable")
        return value

    @model_validator(mode="after")
    def _absolute_file(self) -> SecretReference:
        if self.source == "file" and not self.key.startswith("/"):
            raise ValueError("key must be an absolute path when source is file")
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
    secrets: list[SecretReference] = Field(default=[])  # type: ignore[assignment] # a list of the stricter form
    lifecycle: Lifecycle = Field(default_factory=Lifecycle)

    @field_validator("secrets")
    @classmethod
    def _unique_names(cls, value: list[SecretReference]) -> list[SecretReference]:
        seen: set[str] = set()
        for secret in value:
            if secret.name in seen:
                raise ValueError(f"secret '{secret.name}' is given twice")
            seen.add(secret.name)
        return value


def parse_yaml(text: str | bytes) -> Manifest:
    """A manifest from YAML text. Raises InvalidManifest with every fault."""
    return parse(load_yaml(text))


def parse_json(text: str | bytes) -> Manifest:
    """A manifest from JSON text. Raises InvalidManifest with every fault."""
    return parse(load_json(text))


def load_yaml(text: str | bytes) -> Any:
    """The data in YAML text. Raises InvalidManifest when it is not YAML."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _unreadable("YAML", error) from error


def load_json(text: str | bytes) -> Any:
    """The data in JSON text. Raises InvalidManifest when it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable("JSON", error) from error


def parse(data: Any) -> Manifest:
    """A manifest from parsed data. Raises InvalidManifest whose details list every fault with its field."""
    if not isinstance(data, dict):
        raise InvalidManifest(
            "The manifest is not a mapping; start it with 'version: \"1\"' and 'kind: Task'.",
            errors=[{"field": "", "message": "must be a mapping", "validation": "type"}],
        )
    _check_content(data)
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        faults = [_fault(item) for item in error.errors(include_url=False)]
    raise InvalidManifest(
        "; ".join(f"{fault['field']}: {fault['message']}" if fault["field"] else fault["message"] for fault in faults),
        field=faults[0]["field"],
        validation=faults[0]["validation"],
        errors=faults,
    )


def _check_content(data: Any) -> None:
    """Refuse what cannot be written down: text that is no Unicode, aliases that stand for more than memory holds."""
    pending: list[tuple[str, Any]] = [("", data)]
    seen = 0
    while pending:
        field, part = pending.pop()
        seen += 1
        if seen > _MAX_NODES:
            message = "The manifest is too large once its YAML aliases are written out; write it without them."
            raise InvalidManifest(message, errors=[{"field": "", "message": message, "validation": "too_large"}])
        if isinstance(part, dict):
            pending.extend((f"{field}.{key}".lstrip("."), value) for key, value in part.items())
            pending.extend((field, key) for key in part)
        elif isinstance(part, list):
            pending.extend((f"{field}[{index}]", value) for index, value in enumerate(part))
        elif isinstance(part, str):
            seen += len(part) // 100
            if _SURROGATE.search(part):
                message = "holds half of a character (a lone surrogate), which is no Unicode text"
                fault = {"field": _SURROGATE.sub("?", field), "message": message, "validation": "unicode"}
                raise InvalidManifest(f"{fault['field']}: {message}", errors=[fault])


def _unreadable(kind: str, error: Exception) -> InvalidManifest:
    message = f"The manifest is not readable as {kind}: {error}"
    return InvalidManifest(message, errors=[{"field": "", "message": message, "validation": "syntax"}])


def _fault(item: Any) -> dict[str, str]:
    """One pydantic error as ``{field, message, validation}``; the field is written as in the manifest."""
    field = ""
    for part in item["loc"]:
        field += f"[{part}]" if isinstance(part, int) else f"{'.' if field else ''}{part}"
    if item["type"] == "missing":
        return {"field": field, "message": "is required", "validation": "required"}
    if item["type"] == "extra_forbidden":
        return {"field": field, "message": _unknown_field(item["loc"]), "validation": "unknown"}
    message = item["msg"].removeprefix("Value error, ")
    if field == "version" and item["type"] == "literal_error":
        message = 'must be the string "1" (with quotes in YAML)'
    return {"field": field, "message": message[:1].lower() + message[1:], "validation": item["type"]}


def _unknown_field(location: tuple[str | int, ...]) -> str:
    known = _fields_at(location[:-1])
    near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known fields here: {', '.join(known)}"
    return f"is not a field of a manifest; {hint}"


def _fields_at(location: tuple[str | int, ...]) -> list[str]:
    model: type[BaseModel] = Manifest
    for part in location:
        if isinstance(part, int):
            continue
        annotation = model.model_fields[part].annotation
        arguments = getattr(annotation, "__args__", ())
        model = next(
            candidate
            for candidate in (annotation, *arguments)
            if isinstance(candidate, type) and issubclass(candidate, BaseModel)
        )
    return list(model.model_fields)
