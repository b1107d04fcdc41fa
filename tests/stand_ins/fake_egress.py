"""An egress proxy that lets nothing through and remembers what it was told, for tests of the steps beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime

from workflows.runs.messages import NetworkUse
from workflows.specs.wire import NetworkPolicy


@dataclass(frozen=True)
class Decided:
    """A decision as the proxy gives it out."""

    host: str
    port: int = 443
    verdict: str = "blocked"
    reason: str = "blocked by the task's network policy"
    count: int = 1
    time: datetime = datetime(2026, 1, 29, tzinfo=UTC)


@dataclass
class FakeEgress:
    """``policies`` are those in force; ``decisions`` are given out at the next drain."""

    policies: dict[str, NetworkPolicy] = field(default_factory=dict)
    uses: dict[str, NetworkUse] = field(default_factory=dict)
    decisions: list[Decided] = field(default_factory=list)

    def set_policy(self, machine_id: str, policy: NetworkPolicy) -> None:
        self.policies[machine_id] = policy

    def use(self, machine_id: str) -> NetworkUse:
        return self.uses.get(machine_id, NetworkUse())

    def drain(self, machine_id: str, *, last: bool = False) -> list[Decided]:  # noqa: ARG002
        drained, self.decisions = self.decisions, []
        return drained
