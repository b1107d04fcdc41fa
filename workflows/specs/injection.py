"""Injected credentials: which hosts a secret is for, and how it stands in a request to them.

The guest has a placeholder in the secret's place; the egress proxy puts the value into requests to these hosts, over
TLS alone. A rule without a port is the port 443: what is spoken at another one has to be said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Annotated

from pydantic import AfterValidator, ConfigDict, Field, field_validator

from foundation.faults import Fault
from workflows.specs import wire
from workflows.specs.hosts import HostRule, host_rule, is_address
from workflows.specs.wire import NetworkMode

HTTPS_PORT = 443
MAX_HOSTS = 20
MAX_FORMAT = 200
_MARK = "{}"
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_PRINTED = re.compile(r"[\x20-\x7e]*")
# What frames a message, chooses its host or belongs to one connection is never a credential's place.
_FRAMING = frozenset(
    {"accept-encoding", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
     "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
)  # fmt: skip
_FRAMING_PREFIX = "proxy-"


def injected_host(text: str) -> HostRule:
    """The rule that is written there, with the port that it has by itself. Raises ValueError with a sentence."""
    rule = host_rule(text)
    if is_address(rule.host):
        raise ValueError("is an address; a secret is put in for hosts with a name, whose certificates say it")
    return HostRule(rule.host, rule.port or HTTPS_PORT, rule.below)


def _host(text: str) -> str:
    injected_host(text)
    return text


class Injection(wire.Injection):
    """Where a secret's value is put in instead of being given to the guest."""

    model_config = ConfigDict(extra="forbid")

    hosts: list[Annotated[str, AfterValidator(_host)]] = Field(min_length=1, max_length=MAX_HOSTS)

    @field_validator("header")
    @classmethod
    def _credential_header(cls, value: str) -> str:
        if not _TOKEN.fullmatch(value):
            raise ValueError("is no name of a header")
        if value.lower() in _FRAMING or value.lower().startswith(_FRAMING_PREFIX):
            raise ValueError(f"'{value}' belongs to the connection or the message; no host reads a credential there")
        return value

    @field_validator("format")
    @classmethod
    def _one_mark(cls, value: str) -> str:
        if value.count(_MARK) != 1:
            raise ValueError("must hold '{}' once, where the secret's value stands; such as 'Bearer {}'")
        if not _PRINTED.fullmatch(value) or value != value.strip() or len(value) > MAX_FORMAT:
            raise ValueError(f"must be printed ASCII without spaces around it, {MAX_FORMAT} characters at most")
        return value


def faults(secrets: Sequence[wire.SecretReference], vm: wire.VmSpec) -> Iterator[Fault]:
    """What keeps the secrets of a manifest from being put in: their network, and one another."""
    taken: list[tuple[HostRule, str, str]] = []
    outbound = vm.network_mode is NetworkMode.OUTBOUND
    allowed = [host_rule(text) for text in vm.allowed_hosts] if outbound else []
    for index, secret in enumerate(secrets):
        if secret.inject is None:
            continue
        place = f"secrets[{index}].inject"
        if vm.network_mode is NetworkMode.ISOLATED:
            message = (
                "has no effect in a machine that reaches no host: give vm.network_mode 'outbound' and the hosts in "
                "vm.allowed_hosts"
            )
            yield Fault(place, message, "unreachable")
            continue
        for number, text in enumerate(secret.inject.hosts):
            rule, field = injected_host(text), f"{place}.hosts[{number}]"
            if outbound and not any(covers(each, rule) for each in allowed):
                yield Fault(
                    field, f"is not allowed by the network's rules; add '{rule}' to vm.allowed_hosts", "blocked"
                )
            header = secret.inject.header.lower()
            for other, others_header, name in taken:
                if header == others_header and name != secret.name and (covers(other, rule) or covers(rule, other)):
                    message = (
                        f"takes the header {secret.inject.header} already from secret '{name}' (for '{other}'); "
                        "a host has one secret for a header"
                    )
                    yield Fault(field, message, "taken")
                    break
            taken.append((rule, header, secret.name))


def covers(wider: HostRule, rule: HostRule) -> bool:
    """Whether everything that ``rule`` names is named by ``wider`` too."""
    if wider.port not in {None, rule.port}:
        return False
    if not wider.below:
        return not rule.below and rule.host == wider.host
    return rule.host.endswith("." + wider.host) or (rule.below and rule.host == wider.host)
