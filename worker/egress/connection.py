"""One connection of a guest to the proxy, from its first byte on: what it asks for, what it may, and what it gets."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from dataclasses import dataclass

import h11

from worker.egress.addresses import NotPublic, Unreachable
from worker.egress.injection.injected_host import HostConnection, InjectedHost
from worker.egress.machine import Machine
from worker.egress.policy import NotNamed, Target, Verdict, shown, target_of
from worker.egress.refusals import Refusal, bad_request, blocked, unreachable
from worker.egress.relay import Relay

_READ_BYTES = 64 * 1024
_CONNECT = b"CONNECT "
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
# A guest's own word about a packet that its kernel has refused.
_REPORTED = "taskyard-protocol"
# So long, and so many bytes, for a guest that still sends when it has been refused.
_LINGER_SECONDS = 2.0
_LINGER_READS = 16


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds and counts that a guest's connections are held to.

    The head of a connection's first request has to come whole within ``head_seconds`` and ``head_bytes``. A tunnel on
    which nothing moves for ``idle_seconds`` is closed. ``resolve_seconds`` and ``connect_seconds`` are for the look-up
    of a name and for connecting to its addresses.
    """

    for_each_machine: int = 256
    head_seconds: float = 20.0
    head_bytes: int = 16 * 1024
    idle_seconds: float = 3600.0
    resolve_seconds: float = 10.0
    connect_seconds: float = 10.0


class Connection:
    """A guest's connection. ``target`` is what it leads to, or is to lead to, once that is decided."""

    def __init__(self, machine: Machine, guest: socket.socket, limits: ConnectionLimits) -> None:
        self.machine = machine
        self.target: Target | None = None
        self._guest = guest
        self._limits = limits
        self._loop = asyncio.get_running_loop()

    async def serve(self) -> None:
        """Serve it to its end. The socket stays the caller's to close."""
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                head = await self._first_bytes()
                if not head:
                    return
                request, rest = await self._connect_request(head)
            await self._tunnel(request, rest)
        except Refusal as refusal:
            self.machine.note(refusal)
            await self._refuse(refusal)
        except (OSError, TimeoutError):
            return

    async def _first_bytes(self) -> bytes:
        """The first bytes, as many as tell CONNECT from any other request; nothing when the guest has left."""
        head = b""
        while len(head) < len(_CONNECT) and _CONNECT.startswith(head):
            data = await self._loop.sock_recv(self._guest, _READ_BYTES)
            if not data:
                return b""
            head = (head + data).lstrip(b"\r\n")
        return head

    async def _connect_request(self, head: bytes) -> tuple[h11.Request, bytes]:
        """The request, and what the guest has sent beyond it."""
        parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.head_bytes)
        try:
            parser.receive_data(head)
            while (event := parser.next_event()) is h11.NEED_DATA:
                data = await self._loop.sock_recv(self._guest, _READ_BYTES)
                if not data:
                    raise ConnectionResetError
                parser.receive_data(data)
        except h11.RemoteProtocolError as fault:
            raise bad_request(str(fault)) from None
        if isinstance(event, h11.Request) and event.method != _CONNECT.strip():
            raise Refusal(501, "only CONNECT is offered", "failed")
        assert isinstance(event, h11.Request)  # noqa: S101 -- the first event of a server's connection
        if any(name in {b"content-length", b"transfer-encoding"} for name, _ in event.headers):
            raise bad_request("CONNECT has no body")
        return event, bytes(parser.trailing_data[0])

    async def _tunnel(self, request: h11.Request, rest: bytes) -> None:
        text = request.target.decode("ascii", "replace")
        reported = next((value for name, value in request.headers if name == _REPORTED.encode()), None)
        try:
            target = target_of(text)
        except NotNamed as fault:
            raise blocked(fault.host, fault.port, str(fault)) from None
        if reported is not None:
            protocol = shown(reported.decode("ascii", "replace"))[:20]
            raise blocked(target.host, target.port, f"{protocol} {target}, says the guest")
        verdict = self.permitted(target)
        remote = await self.connected(target, verdict)
        if self.machine.injections.of(target.host, target.port):
            await self._inject(target, remote, rest)
            return
        with remote:
            count = self.machine.traffic.record(target.host, target.port, "allowed", f"allowed: {target}")
            await self._loop.sock_sendall(self._guest, _ESTABLISHED)
            relay = Relay(
                self._guest,
                remote,
                lambda size: self.machine.count(count, sent=size),
                lambda size: self.machine.count(count, received=size),
                self._limits.idle_seconds,
            )
            await relay.run(rest)

    async def _inject(self, target: Target, remote: socket.socket, rest: bytes) -> None:
        """Serve a connection to a host for which there is a secret. ``remote`` is its first connection to the host."""
        ready = [remote]

        async def connect() -> socket.socket:
            return ready.pop() if ready else await self.connected(target, self.permitted(target))

        try:
            count = self.machine.traffic.record(target.host, target.port, "allowed", f"allowed: {target}")
            outside = HostConnection(
                target,
                connect,
                self.machine.note,
                lambda size: self.machine.count(count, sent=size),
                lambda size: self.machine.count(count, received=size),
                self._limits.head_seconds,
                self._limits.idle_seconds,
            )
            host = InjectedHost(self.machine.injections, outside)
            await self._loop.sock_sendall(self._guest, _ESTABLISHED)
            if not rest:
                await host.serve(self._guest.dup())
                return
            # What has come already is to be read first: as if the guest's connection were another one.
            inner, outer = socket.socketpair()
            with outer:
                outer.setblocking(False)
                relay = Relay(self._guest, outer, lambda _: None, lambda _: None, self._limits.idle_seconds)
                relaying = asyncio.ensure_future(relay.run(rest))
                try:
                    await host.serve(inner)
                    await asyncio.wait({relaying}, timeout=_LINGER_SECONDS)
                finally:
                    relaying.cancel()
                    await asyncio.gather(relaying, return_exceptions=True)
        finally:
            for unused in ready:
                unused.close()

    def permitted(self, target: Target) -> Verdict:
        """The verdict on the target, which is from now on what this connection is for. Raises Refusal."""
        verdict = self.machine.verdict(target)
        if not verdict.allowed:
            raise blocked(target.host, target.port, verdict.reason)
        self.target = target
        return verdict

    async def connected(self, target: Target, verdict: Verdict) -> socket.socket:
        """A connection to the target, which the verdict lets through. Raises Refusal."""
        try:
            return await self.machine.dialer.connect(self.machine.id, target, named=verdict.named)
        except NotPublic as fault:
            raise blocked(target.host, target.port, str(fault)) from None
        except Unreachable as fault:
            raise unreachable(target.host, target.port, str(fault)) from None

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer, and see to it that the guest can read the answer: what it still sends would break it off."""
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_SECONDS):
                await self._loop.sock_sendall(self._guest, refusal.answer())
                self._guest.shutdown(socket.SHUT_WR)
                for _ in range(_LINGER_READS):
                    if not await self._loop.sock_recv(self._guest, _READ_BYTES):
                        return
