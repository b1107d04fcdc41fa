"""Policies on their way to the proxy, and its decisions on theirs into a run's log: bounded, in order, nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from activities.machine.network import TOLD_MOST, MachineNetworks
from foundation.errors import BucketUnavailable
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, read_entries
from tests.stand_ins.fake_egress import Decided, FakeEgress
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from workflows.runs.messages import HostUse, NetworkUse
from workflows.specs.wire import NetworkMode, NetworkPolicy

MACHINE = "vm-0123456789abcdef"
OUTBOUND = NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=["a.example.org"])
SECRETS = {"TOKEN": "Tok-12345"}
HUSH = Redactor(SECRETS)


def logged(bucket: MemoryBucket) -> list[dict[str, Any]]:
    return [json.loads(entry.data) for entry in read_entries(bucket, TASK)]


def test_a_policy_that_comes_late_does_not_take_the_place_of_a_later_one() -> None:
    egress = FakeEgress()
    networks = MachineNetworks(egress)
    networks.set_policy(MACHINE, NetworkPolicy())
    networks.set_policy(MACHINE, OUTBOUND, revision=2)
    for late in (0, 1):
        networks.set_policy(MACHINE, NetworkPolicy(mode=NetworkMode.FULL), revision=late)
    assert egress.policies == {MACHINE: OUTBOUND}
    networks.set_policy(MACHINE, NetworkPolicy(), revision=2)
    assert egress.policies == {MACHINE: NetworkPolicy()}


def test_decisions_are_told_without_secrets_and_without_what_steers_a_terminal() -> None:
    bucket, egress = MemoryBucket(), FakeEgress()
    egress.decisions = [
        Decided("tok-12345.example.org", reason="blocked by the task's network policy: tok-12345.example.org", count=3),
        Decided("b\x1b[31m\n.example.org" + "x" * 1000, reason="failed\u202e"),
        Decided("c.example.org", verdict="allowed", reason="allowed: c.example.org:443"),
    ]
    MachineNetworks(egress).watched(MACHINE, SECRETS).write(RunLogWriter(bucket, TASK, HUSH))
    first, second, third = logged(bucket)
    assert first["message"] == (
        "network: blocked by the task's network policy: [redacted:TOKEN].example.org, port 443, 3 times"
    )
    assert (first["type"], first["verdict"], first["port"], first["count"]) == ("network", "blocked", 443, 3)
    assert second["host"].startswith("b?[31m?.example.org")
    assert len(second["host"]) < 300
    assert second["message"] == "network: failed?, port 443"
    assert third["message"] == "network: allowed: c.example.org:443"


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_decision_is_held_until_the_log_has_it(moment: str) -> None:
    bucket, egress = MemoryBucket(), FakeEgress()
    networks = MachineNetworks(egress)
    egress.decisions = [Decided("a.example.org"), Decided("b.example.org")]
    writer = RunLogWriter(bucket, TASK, HUSH)
    writer.resume()

    def away(action: str, _key: str) -> None:
        if action == "put":
            raise BucketUnavailable("away")

    setattr(bucket, moment, away)
    with pytest.raises(BucketUnavailable):
        networks.watched(MACHINE, SECRETS).write(writer)
    setattr(bucket, moment, lambda _action, _key: None)
    # The next attempt has a writer of its own; what was stored without an answer is there twice then.
    networks.watched(MACHINE, SECRETS).write(RunLogWriter(bucket, TASK, HUSH))
    hosts = [event["host"] for event in logged(bucket)]
    assert hosts == [*(["a.example.org"] if moment == "after" else []), "a.example.org", "b.example.org"]


def test_a_guest_that_asks_for_ever_more_names_fills_no_log() -> None:
    bucket, egress = MemoryBucket(), FakeEgress()
    networks = MachineNetworks(egress)
    for begin in range(0, 3 * TOLD_MOST, 100):
        egress.decisions = [Decided(f"h{begin + number}.example.org") for number in range(100)]
        networks.watched(MACHINE, SECRETS).write(RunLogWriter(bucket, TASK, HUSH))
    assert len(logged(bucket)) == TOLD_MOST + 1
    assert "counted alone" in logged(bucket)[-1]["message"]
    # A worker that was started anew counts what the log has.
    anew = MachineNetworks(egress).watched(MACHINE, SECRETS)
    anew.recall(TOLD_MOST + 1)
    egress.decisions = [Decided("late.example.org")]
    anew.write(RunLogWriter(bucket, TASK, HUSH))
    assert len(logged(bucket)) == TOLD_MOST + 1


def test_counts_name_few_hosts_and_no_secret() -> None:
    egress = FakeEgress()
    hosts = [HostUse(host=f"h{number}.example.org", port=443, blocked=number) for number in range(100)]
    hosts.append(HostUse(host="tok-12345.example.org", port=443, allowed=1000, reason="x" * 1900))
    egress.uses[MACHINE] = NetworkUse(allowed=7, blocked=5000, hosts=hosts)
    use = MachineNetworks(egress).watched(MACHINE, SECRETS).use()
    assert (use.allowed, use.blocked, len(use.hosts)) == (7, 5000, 20)
    assert use.hosts[0].host == "[redacted:TOKEN].example.org"
    assert len(use.hosts[0].reason or "") <= 500
