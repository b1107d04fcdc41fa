"""One connection of a guest to the proxy, from its first byte on: what it asks for, and which way it is served."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

import h11

from worker.egress.forward import Exchange
from worker.egress.guest_http import HttpServer
from worker.egress.injection.injected_host import HostConnection, InjectedHost
from worker.egress.passage import EgressLimits, Passage
from worker.egress.policy import NotNamed, Target, shown, target_of
from worker.egress.refusals import LINGER_SECONDS, Refusal, bad_request, blocked, too_slow
from worker.egress.tunnels.relay import Relay
from worker.egress.tunnels.tunnel import Tunnel

_READ_BYTES = 64 * 1024
_CONNECT = b"CONNECT "
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
# How a client of TLS is told that it may not go on: the alert access_denied.
_ACCESS_DENIED = bytes.fromhex("15 03 01 00 02 02 31")
# A guest's own word about a packet that its kernel has refused.
_REPORTED = b"taskyard-protocol"
_REPORTED_MOST = 20
# So many bytes of a guest that still sends when it has been refused are read.
_LINGER_READS = 16


class Connection:
    """A guest's connection, and what it leads to."""

    def __init__(self, passage: Passage, guest: socket.socket, limits: EgressLimits, server: HttpServer) -> None:
        self._passage = passage
        self._guest = guest
        self._limits = limits
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._has_begun = False

    async def serve(self) -> None:
        """Serve it to its end. The socket stays the caller's to close."""
        with suppress(OSError, TimeoutError):
            try:
                head, request, rest = await self._head()
                if request is not None:
                    await self._tunnel(request, rest)
                elif head:
                    await self._server.serve(self._guest, head, Exchange(self._passage, self._limits))
            except Refusal as refusal:
                self._passage.machine.note(refusal)
                await self._say(refusal.answer())

    async def _head(self) -> tuple[bytes, h11.Request | None, bytes]:
        """The first bytes, and when they are of CONNECT, the request and what came behind it. Raises Refusal."""
        try:
            async with asyncio.timeout(self._limits.head_seconds):
                head = await self._first_bytes()
                if not head.startswith(_CONNECT):
                    return head, None, b""
                return head, *await self._connect_request(head)
        except TimeoutError:
            if not self._has_begun:
                return b"", None, b""
            raise too_slow() from None

    async def _first_bytes(self) -> bytes:
        """The first bytes, as many as tell CONNECT from any other request; nothing when the guest has left."""
        head = b""
        while len(head) < len(_CONNECT) and _CONNECT.startswith(head):
            data = await self._loop.sock_recv(self._guest, _READ_BYTES)
            if not data:
                return b""
            self._has_begun = True
            head = (head + data).lstrip(b"\r\n")
        return head

    async def _connect_request(self, head: bytes) -> tuple[h11.Request, bytes]:
        """The request, and what the guest has sent beyond it. Raises Refusal."""
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
        assert isinstance(event, h11.Request)  # noqa: S101 -- the first event of a server's connection
        if any(name in {b"content-length", b"transfer-encoding"} for name, _ in event.headers):
            raise bad_request("CONNECT has no body")
        return event, bytes(parser.trailing_data[0])

    async def _tunnel(self, request: h11.Request, rest: bytes) -> None:
        reported = next((value for name, value in request.headers if name == _REPORTED), None)
        try:
            target = target_of(request.target.decode("latin-1"))
        except NotNamed as fault:
            if reported is not None:
                # Not every protocol has ports.
                raise _reported(fault.host, fault.port, fault.host, reported) from None
            raise blocked(fault.host, fault.port, str(fault)) from None
        if reported is not None:
            raise _reported(target.host, target.port, str(target), reported)
        self._passage.permit(target)
        remote = await self._passage.open()
        if self._passage.machine.injections.of(target.host, target.port):
            await self._inject(target, remote, rest)
            return
        with remote:
            await self._loop.sock_sendall(self._guest, _ESTABLISHED)
            tunnel = Tunnel(self._passage, self._guest, remote, self._limits, self._server)
            try:
                await tunnel.run(rest)
            except Refusal as refusal:
                # The tunnel is open: the words of HTTP would be taken for the server's own.
                self._passage.machine.note(refusal)
                await self._say(_ACCESS_DENIED if tunnel.is_tls else b"")

    async def _inject(self, target: Target, remote: socket.socket, rest: bytes) -> None:
        """Serve a connection to a host for which there is a secret. ``remote`` is its first connection to the host."""
        passage = self._passage
        ready = [remote]

        async def connect() -> socket.socket:
            if ready:
                return ready.pop()
            passage.permit(target)
            return await passage.open()

        try:
            outside = HostConnection(
                target,
                connect,
                passage.machine.note,
                passage.sent,
                passage.received,
                self._limits.head_seconds,
                self._limits.idle_seconds,
            )
            host = InjectedHost(passage.machine.injections, outside)
            with passage.machine.injections.one_more(target):
                await self._loop.sock_sendall(self._guest, _ESTABLISHED)
                await self._serve(host, rest)
        finally:
            for unused in ready:
                unused.close()

    async def _serve(self, host: InjectedHost, rest: bytes) -> None:
        """Serve the guest as the host, beginning with bytes that have been read from it."""
        if not rest:
            await host.serve(self._guest.dup())
            return
        # What has come already is to be read first: as if the guest's connection were another one.
        inner, outer = socket.socketpair()
        outer.setblocking(False)
        with outer, Relay(self._guest, outer, _uncounted, _uncounted, self._limits.idle_seconds) as relay:
            relaying = asyncio.ensure_future(relay.run(rest))
            try:
                await host.serve(inner)
                await asyncio.wait({relaying}, timeout=LINGER_SECONDS)
            finally:
                relaying.cancel()
                await asyncio.gather(relaying, return_exceptions=True)

    async def _say(self, last: bytes) -> None:
        """The last words to the guest, so that it can read them: what it still sends would break them off."""
        async with asyncio.timeout(LINGER_SECONDS):
            await self._loop.sock_sendall(self._guest, last)
            self._guest.shutdown(socket.SHUT_WR)
            for _ in range(_LINGER_READS):
                if not await self._loop.sock_recv(self._guest, _READ_BYTES):
                    return


def _reported(host: str, port: int, place: str, protocol: bytes) -> Refusal:
    word = shown(protocol.decode("latin-1"))[:_REPORTED_MOST]
    return blocked(host, port, f"{word} {place}, says the guest")


def _uncounted(_: int) -> None:
    """Bytes that go no further than this process."""
