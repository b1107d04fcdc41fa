"""What the proxy knows of one machine while it runs: its policy in force, its open connections, what it asked for."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Protocol

from foundation.units import format_size
from worker.egress.addresses import Dialer
from worker.egress.decisions import HostCount, MachineTraffic
from worker.egress.injection.injections import Injections
from worker.egress.policy import PolicyInForce, Target, Verdict
from worker.egress.refusals import Refusal, blocked
from worker.metrics import WorkerMetrics
from workflows.runs.messages import NetworkUse


class Open(Protocol):
    """A connection of a guest; ``target`` is what it leads to, or is to lead to, once that is decided."""

    target: Target | None


@dataclass
class Machine:
    """One machine, as the proxy's loop sees it. The sockets of ``connections`` are closed when their tasks end."""

    id: str
    dialer: Dialer
    byte_limit: int
    in_force: PolicyInForce
    metrics: WorkerMetrics
    injections: Injections
    traffic: MachineTraffic = field(default_factory=MachineTraffic)
    connections: dict[Open, asyncio.Task[None]] = field(default_factory=dict)
    _told: tuple[int, int] = (0, 0)

    def restore(self, use: NetworkUse) -> None:
        """Go on with what the machine has asked for before."""
        self.traffic.restore(use)
        self._told = use.sent_bytes, use.received_bytes

    def verdict(self, target: Target) -> Verdict:
        """What is to become of a connection to the target."""
        verdict = self.in_force.verdict(target)
        if verdict.allowed and self._spent:
            return Verdict(allowed=False, reason=f"the machine has moved {format_size(self.byte_limit)}, its limit")
        return verdict

    def note(self, refusal: Refusal) -> None:
        """A request has come to nothing."""
        host = refusal.host or "(none)"
        self.traffic.record(host, refusal.port, refusal.verdict, refusal.sentence)
        self.metrics.take_connection(refusal.verdict)

    def allow(self, target: Target) -> HostCount:
        """A connection to the target is open. Gives what its bytes are counted in."""
        self.metrics.take_connection("allowed")
        return self.traffic.record(target.host, target.port, "allowed", f"allowed: {target}")

    def count(self, own: HostCount, *, sent: int = 0, received: int = 0) -> None:
        """Count bytes that were let through; beyond the limit, every connection of the machine is cut."""
        self.traffic.count(own, sent=sent, received=received)
        if self._spent:
            self.cut_refused()

    def tell_metrics(self) -> None:
        """Tell the metrics of the bytes since the last time: each piece by itself would cost more than moving it."""
        sent, received = self.traffic.total.sent_bytes, self.traffic.total.received_bytes
        self.metrics.take_traffic(sent=sent - self._told[0], received=received - self._told[1])
        self._told = sent, received

    def cut_refused(self) -> None:
        """Cut the connections that are no longer allowed, and note each as blocked."""
        for passage, task in list(self.connections.items()):
            if passage.target is None or (verdict := self.verdict(passage.target)).allowed:
                continue
            self.note(blocked(passage.target.host, passage.target.port, verdict.reason or "the connection is cut"))
            del self.connections[passage]
            task.cancel()

    @property
    def _spent(self) -> bool:
        return self.traffic.total.sent_bytes + self.traffic.total.received_bytes >= self.byte_limit
