"""Connections to ports of a guest, as WebSockets: binary frames are bytes, and ``{"eof": true}`` ends one way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.routing import BaseRoute, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from foundation.errors import GuestUnreachable, InvalidBody, InvalidParameter, TimedOut
from foundation.service.paths import BASE
from foundation.service.refusals import NORMAL
from machines.ports import GuestPort, open_port
from worker.service.machine import Machine, Share, machine_of

#: Connections to the ports of one machine at once.
CONNECTIONS_MOST = 128
# A connection on which nothing moves either way.
_IDLE_SECONDS = 3600.0
# A turn of one packet costs as much as one of many: after one that was full, more is waited for, so often and so long.
_PACKET_BYTES = 32 * 1024
_GATHERED_BYTES = 4 * _PACKET_BYTES
_GATHER_TIMES, _GATHER_SECONDS = 4, 0.005
_CLOSE_SECONDS = 2.0
_DIGITS_MOST = 5
_EOF = json.dumps({"eof": True})


_CONNECTIONS = Share(CONNECTIONS_MOST, "connections to ports of this machine are open; close some")


async def _connect(socket: WebSocket) -> None:
    """Bytes between the client and the port, until both ways have ended or one of the two is gone.

    Before the handshake's answer: PortRefused, InvalidParameter, RateLimitExceeded, and what ``machine_of`` raises.
    """
    port = _port(str(socket.path_params["port"]))
    machine = await machine_of(socket, "ports")
    with _CONNECTIONS.one(machine.id):
        opened = await machine.run(open_port, machine.shell, port, abandoned=True)
        try:
            machine.note_access("port", f"Port {port} of the machine was connected to.")
            await socket.accept()
            await _Passage(socket, opened, machine).run()
        finally:
            # A guest that takes no message holds up the thread, and neither the client nor the end of this worker.
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await machine.run(opened.close, abandoned=True)


ROUTES: tuple[BaseRoute, ...] = (WebSocketRoute(f"{BASE}/machines/{{machine_id}}/connect/{{port}}", _connect),)


class _Passage:
    """The two ways of one connection."""

    def __init__(self, socket: WebSocket, port: GuestPort, machine: Machine) -> None:
        self._socket = socket
        self._port = port
        self._machine = machine
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._calls = _Calls(self._look)
        self._in_bulk = False
        self._flooded: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._upward_over = False
        self._idle = asyncio.timeout(_IDLE_SECONDS)

    async def run(self) -> None:
        """Pass bytes on. Returns when both ways have ended, or the client has left. Raises TimedOut, MachineError."""
        self._port.notify(self._calls.come)
        upward, downward = asyncio.create_task(self._upward()), asyncio.create_task(self._downward())
        try:
            async with self._idle:
                ways: set[asyncio.Future[None]] = {upward, downward, self._flooded}
                ended, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
            with suppress(RuntimeError):  # the client has left in this moment
                await self._socket.close(NORMAL)
        except WebSocketDisconnect:
            return
        except TimeoutError:
            raise TimedOut(f"Nothing has moved on the connection for {_IDLE_SECONDS / 60:g} min") from None
        finally:
            for task in (upward, downward):
                task.cancel()
            self._flooded.cancel()
            await asyncio.gather(upward, downward, return_exceptions=True)

    async def _upward(self) -> None:
        """From the client to the guest, until the client leaves. Raises WebSocketDisconnect then."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            data = message.get("bytes")
            if data is None:
                _require_eof(message.get("text") or "")
                self._upward_over = True
                await self._machine.run(self._port.end, abandoned=True)
                self._news.set()
            elif not self._upward_over:
                await self._send(data)

    async def _send(self, data: bytes) -> None:
        while data:
            self._room.clear()
            if not self._port.writable:
                await self._room.wait()
                continue
            sent = await self._machine.run(self._port.send, data, abandoned=True)
            if sent:
                self._keep()
            data = data[sent:]

    async def _downward(self) -> None:
        """From the guest to the client, until the guest has ended, and the client has too or nobody takes its bytes."""
        while data := await self._receive():
            await self._socket.send_bytes(data)
            self._keep()
        await self._socket.send_text(_EOF)
        while not self._upward_over and not self._port.closed:
            await self._news.wait()
            self._news.clear()

    async def _receive(self) -> bytes:
        if self._in_bulk:
            with self._calls.held():
                await self._gather()
        while not self._port.readable:
            await self._news.wait()
            self._news.clear()
        data = await self._machine.run(self._port.receive, abandoned=True)
        self._in_bulk = len(data) >= _PACKET_BYTES
        return data

    async def _gather(self) -> None:
        for _ in range(_GATHER_TIMES):
            if self._port.unread >= _GATHERED_BYTES or self._port.closed:
                return
            await asyncio.sleep(_GATHER_SECONDS)

    def _look(self) -> None:
        """Something has come from the guest, it takes more, or it has ended."""
        if self._port.flooded and not self._flooded.done():
            self._flooded.set_exception(GuestUnreachable("The guest sends more than it was asked for; it was cut off"))
        self._news.set()
        self._room.set()

    def _keep(self) -> None:
        self._idle.reschedule(asyncio.get_running_loop().time() + _IDLE_SECONDS)


class _Calls:
    """Calls of the thread of the guest's connection, each of which has ``look`` called on the event loop, once for all.

    While they are held, those that come are answered by one look at the end.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._look = look
        self._told = False

    def come(self) -> None:
        """There is something to look at."""
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop has ended before the connection
                self._loop.call_soon_threadsafe(self._tell)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have nobody called meanwhile, each call of whom costs the loop a turn."""
        self._told = True
        try:
            yield
        finally:
            self._tell()

    def _tell(self) -> None:
        self._told = False
        self._look()


def _require_eof(text: str) -> None:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if told != {"eof": True}:
        raise InvalidBody(f"A text frame is {_EOF} here, and nothing else; bytes are sent in binary frames")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= _DIGITS_MOST):
        raise InvalidParameter(f"'{text[:40]}' is no port; one is a number from 1 to 65535")
    return int(text)
