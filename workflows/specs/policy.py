"""A network policy as it is changed: its rules in one spelling, and what comes of a change, or why nothing does."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.errors import Conflict, InvalidParameter
from workflows.specs.hosts import MAX_RULES, HostRule, host_rule
from workflows.specs.wire import NetworkMode, NetworkPolicy

_SHOWN_RULES = 5
_SHOWN_CHARS = 80


def in_one_spelling(policy: NetworkPolicy) -> NetworkPolicy:
    """The same policy with each rule once, as rules are compared. What is no rule, which allows nothing, stays."""
    return NetworkPolicy(mode=policy.mode, hosts=list(dict.fromkeys(map(_spelled, policy.hosts))))


def changed(
    policy: NetworkPolicy, mode: NetworkMode | None, allow: Sequence[str], remove: Sequence[str]
) -> NetworkPolicy:
    """The policy after a change; ``policy`` is in one spelling, and rules are removed before others are added.

    Raises InvalidParameter for what is no rule, and Conflict for a rule to be removed that is none of the policy's,
    one that is to be removed and added at once, and more rules than a policy may have.
    """
    added = [str(_rule("allow", text)) for text in allow]
    hosts = list(policy.hosts)
    for text in remove:
        written = _spelled(text)
        if written in hosts:
            hosts.remove(written)
            continue
        rule = _rule("remove", text)
        if written in added:
            raise Conflict(f"'{rule}' is to be allowed and removed at once; leave one of them out.", field="remove")
        raise Conflict(_unnamed(rule, hosts), field="remove", host=str(rule))
    if both := set(added) & {_spelled(text) for text in remove}:
        raise Conflict(f"'{min(both)}' is to be allowed and removed at once; leave one of them out.", field="remove")
    hosts += [each for each in dict.fromkeys(added) if each not in hosts]
    if len(hosts) > MAX_RULES:
        raise Conflict(
            f"A run has {MAX_RULES} host rules at most, and would have {len(hosts)}; remove some, or write "
            "'*.example.org' for all names below a domain.",
            field="allow",
        )
    return NetworkPolicy(mode=mode or policy.mode, hosts=hosts)


def in_words(policy: NetworkPolicy) -> str:
    """The policy in a few words, such as ``outbound, 3 hosts``."""
    if policy.mode is not NetworkMode.OUTBOUND:
        return policy.mode.value
    return f"{policy.mode}, {len(policy.hosts)} host{'' if len(policy.hosts) == 1 else 's'}"


def _spelled(text: str) -> str:
    try:
        return str(host_rule(text))
    except ValueError:
        return text


def _rule(field: str, text: str) -> HostRule:
    try:
        return host_rule(text)
    except ValueError as error:
        shown = text[:_SHOWN_CHARS] if text.isprintable() else ascii(text)[:_SHOWN_CHARS]
        raise InvalidParameter(f"{field}: '{shown}' {error}.", field=field) from None


def _unnamed(rule: HostRule, hosts: Sequence[str]) -> str:
    """That no rule is this one, and which of those that are there is meant."""
    near = next((text for text in hosts if _covers(text, rule)), None)
    if near is not None:
        return (
            f"No rule of this run is '{rule}': what allows it is '{near}'. Remove that one, and allow what is to stay."
        )
    there = ", ".join(hosts[:_SHOWN_RULES]) + (" and more" if len(hosts) > _SHOWN_RULES else "")
    return f"No rule of this run is '{rule}'; " + (f"there is: {there}." if hosts else "it has none.")


def _covers(text: str, rule: HostRule) -> bool:
    """Whether a rule that stands there allows something of what the other one would, under another name or port."""
    try:
        other = host_rule(text)
    except ValueError:
        return False
    return other.host == rule.host or (other.below and rule.host.endswith("." + other.host))
