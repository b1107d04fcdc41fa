"""Whether a machine may reach a host and port: its task's rules, and those of the operator of this host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

import structlog

from foundation.errors import HostNotReady
from foundation.settings import Settings
from workflows.specs.hosts import HostRule, host_name, host_rule, is_address
from workflows.specs.wire import NetworkMode, NetworkPolicy

#: The word among the operator's allowed hosts that stands for this host's own package registries.
REGISTRIES = "registries"
_SHOWN = 100
_PORT_DIGITS = 5
_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Target:
    """What a guest asks for: a host in the spelling that rules are compared in, and a port."""

    host: str
    port: int

    @property
    def is_address(self) -> bool:
        return is_address(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class NotNamed(Exception):
    """What a guest has written for a host and port is none. ``host`` is what can be shown of it, with the port or 0."""

    def __init__(self, host: str, port: int, reason: str) -> None:
        super().__init__(reason)
        self.host = host
        self.port = port


@dataclass(frozen=True)
class Verdict:
    """Whether a policy lets a connection through.

    ``reason`` says why not, when it is not simply that no rule names the host. ``named`` is true when a rule does.
    """

    allowed: bool
    reason: str = ""
    named: bool = False


@dataclass
class OperatorRules:
    """What holds for every machine of the host; ``allowed`` may grow while machines run.

    ``private`` are networks that are not public and may be reached all the same by a host that a rule names.
    """

    allowed: tuple[HostRule, ...] = ()
    denied: tuple[HostRule, ...] = ()
    private: tuple[IPv4Network | IPv6Network, ...] = field(default=())


class PolicyInForce:
    """The policy of one machine, with its rules read once. Without a policy, nothing is allowed."""

    def __init__(self, policy: NetworkPolicy | None, operator: OperatorRules) -> None:
        self.policy = policy
        self._operator = operator
        self._rules = tuple(_readable(policy.hosts if policy else ()))

    def verdict(self, target: Target) -> Verdict:
        """What is to become of a connection to the target, as far as names tell."""
        if self.policy is None:
            return Verdict(allowed=False, reason="this machine has no policy")
        if self.policy.mode is NetworkMode.ISOLATED:
            return Verdict(allowed=False, reason="the network mode is isolated")
        if self.denies(target):
            return Verdict(allowed=False, reason="the operator of this host denies it")
        full = self.policy.mode is NetworkMode.FULL
        rules = self._operator.allowed if full else (*self._rules, *self._operator.allowed)
        named = _any_allows(rules, target)
        return Verdict(allowed=full or named, named=named)

    def denies(self, target: Target) -> bool:
        """Whether the operator has said that nobody may reach it."""
        return _any_allows(self._operator.denied, target)


def target_of(text: str, port: int | None = None) -> Target:
    """The target that a guest has written as ``host:port``, in which ``port`` stands for one that is left out.

    Raises NotNamed.
    """
    host, colon, written = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, written = text, "" if port is None else str(port)
    if not (written.isascii() and written.isdecimal() and len(written) <= _PORT_DIGITS and 0 < int(written) < 2**16):
        raise NotNamed(shown(host.strip("[]")), 0, "the port is none")
    number = int(written)
    bracketed = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if bracketed else host
    try:
        read = host_name(name)
    except ValueError as fault:
        raise NotNamed(shown(name), number, f"it {fault}") from None
    if (":" in read) is not bracketed:
        raise NotNamed(shown(name), number, "an IPv6 address, and nothing else, stands in brackets")
    return Target(read, number)


def shown(text: str) -> str:
    """A text of a guest's, fit to be shown: short, and printable ASCII."""
    return "".join(letter if "!" <= letter <= "~" else "?" for letter in text[:_SHOWN]) or "(nothing)"


def operator_rules(settings: Settings) -> OperatorRules:
    """The operator's rules. Raises HostNotReady with the setting's name when one is none."""
    allowed = [text for text in settings.egress_allowed_hosts if text != REGISTRIES]
    return OperatorRules(
        allowed=_rules_of_setting("egress_allowed_hosts", allowed),
        denied=_rules_of_setting("egress_denied_hosts", settings.egress_denied_hosts),
        private=tuple(settings.egress_private_networks),
    )


def _rules_of_setting(name: str, texts: Iterable[str]) -> tuple[HostRule, ...]:
    try:
        return _rules_of(texts)
    except ValueError as fault:
        raise HostNotReady(f"TASKYARD_{name.upper()} holds a rule that is none: {fault}") from None


def _rules_of(texts: Iterable[str]) -> tuple[HostRule, ...]:
    """Host rules of the operator's. Raises ValueError with a sentence."""
    found = []
    for text in texts:
        try:
            found.append(host_rule(text))
        except ValueError as fault:
            raise ValueError(f"'{shown(text)}' {fault}") from None
    return tuple(found)


def _readable(texts: Iterable[str]) -> Iterable[HostRule]:
    for text in texts:
        try:
            yield host_rule(text)
        except ValueError as fault:
            # Of another version, which knows other rules: what is not understood lets nothing through.
            _log.warning("a network rule is not understood", rule=shown(text), fault=str(fault))


def _any_allows(rules: Iterable[HostRule], target: Target) -> bool:
    return any(rule.allows(target.host, target.port) for rule in rules)
