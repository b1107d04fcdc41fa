"""Connections of the proxy's HTTP client: to the checked address of the one target that a request is for."""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore

_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR

#: Opens a connection to a host and port, and raises what it likes.
Connect = Callable[[str, int], Awaitable[socket.socket]]


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections by ``connect`` alone; ``sent`` and ``received`` count the bytes that pass."""

    def __init__(self, connect: Connect, sent: Callable[[int], None], received: Callable[[int], None]) -> None:
        self._connect = connect
        self._sent = sent
        self._received = received

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109, ARG002 -- connecting has its own limits
        local_address: str | None = None,  # noqa: ARG002 -- as the client has it
        socket_options: Iterable[Any] | None = None,  # noqa: ARG002
    ) -> httpcore.AsyncNetworkStream:
        """A connection. Raises what ``connect`` raises."""
        opened = await self._connect(host, port)
        reader, writer = await asyncio.open_connection(sock=opened)
        return _Stream(reader, writer, self._sent, self._received)

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """One connection, with a limit of time for each read and write."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sent: Callable[[int], None],
        received: Callable[[int], None],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._sent = sent
        self._received = received

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        try:
            async with asyncio.timeout(timeout):
                data = await self._reader.read(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("nothing has come") from error
        except OSError as error:
            raise httpcore.ReadError(str(error)) from error
        self._received(len(data))
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if not buffer:
            return
        try:
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()
        except TimeoutError as error:
            raise httpcore.WriteTimeout("nothing has been taken") from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error
        self._sent(len(buffer))

    async def aclose(self) -> None:
        # Closing would wait for a host that takes nothing, for as long as it likes.
        self._writer.transport.abort()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("TLS was not agreed on in time") from error
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            # Where an answer is over and something comes all the same, it is the connection's end.
            opened = self._writer.get_extra_info("socket")
            if opened is None or opened.fileno() < 0 or self._reader.at_eof():
                return True
            poll = select.poll()
            poll.register(opened.fileno(), _READABLE)
            return bool(poll.poll(0))
        return self._writer.get_extra_info(info)
