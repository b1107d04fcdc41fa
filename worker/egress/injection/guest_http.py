"""HTTP/1.1 with a guest inside of TLS: one request after another, each with its answer, all with deadlines."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Any

import h11
import httpcore

Header = tuple[bytes, bytes]

_READ_BYTES = 64 * 1024
_HEAD_BYTES = 64 * 1024
_BETWEEN_SECONDS = 300.0
_SHUTDOWN_SECONDS = 5.0
# A guest that has been refused may send so much more before its connection is closed.
_LINGER_SECONDS = 2.0
_LINGER_READS = 64


class _Protocol(asyncio.StreamReaderProtocol):
    """Tells when the connection is lost."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        super().__init__(reader)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.lost.done():
            self.lost.set_result(None)


async def accept_tls(
    connection: socket.socket, context: ssl.SSLContext, head_seconds: float, idle_seconds: float
) -> GuestHttp:
    """The guest's side of HTTP on a connection on which the guest begins TLS; the connection is then its own.

    A head has to come whole within ``head_seconds``; nothing else may stand still for ``idle_seconds``. Raises OSError
    and ssl.SSLError.
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(_READ_BYTES)
    protocol = _Protocol(reader)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol,
        connection,
        ssl=context,
        ssl_handshake_timeout=head_seconds,
        ssl_shutdown_timeout=_SHUTDOWN_SECONDS,
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    return GuestHttp(reader, writer, protocol.lost, head_seconds, idle_seconds)


class GuestHttp:
    """The server's side of one connection. Raises OSError, TimeoutError and h11's errors."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        lost: asyncio.Future[None],
        head_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._lost = lost
        self._head_seconds = head_seconds
        self._idle_seconds = idle_seconds
        # The first request comes at once.
        self._between_seconds = head_seconds
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)

    async def next_request(self) -> h11.Request | None:
        """The next request's head; None when the guest has ended the connection between two of them."""
        now = asyncio.get_running_loop().time
        end, begun = now() + self._between_seconds, False
        while not isinstance(event := self._http.next_event(), h11.Request):
            if isinstance(event, h11.ConnectionClosed):
                return None
            # A head that has begun to come has to come whole.
            if self._http.trailing_data[0] and not begun:
                end, begun = now() + self._head_seconds, True
            async with asyncio.timeout_at(end):
                self._http.receive_data(await self._reader.read(_READ_BYTES))
        self._between_seconds = min(self._idle_seconds, _BETWEEN_SECONDS)
        return event

    async def body(self) -> AsyncIterator[bytes]:
        """The request's body in pieces. A guest that waits to be told to send it is told so."""
        while True:
            if self._http.they_are_waiting_for_100_continue:
                await self._write(self._http.send(h11.InformationalResponse(status_code=100, headers=[])))
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                async with asyncio.timeout(self._idle_seconds):
                    self._http.receive_data(await self._reader.read(_READ_BYTES))
            elif isinstance(event, h11.Data):
                yield bytes(event.data)
            else:
                return

    async def begin(self, status: int, headers: Sequence[Header], reason: bytes) -> None:
        """Send the head of the answer."""
        await self._write(self._http.send(h11.Response(status_code=status, headers=list(headers), reason=reason)))

    async def send(self, data: bytes) -> None:
        """Send a piece of the answer's body."""
        if data:
            await self._write(self._http.send(h11.Data(data=data)))

    async def end(self) -> bool:
        """End the answer. Whether another request may follow on this connection."""
        await self._write(self._http.send(h11.EndOfMessage()))
        # The head of a request that has no body is followed by its end, which nobody has read yet.
        if self._http.their_state is h11.SEND_BODY:
            self._http.next_event()
        if not self._http.their_state is self._http.our_state is h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    async def refuse(self, status: int, sentence: str, headers: Mapping[str, str], body: bytes) -> None:
        """Answer with the sentence, unless an answer has begun, and let the guest read it."""
        if self._http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
            return
        fields = [(name.encode(), value.encode()) for name, value in headers.items()]
        reason = "".join(letter if " " <= letter <= "~" else "?" for letter in sentence).encode()
        await self._write(self._http.send(h11.Response(status_code=status, headers=fields, reason=reason)))
        await self._write(self._http.send(h11.Data(data=body)) + self._http.send(h11.EndOfMessage()))
        # What the guest still sends would break the answer off before it has read it.
        sends = self._http.their_state is h11.SEND_BODY and self._http.next_event() is h11.NEED_DATA
        async with asyncio.timeout(_LINGER_SECONDS):
            for _ in range(_LINGER_READS if sends else 0):
                if not await self._reader.read(_READ_BYTES):
                    return

    async def switch(
        self,
        answer: httpcore.Response,
        headers: Sequence[Header],
        without_values: Callable[[AsyncIterator[bytes]], AsyncIterator[bytes]],
    ) -> None:
        """Speak another protocol from now on: tell the guest so, and move bytes until one side ends.

        What the host says comes to the guest as ``without_values`` gives it.
        """
        # The end of the request, which asks for it and has no body.
        self._http.next_event()
        named = [*headers, *((name, value) for name, value in answer.headers if name.lower() == b"upgrade")]
        told = h11.InformationalResponse(status_code=101, headers=[*named, (b"Connection", b"Upgrade")])
        await self._write(self._http.send(told))
        stream = answer.extensions["network_stream"]
        rest = self._http.trailing_data[0]

        async def outwards() -> None:
            data = rest or await self._reader.read(_READ_BYTES)
            while data:
                await stream.write(data, self._idle_seconds)
                data = await self._reader.read(_READ_BYTES)

        async def said() -> AsyncIterator[bytes]:
            while data := await stream.read(_READ_BYTES, self._idle_seconds):
                yield data

        async def inwards() -> None:
            async for data in without_values(said()):
                await self._write(data)

        tasks = [asyncio.create_task(outwards()), asyncio.create_task(inwards())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def unless_lost(self, work: Coroutine[None, None, bool]) -> bool:
        """What the work gives; it is ended, and False, when the guest leaves meanwhile."""
        task = asyncio.ensure_future(work)
        try:
            waited: set[asyncio.Future[Any]] = {task, self._lost}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            return await task if task.done() else False
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def abort(self) -> None:
        """Close the connection, with what has been written sent as far as that takes no long."""
        self._writer.close()
        asyncio.get_running_loop().call_later(_SHUTDOWN_SECONDS, self._writer.transport.abort)

    async def _write(self, data: bytes | None) -> None:
        if data:
            self._writer.write(data)
            async with asyncio.timeout(self._idle_seconds):
                await self._writer.drain()
