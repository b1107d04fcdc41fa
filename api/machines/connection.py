"""The connections of this server to one host: kept, shared and bounded; and a watch over whether the host is there."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.typing import Subprotocol

from foundation.errors import HostUnreachable
from foundation.service.paths import ALIVE
from foundation.service.refusals import error_from

CONNECT_SECONDS = 3.0
# Requests and streams of one server to one host at once.
_CONNECTIONS_MOST = 1024
_KEPT_MOST = _CONNECTIONS_MOST
# Less than the host keeps a connection on which nothing is sent.
_KEPT_SECONDS = 60.0
_LOOK_SECONDS = 2.0
_ANSWER_SECONDS = 3.0
_ANSWER_SECONDS_MOST = 30.0
_SLICE_SECONDS = 0.25
# A busy host is given this many looks before streams that are open with it are taken for lost.
_LOOKS_IN_VAIN = 4
_FRAME_BYTES = 2**20
_FRAMES_HELD = 2
_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
)


class HostConnection:
    """What this server has open with a host: at ``near``, the path of a socket, or at ``far``, host:port over TLS.

    Of a host that is far, just the ``certificate`` (PEM) is trusted. For the event loop alone.
    """

    def __init__(self, host: str, *, near: str | None, far: str | None, certificate: str | None) -> None:
        self.host = host
        self._near = near
        self._far = far
        self._tls = _trusting(certificate) if near is None else None
        self.http = self._client(_CONNECTIONS_MOST, _KEPT_MOST)
        # Never waits behind the streams.
        self._looks = self._client(1, 1)
        self._limits: dict[asyncio.Timeout, bool] = {}
        self._watch: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Close every connection, whatever is under way."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.http.aclose()
        await self._looks.aclose()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[Watched]:
        """Raise HostUnreachable in the block when the host is not there any more, or does not answer.

        Enter and leave it in one task. Until the block says that there was an answer, a few seconds count as silence.
        """
        limit: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(None) as limit:
                self._limits[limit] = False
                if self._watch is None:
                    self._watch = asyncio.create_task(self._look_after())
                yield Watched(self._limits, limit)
        except TimeoutError:
            if limit is not None and limit.expired():
                raise self.unreachable("does not answer") from None
            raise
        finally:
            if limit is not None:
                self._limits.pop(limit, None)

    def unreachable(self, what: str) -> HostUnreachable:
        """The error of a host that is not there."""
        return HostUnreachable(
            f"The worker of host {self.host} {what}; the run and its machine go on. Try again in a moment.",
            host=self.host,
        )

    async def open_socket(
        self, path: str, headers: dict[str, str], subprotocols: list[str] | None = None
    ) -> ClientConnection:
        """A WebSocket to a path of the host. Raises what the host answers to its opening, HostUnreachable."""
        options: dict[str, Any] = {
            "proxy": None,
            "additional_headers": headers,
            "subprotocols": [Subprotocol(each) for each in subprotocols] if subprotocols else None,
            "compression": None,
            "user_agent_header": None,
            "open_timeout": None,
            # Whoever waits for its turn to read answers no ping; a host that has gone is noticed otherwise.
            "ping_interval": None,
            "close_timeout": CONNECT_SECONDS,
            "max_size": _FRAME_BYTES,
            "max_queue": _FRAMES_HELD,
        }
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._connected()
        except (OSError, TimeoutError) as error:
            raise self.unreachable("cannot be reached") from error
        try:
            async with self.watched():
                if self._near is not None:
                    return await unix_connect(uri=f"ws://host{path}", sock=connection, **options)
                return await connect(f"wss://{self._far}{path}", sock=connection, ssl=self._tls, **options)
        except InvalidStatus as refusal:
            raise error_from(bytes(refusal.response.body), refusal.response.status_code) from None
        except (OSError, EOFError, InvalidHandshake) as error:
            raise self.unreachable("went away") from error

    async def _connected(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        if self._near is not None:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            target: Any = self._near
        else:
            host, port = _parts(self._far or "")
            family, kind, protocol, _, target = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
            connection = socket.socket(family, kind, protocol)
            for option in _KEEPALIVE:
                connection.setsockopt(*option)
        try:
            connection.setblocking(False)
            await loop.sock_connect(connection, target)
        except BaseException:
            connection.close()
            raise
        return connection

    def _client(self, most: int, kept: int) -> httpx.AsyncClient:
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=kept, keepalive_expiry=_KEPT_SECONDS)
        transport = httpx.AsyncHTTPTransport(
            uds=self._near,
            verify=self._tls if self._tls is not None else False,  # a socket has no TLS
            limits=limits,
            socket_options=None if self._near is not None else list(_KEEPALIVE),
        )
        return httpx.AsyncClient(
            base_url="http://host" if self._near is not None else f"https://{self._far}",
            transport=transport,
            # A host that is silent is noticed by the watch.
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS),
            trust_env=False,
        )

    async def _look_after(self) -> None:
        """Ask the host again and again whether it is there, as long as somebody waits for it."""
        in_vain = 0
        try:
            while self._limits:
                await asyncio.sleep(_LOOK_SECONDS)
                in_vain = 0 if await self._answers() else in_vain + 1
                now = asyncio.get_running_loop().time()
                for limit, answered in list(self._limits.items()):
                    if in_vain >= (_LOOKS_IN_VAIN if answered else 1) and not limit.expired():
                        del self._limits[limit]
                        limit.reschedule(now)
        finally:
            self._watch = None

    async def _answers(self) -> bool:
        """Whether the host answers in time. Time in which this loop itself was late says nothing of the host."""
        loop = asyncio.get_running_loop()
        looking = asyncio.create_task(self._looks.get(ALIVE))
        waited, end = 0.0, loop.time() + _ANSWER_SECONDS_MOST
        try:
            while waited < _ANSWER_SECONDS and loop.time() < end:
                begun = loop.time()
                if (await asyncio.wait({looking}, timeout=_SLICE_SECONDS))[0]:
                    return looking.exception() is None
                if loop.time() - begun < 2 * _SLICE_SECONDS:
                    waited += _SLICE_SECONDS
        finally:
            looking.cancel()
        return False


class Watched:
    """One use of a host, which is watched."""

    def __init__(self, limits: dict[asyncio.Timeout, bool], limit: asyncio.Timeout) -> None:
        self._limits = limits
        self._limit = limit

    def answered(self) -> None:
        """The host has begun to answer: from here on it may be busy for a while."""
        if self._limit in self._limits:
            self._limits[self._limit] = True


def _trusting(certificate: str | None) -> ssl.SSLContext:
    """TLS towards whoever has the key of this certificate, under whatever name it is found."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if certificate:
        context.load_verify_locations(cadata=certificate)
    return context


def _parts(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
