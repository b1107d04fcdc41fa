"""The MCP servers of a manifest: the shape that Claude Code reads, and what of it would be of no use in a run.

Claude Code leaves out a server whose entry has another shape, and says so nowhere that a person looks.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from foundation.faults import Fault, below
from foundation.urls import is_telling
from workflows.specs.hosts import host_name, rules
from workflows.specs.wire import NetworkMode, NetworkPolicy

_REFERENCE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(:-[^}]*)?\}")
_ALWAYS_SET = frozenset({"HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH", "PWD"})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_PORTS = {"http": 80, "ws": 80}


def _named(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://", "ws://", "wss://", "${")):
        raise ValueError("must be a URL that begins with http:// or https://")
    try:
        urlsplit(text)
    except ValueError:
        raise ValueError("is no URL: its host cannot be read") from None
    if re.search(r"[\s\\\x00-\x1f]", text):
        raise ValueError("is no URL: it holds white space or a backslash")
    return text


class Server(BaseModel):
    """One server: a command that is started in the machine, or a URL. What else Claude Code may read is let through."""

    model_config = ConfigDict(extra="allow")

    type: Literal["stdio", "http", "sse", "ws"] | None = None
    command: Annotated[str, AfterValidator(_named)] | None = None
    args: list[str] = Field(default=[])
    env: dict[str, str] = Field(default={})
    url: Annotated[str, AfterValidator(_address)] | None = None
    headers: dict[str, str] = Field(default={})

    @model_validator(mode="after")
    def _one_kind(self) -> Server:
        if self.command is not None and self.url is not None:
            raise ValueError("has both 'command' and 'url'; keep the one that is meant")
        if self.command is None and self.url is None:
            raise ValueError("needs 'command' (and 'args'), or 'type' and 'url'")
        if self.url is not None and self.type in {None, "stdio"}:
            raise ValueError("has a 'url' and needs its 'type': http or sse")
        if self.command is not None and self.type not in {None, "stdio"}:
            raise ValueError(f"has a 'command' and the type '{self.type}'; write type stdio, or none")
        return self


class Configuration(BaseModel):
    """``{"mcpServers": {NAME: server}}``."""

    model_config = ConfigDict(extra="allow")

    mcpServers: dict[Annotated[str, AfterValidator(_named)], Server]  # noqa: N815 -- so it is written


def errors(config: Any) -> list[Any]:
    """What keeps Claude Code from reading the configuration, as pydantic's error details."""
    if not isinstance(config, dict):
        return []
    try:
        Configuration.model_validate(config)
    except ValidationError as error:
        return list(error.errors(include_url=False, include_input=False, include_context=False))
    return []


def warnings(config: dict[str, Any], secrets: Collection[str], field: str, network: NetworkPolicy) -> Iterator[Fault]:
    """What is read and will not do what it seems to.

    ``secrets`` are the names that a reference may have, ``network`` is what the machine may reach.
    """
    for key in config.keys() - {"mcpServers"}:
        yield Fault(below(field, str(key)), "changes nothing: Claude Code reads 'mcpServers' only", "unused")
    for name, server in config["mcpServers"].items():
        where = below(below(field, "mcpServers"), name)
        yield from _kept_literals(server, where)
        if isinstance(server.get("url"), str) and (why := _out_of_reach(server["url"], network)):
            yield Fault(below(where, "url"), why, "unreachable")
        unknown = sorted(_references(server) - set(secrets) - _ALWAYS_SET)
        if unknown:
            message = f"refers to ${{{unknown[0]}}}, which no secret is called that the agent gets; add it to 'secrets'"
            yield Fault(where, message, "unknown_reference")


def _kept_literals(server: dict[str, Any], where: str) -> Iterator[Fault]:
    for part in ("env", "headers"):
        for name, value in (server.get(part) or {}).items():
            if is_telling(name) and _is_literal(value):
                yield _literal(below(below(where, part), name), name)
    for index, (before, text) in enumerate(pairwise(["", *(server.get("args") or [])])):
        assigned, mark, value = text.partition("=" if "=" in text.partition(":")[0] else ":")
        if before.startswith("-") and is_telling(before) and not text.startswith("-"):
            assigned, mark, value = before, "=", text
        if mark and is_telling(assigned) and _is_literal(value):
            yield _literal(below(below(where, "args"), index), assigned)


def _literal(field: str, name: str) -> Fault:
    message = f"is kept with the run as it is written; name a secret of 'secrets' (${{{_variable(name)}}})"
    return Fault(field, message, "literal_secret")


def _is_literal(value: str) -> bool:
    """Whether the value is written out, or as what a reference stands for when there is no such secret."""
    return bool(value.strip()) and all(match[2] not in {None, ":-"} for match in _REFERENCE.finditer(value))


def _variable(name: str) -> str:
    return re.sub(r"[^A-Z0-9_]", "_", name.lstrip("-").upper()) if name.isascii() else "NAME"


def _out_of_reach(url: str, network: NetworkPolicy) -> str | None:
    """Why a machine with this network does not reach the URL; None when it may."""
    if url.startswith("${") or network.mode is NetworkMode.FULL:
        return None
    try:
        parts = urlsplit(url)
        written, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 443)
        if written in _LOOPBACK or "${" in parts.netloc:
            return None
        host = host_name(written)
    except ValueError:
        return "cannot be reached: its host is none that a rule can name"
    if network.mode is NetworkMode.ISOLATED:
        return "cannot be reached: the machine's network is isolated; start the server in the machine ('command')"
    if any(rule.allows(host, port) for rule in rules(network.hosts)):
        return None
    return f"cannot be reached unless this installation always allows it: add '{host}' to vm.allowed_hosts"


def _references(part: Any) -> set[str]:
    """Names that the texts in the part refer to without a default."""
    if isinstance(part, str):
        return {match[1] for match in _REFERENCE.finditer(part) if not match[2]}
    parts = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return set().union(*map(_references, parts))
