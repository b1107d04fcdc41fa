"""A tunnel, from the answer to CONNECT on: what it begins with must be for the host that it was opened for."""

from __future__ import annotations

import asyncio
import socket

from worker.egress.forward import Exchange
from worker.egress.guest_http import HttpServer
from worker.egress.passage import EgressLimits, Passage
from worker.egress.policy import NotNamed, Target, target_of
from worker.egress.refusals import Refusal, blocked
from worker.egress.tunnels.opening import Kind, Opening, opening
from worker.egress.tunnels.relay import Relay
from worker.egress.tunnels.server_name import Malformed, looks_like_tls

_READ_BYTES = 64 * 1024


class Tunnel:
    """One tunnel between a guest and ``remote``, which is connected to the passage's target."""

    def __init__(
        self, passage: Passage, guest: socket.socket, remote: socket.socket, limits: EgressLimits, server: HttpServer
    ) -> None:
        assert passage.target is not None  # noqa: S101 -- a tunnel leads somewhere
        self._passage = passage
        self._target: Target = passage.target
        self._guest = guest
        self._remote = remote
        self._limits = limits
        self._server = server
        #: Whether the guest has begun to speak TLS.
        self.is_tls = False
        # When the first message of TLS has to be whole, once it has begun.
        self._whole_by: float | None = None
        self._loop = asyncio.get_running_loop()

    async def run(self, first: bytes) -> None:
        """Move bytes to the end of both sides, beginning with what the guest has sent already.

        Raises Refusal for what the tunnel is not for, and OSError or TimeoutError when a side breaks off.
        """
        passage = self._passage
        with Relay(self._guest, self._remote, passage.sent, passage.received, self._limits.idle_seconds) as relay:
            # A server that speaks first is heard meanwhile.
            found, data = await relay.unless_idle(self._opening(first))
            if found is None or found.kind is not Kind.HTTP:
                if found is not None and found.kind is Kind.TLS:
                    self._check(found)
                await relay.run(data)
                return
            if relay.received:
                raise self._blocked("a server that speaks first is no server of HTTP")
        # Empty lines before a request are the client's carelessness.
        data = data.lstrip(b"\r\n")
        await self._server.serve(self._guest, data, Exchange(passage, self._limits, self._remote))

    async def _opening(self, data: bytes) -> tuple[Opening | None, bytes]:
        """What the guest begins with, and the bytes of it that have not gone on; None when it sends nothing any more.

        What may still become a request of HTTP is held back for a moment only, as other protocols begin with a word
        too. It is looked at all the same until it is none: a request that has gone on in part never goes on whole.
        """
        gone = 0
        try:
            while (found := opening(data)) is None:
                self.is_tls = bool(looks_like_tls(data))
                held = bool(data) and not self.is_tls and gone < len(data)
                try:
                    more = await self._more(held=held)
                except TimeoutError:
                    if not held:
                        raise
                    await self._loop.sock_sendall(self._remote, data[gone:])
                    self._passage.sent(len(data) - gone)
                    gone = len(data)
                    continue
                if not more:
                    return None, data[gone:]
                data += more
        except Malformed as fault:
            raise self._blocked(str(fault)) from None
        except TimeoutError:
            raise self._blocked("it does not say what it is") from None
        finally:
            self.is_tls = bool(looks_like_tls(data))
        if gone and found.kind is Kind.HTTP:
            raise self._blocked("a request came in pieces")
        return found, data[gone:]

    async def _more(self, *, held: bool) -> bytes:
        """What the guest sends next. Raises TimeoutError when it is to go on, and does not."""
        now = self._loop.time()
        if self.is_tls and self._whole_by is None:
            self._whole_by = now + self._limits.head_seconds
        # A guest that only listens may do so, and so may one whose words have gone on.
        async with asyncio.timeout_at(now + self._limits.held_seconds if held else self._whole_by):
            return await self._loop.sock_recv(self._guest, _READ_BYTES)

    def _check(self, found: Opening) -> None:
        """A client of TLS must name the host of the tunnel, which is what the policy has allowed. Raises Refusal."""
        target = self._target
        if len(found.names) > 1:
            raise self._blocked("TLS names several servers")
        name = found.names[0] if found.names else None
        if target.is_address:
            # The address itself was allowed; what is never allowed is not behind it either.
            if name is not None and self._passage.machine.in_force.denies(self._named(name)):
                raise self._blocked("the operator of this host denies the server that TLS names")
            return
        if name is None:
            raise self._blocked("TLS names no server")
        if name != target.host:
            raise self._blocked("TLS names another server")

    def _named(self, name: str) -> Target:
        try:
            return target_of(name, self._target.port)
        except NotNamed:
            raise self._blocked("TLS names a server that is none") from None

    def _blocked(self, reason: str) -> Refusal:
        return blocked(self._target.host, self._target.port, reason)
