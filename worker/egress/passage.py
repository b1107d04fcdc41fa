"""What one connection of a guest leads to: decided by the machine's policy, opened, and counted."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from worker.egress.addresses import NotPublic, Unreachable
from worker.egress.decisions import HostCount
from worker.egress.machine import Machine
from worker.egress.policy import Target
from worker.egress.refusals import blocked, unreachable


@dataclass(frozen=True)
class EgressLimits:
    """Seconds and counts that a guest's connections are held to.

    The head of a request has to come whole within ``head_seconds`` and ``head_bytes``, and so has the first message of
    TLS. What a tunnel begins with is held back for ``held_seconds`` when it may become a request. A connection on which
    nothing moves for ``idle_seconds`` is closed. ``resolve_seconds`` and ``connect_seconds`` are for the look-up of a
    name and for connecting to its addresses.
    """

    for_each_machine: int = 256
    head_seconds: float = 20.0
    head_bytes: int = 16 * 1024
    held_seconds: float = 1.0
    idle_seconds: float = 3600.0
    resolve_seconds: float = 10.0
    connect_seconds: float = 10.0


@dataclass(eq=False)
class Passage:
    """One connection's way out. ``target`` is what it leads to, or is to lead to, from when that was decided."""

    machine: Machine
    target: Target | None = None
    _named: bool = False
    _count: HostCount | None = None

    def permit(self, target: Target) -> None:
        """Decide on the target. Raises Refusal."""
        verdict = self.machine.verdict(target)
        if not verdict.allowed:
            raise blocked(target.host, target.port, verdict.reason)
        if target != self.target:
            self._count = None
        self.target, self._named = target, verdict.named

    async def open(self) -> socket.socket:
        """A connection to the target that was permitted, which is noted. Raises Refusal."""
        target = self.target
        assert target is not None  # noqa: S101 -- permitted before
        try:
            opened = await self.machine.dialer.connect(self.machine.id, target, named=self._named)
        except NotPublic as fault:
            raise blocked(target.host, target.port, str(fault)) from None
        except Unreachable as fault:
            raise unreachable(target.host, target.port, str(fault)) from None
        self._count = self.machine.allow(target)
        return opened

    def sent(self, size: int) -> None:
        """So many bytes have gone to the target."""
        if self._count is not None:
            self.machine.count(self._count, sent=size)

    def received(self, size: int) -> None:
        """So many bytes have come from the target."""
        if self._count is not None:
            self.machine.count(self._count, received=size)
