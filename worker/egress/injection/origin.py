"""The client of an injected host: HTTP/2 or HTTP/1.1 over TLS, on connections that the proxy has made and checked.

Nothing is followed, decoded or kept; an answer comes as it is, in pieces.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import httpcore

_BUFFER_BYTES = 64 * 1024
_IDLE_CONNECTION_SECONDS = 60.0
_CLOSING_SECONDS = 5.0

#: Gives a connection to the host, which has been checked. Raises what it likes.
Connect = Callable[[], Awaitable[socket.socket]]
Count = Callable[[int], None]


def origin_pool(trust: ssl.SSLContext, connect: Connect, sent: Count, received: Count) -> httpcore.AsyncConnectionPool:
    """The client for requests of one guest's connection. ``sent`` and ``received`` count what is inside of TLS."""
    return _pool(trust, _Connector(connect, sent, received), http2=True)


def upgrading_pool(
    trust: ssl.SSLContext, connect: Connect, sent: Count, received: Count
) -> httpcore.AsyncConnectionPool:
    """The same for one request that asks for another protocol, which only HTTP/1.1 can."""
    return _pool(trust, _Connector(connect, sent, received), http2=False)


def _pool(trust: ssl.SSLContext, connector: _Connector, *, http2: bool) -> httpcore.AsyncConnectionPool:
    return httpcore.AsyncConnectionPool(
        ssl_context=trust,
        max_connections=1,
        keepalive_expiry=_IDLE_CONNECTION_SECONDS,
        http1=True,
        http2=http2,
        network_backend=connector,
    )


class _Connector(httpcore.AsyncNetworkBackend):
    """Makes connections to the one host, whatever httpcore says of where it is."""

    def __init__(self, connect: Connect, sent: Count, received: Count) -> None:
        self._connect = connect
        self._sent = sent
        self._received = received

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's own
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        del host, port, timeout, local_address, socket_options
        return _Connected(await self._connect(), self._sent, self._received)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Connected(httpcore.AsyncNetworkStream):
    """A connection on which TLS has not begun; nothing is read from it or written to it before."""

    def __init__(self, connection: socket.socket, sent: Count, received: Count) -> None:
        self._connection = connection
        self._sent = sent
        self._received = received

    async def aclose(self) -> None:
        self._connection.close()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 -- httpcore's own
    ) -> httpcore.AsyncNetworkStream:
        try:
            reader, writer = await asyncio.open_connection(
                sock=self._connection,
                ssl=ssl_context,
                server_hostname=server_hostname,
                ssl_handshake_timeout=timeout,
                limit=_BUFFER_BYTES,
            )
        except ssl.SSLCertVerificationError as error:
            self._connection.close()
            raise httpcore.ConnectError(f"its certificate is not to be trusted: {error.verify_message}") from None
        except (OSError, ssl.SSLError) as error:
            self._connection.close()
            reason = getattr(error, "reason", None) or str(error) or type(error).__name__
            raise httpcore.ConnectError(f"it does not speak TLS with this host: {reason}") from None
        return _Stream(reader, writer, self._sent, self._received)

    def get_extra_info(self, info: str) -> Any:
        del info


class _Stream(httpcore.AsyncNetworkStream):
    """A connection inside of TLS."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, sent: Count, received: Count
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = sent
        self._received = received

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109 -- httpcore's own
        try:
            async with asyncio.timeout(timeout):
                data = await self._reader.read(max_bytes)
        except TimeoutError:
            raise httpcore.ReadTimeout("it has not answered for too long") from None
        except OSError as error:
            raise httpcore.ReadError(str(error) or type(error).__name__) from None
        self._received(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109 -- httpcore's own
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError:
            raise httpcore.WriteTimeout("it takes nothing more") from None
        except OSError as error:
            raise httpcore.WriteError(str(error) or type(error).__name__) from None
        self._sent(len(buffer))

    async def aclose(self) -> None:
        # Not waited for: a host that does not end its side would hold up whoever is done with it.
        self._writer.close()
        with suppress(RuntimeError):
            asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self._writer.transport.abort)

    def get_extra_info(self, info: str) -> Any:
        if info == "ssl_object":
            return self._writer.get_extra_info("ssl_object")
        if info == "is_readable":
            # Asked between two requests, and meaning that the host has ended the connection.
            return self._reader.at_eof() or self._writer.is_closing()
        return None
