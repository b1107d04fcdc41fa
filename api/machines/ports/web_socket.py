"""A WebSocket of a client, tied to one of a program in a machine: messages, sub-protocols and close codes both ways.

Both ends are kept alive by themselves: what answers a ping is whoever is at this end of it.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator
from contextlib import suppress

import h11
from starlette.responses import JSONResponse, Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from websockets.exceptions import InvalidState, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol
from websockets.utils import accept_key, generate_key

from api.machines.hosts import Find, Hosts
from api.machines.ports.exchange import HEAD_BYTES, STATUSES, SWITCHED, request_head
from api.machines.ports.fields import Way, answer_fields
from api.machines.ports.tunnel import Tunnel, tunnel
from foundation.errors import GuestAnswerInvalid, TaskyardError, TimedOut
from foundation.service.refusals import as_body

#: A message from the machine has at most so many bytes; one from the client, what the server that this runs in takes.
MESSAGE_BYTES = 16 * 2**20
_REFUSAL_BYTES = 2**20
_OPEN_SECONDS = 60.0
_CLOSE_SECONDS = 5.0
_NORMAL, _GONE, _BROKEN = 1000, 1001, 1011
_NO_STATUS, _ABNORMAL, _NO_TLS = 1005, 1006, 1015
_REASON_BYTES = 120


async def tie(socket: WebSocket, hosts: Hosts, find: Find, way: Way, target: bytes) -> None:
    """Tie the client's WebSocket, which is not accepted yet, to the program at the port, until either ends.

    It is accepted when the program accepts it; what that answers instead is what the client gets. Raises PortRefused,
    GuestAnswerInvalid, TimedOut, and what ``Hosts.socket`` raises.
    """
    async with tunnel(hosts, find, way.port) as opened:
        other = _Guest(opened, way)
        try:
            async with asyncio.timeout(_OPEN_SECONDS):
                refusal = await other.open(socket, target)
        except TimeoutError:
            raise TimedOut(
                f"What listens on port {way.port} in the machine did not answer within {_OPEN_SECONDS:g} s"
            ) from None
        if refusal is not None:
            await socket.send_denial_response(refusal)
            return
        await socket.accept(subprotocol=other.subprotocol, headers=other.fields)
        await _pass_on(socket, other)


async def deny(socket: WebSocket, error: TaskyardError) -> None:
    """Answer the client's opening with the error; one that is open already is closed."""
    with suppress(WebSocketDisconnect, RuntimeError):
        if socket.application_state is WebSocketState.CONNECTING:
            await socket.send_denial_response(JSONResponse(as_body(error), error.http_status))
        else:
            await socket.close(_BROKEN)


async def _pass_on(socket: WebSocket, other: _Guest) -> None:
    inward, outward = asyncio.create_task(_inward(socket, other)), asyncio.create_task(_outward(socket, other))
    try:
        await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_COMPLETED)
        if inward.done() and not outward.done() and inward.exception() is None:
            # The client has left, and the program is told why.
            await other.close(*inward.result())
            await asyncio.wait({outward}, timeout=_CLOSE_SECONDS)
            return
        with suppress(TaskyardError, WebSocketDisconnect, RuntimeError, ValueError):
            await outward
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(*other.ended)


