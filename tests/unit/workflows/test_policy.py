"""Changes of a network policy: what comes of them, and what is refused with the field and a sentence."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from foundation.errors import Conflict, InvalidParameter, TaskyardError
from workflows.specs.hosts import MAX_RULES
from workflows.specs.policy import changed, in_one_spelling, in_words
from workflows.specs.wire import NetworkMode, NetworkPolicy


@dataclass(frozen=True)
class Change:
    """A change of hosts, and what they are afterwards."""

    before: list[str] = field(default_factory=list)
    allow: list[str] = field(default_factory=list)
    remove: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)


CHANGES = [
    Change([], ["Example.ORG."], [], ["example.org"]),
    Change(["a.example.org"], ["b.example.org:443"], [], ["a.example.org", "b.example.org:443"]),
    Change(["a.example.org"], ["A.example.org", "a.example.org"], [], ["a.example.org"]),
    Change(["a.example.org", "*.example.net"], [], ["*.EXAMPLE.net"], ["a.example.org"]),
    Change(["a.example.org"], ["*.example.org"], ["a.example.org"], ["*.example.org"]),
    Change(["2001:db8::1"], [], ["2001:DB8:0::1"], []),
    # What another version took for a rule allows nothing, and can be taken out.
    Change(["https://example.org"], [], ["https://example.org"], []),
    Change(["a"] + [f"h{n}.example.org" for n in range(MAX_RULES - 1)], ["b"], ["a"],
           [*(f"h{n}.example.org" for n in range(MAX_RULES - 1)), "b"]),
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_rules_are_added_and_removed_in_one_spelling(change: Change) -> None:
    policy = NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=change.before)
    after = changed(policy, None, change.allow, change.remove)
    assert (after.mode, after.hosts) == (NetworkMode.OUTBOUND, change.after)
    assert changed(after, NetworkMode.FULL, change.allow, []).mode is NetworkMode.FULL


REFUSED = [
    # hosts, allow, remove, error, words of the sentence
    ([], ["https://example.org"], [], InvalidParameter, "allow: 'https://example.org' is a URL"),
    ([], [""], [], InvalidParameter, "is no host name"),
    ([], ["exämple.org"], [], InvalidParameter, "xn--"),
    ([], ["a\x1b[31m"], [], InvalidParameter, r"a\x1b"),
    (["a.example.org"], [], ["b.example.org"], Conflict, "there is: a.example.org."),
    ([], [], ["b.example.org"], Conflict, "it has none"),
    (["*.example.org"], [], ["a.example.org"], Conflict, "what allows it is '*.example.org'"),
    (["*.example.org"], [], ["*.a.example.org"], Conflict, "what allows it is '*.example.org'"),
    (["example.org"], [], ["example.org:443"], Conflict, "what allows it is 'example.org'"),
    (["example.org:443"], [], ["example.org"], Conflict, "what allows it is 'example.org:443'"),
    ([], ["a.example.org"], ["a.example.org"], Conflict, "at once"),
    (["a.example.org"], ["a.example.org"], ["A.example.org"], Conflict, "at once"),
    ([], [f"h{n}.example.org" for n in range(MAX_RULES + 1)], [], Conflict, f"{MAX_RULES} host rules at most"),
    ([], ["x" * 100_000], [], InvalidParameter, "is no host name"),
]


@pytest.mark.parametrize(("hosts", "allow", "remove", "error", "words"), REFUSED)
def test_a_change_that_makes_no_sense_is_refused(
    hosts: list[str], allow: list[str], remove: list[str], error: type[TaskyardError], words: str
) -> None:
    policy = NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=hosts)
    with pytest.raises(error) as refused:
        changed(policy, None, allow, remove)
    assert words in refused.value.message
    assert refused.value.details["field"] in {"allow", "remove"}
    assert len(refused.value.message) < 1000
    assert policy.hosts == hosts


def test_a_policy_is_told_in_words_and_has_each_rule_once() -> None:
    policy = in_one_spelling(NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=["A.org", "a.org", "b.org:1"]))
    assert (policy.hosts, in_words(policy)) == (["a.org", "b.org:1"], "outbound, 2 hosts")
    assert in_words(NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=["a.org"])) == "outbound, 1 host"
    assert in_words(NetworkPolicy(mode=NetworkMode.FULL, hosts=["a.org"])) == "full"
