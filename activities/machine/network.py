"""What machines may reach and have asked for: policies on their way to the egress proxy, decisions on theirs into logs.

A decision is in its run's log at least once: one that the proxy has given out is held until the log has stored it, and
a store whose answer was lost may hold it twice. What a worker that dies has not stored yet is in the counts alone; so
is what does not fit into the limits.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from temporalio import activity

from activities.step.announcements import announce
from activities.step.boundary import boundary
from activities.step.heartbeat import beating
from storage.bucket import Bucket
from storage.redaction import Redactor
from storage.runlog import RunLogWriter
from workflows import steps
from workflows.messages import cut
from workflows.runs.messages import NetworkUse
from workflows.runs.requests import SetNetworkRequest
from workflows.specs.policy import in_words
from workflows.specs.wire import NetworkPolicy

#: Types of events in a run's log.
DECISION = "network"
POLICY = "network_policy"

# Decisions that one run's log tells; more are counted and no longer told.
TOLD_MOST = 2_000
# Decisions that are held while the bucket is away.
_HELD_MOST = 1_000
# Machines of which something is remembered: far more than a host holds at once.
_REMEMBERED_MOST = 10_000
_HOST_CHARS = 253
_MESSAGE_CHARS = 500
_HOSTS_MOST = 20


class Decision(Protocol):
    """What the proxy has decided about ``count`` requests for one host and port; ``reason`` is its sentence.

    ``verdict`` is ``allowed``, ``blocked`` or ``failed``.
    """

    @property
    def time(self) -> datetime: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def count(self) -> int: ...


class Egress(Protocol):
    """What the steps need of the egress proxy; every method from any thread."""

    def set_policy(self, machine_id: str, policy: NetworkPolicy) -> None:
        """Let the machine reach what the policy says, and nothing else, from now on and after a restart."""

    def use(self, machine_id: str) -> NetworkUse:
        """What the machine has asked for so far."""

    def drain(self, machine_id: str, *, last: bool = False) -> Sequence[Decision]:
        """What is to be logged since the last call; with ``last``, also what would come later."""


@dataclass
class _Machine:
    """What is remembered of one machine: the number of its policy, and what was decided and is not logged yet."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    revision: int = 0
    held: list[Decision] = field(default_factory=list)
    told: int = 0


class MachineNetworks:
    """The networks of the machines of this host, for all steps of its worker. Thread-safe."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._lock = threading.Lock()
        self._machines: OrderedDict[str, _Machine] = OrderedDict()

    def set_policy(self, machine_id: str, policy: NetworkPolicy, revision: int = 0) -> None:
        """Bring a policy into force, unless a later one of the machine was before: an attempt may come late."""
        machine = self._of(machine_id)
        with machine.lock:
            if revision >= machine.revision:
                self._egress.set_policy(machine_id, policy)
                machine.revision = revision

    def watched(self, machine_id: str, secrets: Mapping[str, str]) -> WatchedNetwork:
        """What the machine asks for, told without the values of its secrets."""
        return WatchedNetwork(self._egress, machine_id, self._of(machine_id), secrets)

    def _of(self, machine_id: str) -> _Machine:
        with self._lock:
            machine = self._machines.setdefault(machine_id, _Machine())
            self._machines.move_to_end(machine_id)
            while len(self._machines) > _REMEMBERED_MOST:
                self._machines.popitem(last=False)
            return machine


class WatchedNetwork:
    """What one machine asks for, as a run's status and log have it."""

    def __init__(self, egress: Egress, machine_id: str, machine: _Machine, secrets: Mapping[str, str]) -> None:
        self._egress = egress
        self._machine_id = machine_id
        self._machine = machine
        self._as_given = Redactor(secrets)
        # Names of hosts are compared, and told, in lower case.
        self._in_lower_case = Redactor({name: value.lower() for name, value in secrets.items()})

    def use(self) -> NetworkUse:
        """The counts so far, with the hosts that were asked for most, fit to be shown and kept."""
        use = self._egress.use(self._machine_id)
        hosts = sorted(use.hosts, key=lambda each: -(each.allowed + each.blocked))[:_HOSTS_MOST]
        shown = [
            each.model_copy(
                update={
                    "host": self._shown(each.host, _HOST_CHARS),
                    "reason": each.reason and self._shown(each.reason, _MESSAGE_CHARS),
                }
            )
            for each in hosts
        ]
        return use.model_copy(update={"hosts": shown})

    def recall(self, told: int) -> None:
        """The log has so many decisions already."""
        with self._machine.lock:
            self._machine.told = max(self._machine.told, told)

    def write(self, writer: RunLogWriter, *, last: bool = False) -> None:
        """Log what was decided since the last call; with ``last``, also what would be told later.

        May raise BucketUnavailable and Conflict, after which nothing is lost.
        """
        machine = self._machine
        with machine.lock:
            drained = self._egress.drain(self._machine_id, last=last)
            room = min(_HELD_MOST, TOLD_MOST - machine.told) - len(machine.held)
            machine.held += drained[: max(0, room)]
            if not machine.held:
                return
            for decision in machine.held:
                writer.event(self._event(decision))
            if machine.told + len(machine.held) >= TOLD_MOST:
                message = f"network: {TOLD_MOST} decisions are told here; those that follow are counted alone"
                writer.event({"type": DECISION, "message": message, "host": "", "port": 0, "verdict": "", "count": 0})
            writer.flush(force=True)
            machine.told += len(machine.held)
            machine.held.clear()

    def _event(self, decision: Decision) -> dict[str, object]:
        message = self._shown(decision.reason, _MESSAGE_CHARS)
        if decision.port and not message.endswith(f":{decision.port}"):
            message += f", port {decision.port}"
        if decision.host and decision.count > 1:
            message += f", {decision.count} times"
        return {
            "type": DECISION,
            "message": f"network: {message}",
            "host": self._shown(decision.host, _HOST_CHARS),
            "port": decision.port,
            "verdict": decision.verdict,
            "count": decision.count,
            "at": decision.time.isoformat(),
        }

    def _shown(self, text: str, most: int) -> str:
        """A text that repeats what a guest has written: without secrets, in one printable line, cut."""
        bare = self._in_lower_case.redact_text(self._as_given.redact_text(text))
        return cut("".join(letter if letter.isprintable() else "?" for letter in bare), most)


class NetworkChanges:
    """The step that changes a running machine's network."""

    def __init__(self, networks: MachineNetworks, bucket: Bucket) -> None:
        self._networks = networks
        self._bucket = bucket

    @activity.defn(name=steps.NETWORK.name)
    @boundary
    def set_network(self, request: SetNetworkRequest) -> None:
        """Bring the policy into force, and say so in the run's log. Asking again, or late, changes nothing."""
        with beating():
            self._networks.set_policy(request.machine_id, request.policy, request.revision)
            announce_policy(self._bucket, request.task_id, request.policy, request.changes)


def announce_policy(bucket: Bucket, task_id: str, policy: NetworkPolicy, changes: str = "") -> None:
    """Log what the machine may reach from now on."""
    message = f"network: {changes or in_words(policy)}"
    announce(bucket, task_id, POLICY, message, mode=policy.mode.value, hosts=policy.hosts)