async def _inward(socket: WebSocket, other: _Guest) -> tuple[int, str]:
    """From the client to the program, until the client leaves; the code and reason that it gave."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return _sendable(message.get("code"), _GONE), message.get("reason") or ""
        data = message.get("bytes")
        await other.send(message["text"] if data is None else data)


async def _outward(socket: WebSocket, other: _Guest) -> None:
    async for message in other.messages():
        if isinstance(message, str):
            await socket.send_text(message)
        else:
            await socket.send_bytes(message)


class _Guest:
    """The program's end, as a client of it: its opening by h11, its frames by the library's protocol."""

    def __init__(self, opened: Tunnel, way: Way) -> None:
        self.subprotocol: str | None = None
        self.fields: list[tuple[bytes, bytes]] = []
        #: Code and reason that the program closed with, once it has.
        self.ended: tuple[int, str] = (_BROKEN, "")
        self._tunnel = opened
        self._way = way
        self._frames = Protocol(CLIENT, state=OPEN, max_size=MESSAGE_BYTES)
        self._parts: list[bytes] = []
        self._is_text = False
        self._writing = asyncio.Lock()

    async def open(self, socket: WebSocket, target: bytes) -> Response | None:
        """Ask the program; its answer, when it does not accept."""
        key = generate_key()
        offered = socket.scope["subprotocols"]
        extra = {
            b"connection": b"Upgrade",
            b"upgrade": b"websocket",
            b"sec-websocket-version": b"13",
            b"sec-websocket-key": key.encode(),
        }
        if offered:
            extra[b"sec-websocket-protocol"] = ", ".join(offered).encode("latin-1")
        http = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_BYTES)
        try:
            head = request_head(socket.scope, self._way, target, extra)
            asked = (http.send(head) or b"") + (http.send(h11.EndOfMessage()) or b"")
        except h11.LocalProtocolError as error:
            raise GuestAnswerInvalid(f"The request cannot be passed on as it is: {error}") from error
        await self._tunnel.write(asked)
        try:
            return await self._opened(http, key, offered)
        except h11.RemoteProtocolError as error:
            raise self._invalid(f"does not answer as HTTP/1.1 has it ({error})") from error

    async def send(self, message: str | bytes) -> None:
        """Send a message, while the program takes any."""
        if isinstance(message, str):
            self._frames.send_text(message.encode())
        else:
            self._frames.send_binary(message)
        await self._flush()

    async def close(self, code: int, reason: str) -> None:
        """Tell the program that it is over."""
        with suppress(InvalidState, ProtocolError):
            self._frames.send_close(code, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
        await self._flush()

    async def messages(self) -> AsyncIterator[str | bytes]:
        """What the program sends, up to its end."""
        while True:
            for event in self._frames.events_received():
                if isinstance(event, Frame) and (message := self._whole(event)) is not None:
                    yield message
            # Pongs, and the answer to a close.
            await self._flush()
            closed = self._frames.close_rcvd
            if closed is not None:
                self.ended = (_sendable(closed.code, _NORMAL), closed.reason)
                return
            if self._frames.parser_exc is not None or not (data := await self._tunnel.read()):
                return
            self._frames.receive_data(data)

    def _whole(self, frame: Frame) -> str | bytes | None:
        """The message that ends with the frame. Raises UnicodeDecodeError."""
        if frame.opcode in {Opcode.TEXT, Opcode.BINARY}:
            self._parts, self._is_text = [], frame.opcode is Opcode.TEXT
        elif frame.opcode is not Opcode.CONT:
            return None
        self._parts.append(bytes(frame.data))
        if not frame.fin:
            return None
        whole, self._parts = b"".join(self._parts), []
        return whole.decode() if self._is_text else whole

    async def _flush(self) -> None:
        async with self._writing:
            data = b"".join(self._frames.data_to_send())
            if data:
                await self._tunnel.write(data)

    async def _opened(self, http: h11.Connection, key: str, offered: list[str]) -> Response | None:
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self._tunnel.read())
            elif isinstance(event, h11.Response):
                return await self._refusal(http, event)
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == SWITCHED:
                    self._accept(event, key, offered)
                    self._frames.receive_data(http.trailing_data[0])
                    return None
            else:
                raise self._invalid("ended the connection without an answer")

    def _accept(self, event: h11.InformationalResponse, key: str, offered: list[str]) -> None:
        named = dict(event.headers)
        if named.get(b"upgrade", b"").lower() != b"websocket" or not hmac.compare_digest(
            named.get(b"sec-websocket-accept", b""), accept_key(key).encode()
        ):
            raise self._invalid("does not accept a WebSocket as RFC 6455 has it")
        if b"sec-websocket-extensions" in named:
            raise self._invalid("uses an extension of WebSockets that nobody offered")
        chosen = named.get(b"sec-websocket-protocol")
        if chosen is not None:
            self.subprotocol = chosen.decode("latin-1")
            if self.subprotocol not in offered:
                raise self._invalid("chose a sub-protocol that nobody offered")
        fields = answer_fields(list(event.headers), self._way)
        self.fields = [(name, value) for name, value in fields if not name.startswith(b"sec-websocket-")]

    async def _refusal(self, http: h11.Connection, head: h11.Response) -> Response:
        if head.status_code not in STATUSES:
            raise self._invalid("gives an answer that no browser takes")
        body = b""
        while len(body) <= _REFUSAL_BYTES:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await self._tunnel.read())
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            else:
                break
        answer = Response(body[:_REFUSAL_BYTES], head.status_code)
        told = answer_fields(list(head.headers), self._way)
        answer.raw_headers = [field for field in told if field[0] != b"content-length"]
        return answer

    def _invalid(self, what: str) -> GuestAnswerInvalid:
        return GuestAnswerInvalid(f"What listens on port {self._way.port} in the machine {what}", port=self._way.port)


def _sendable(code: int | None, instead: int) -> int:
    """A close code as it may be sent."""
    return instead if code is None or code in {_NO_STATUS, _ABNORMAL, _NO_TLS} else code
