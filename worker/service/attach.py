"""The WebSocket of attached processes: each connection is a process of the machine, and ends it when it ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from foundation.errors import InvalidBody, TimedOut
from foundation.faults import Fault
from foundation.service.attachment import (
    PIECE,
    STDERR,
    STDIN,
    STDOUT,
    WINDOW,
    Attachment,
    Control,
    Taken,
    Window,
    frame,
)
from foundation.service.paths import BASE
from foundation.service.processes import ProcessSpec
from foundation.service.refusals import NORMAL
from machines.processes.attached import AttachedProcess, Exit, start
from worker.service.machine import Machine, machine_of

_SPEC_SECONDS = 30.0
# What a process has left behind may write on for so long after its end: the last words of a 'tee', for one.
_LINGER_SECONDS = 1.0
# How long the channel's own end is waited for after everything was killed.
_END_SECONDS = 5.0
# Between the two signals for a process whose time is up.
_GRACE_SECONDS = 5.0
# Beyond the window of stdin, which the client heeds unless it is a simple one.
_UNREAD_MOST = 2 * WINDOW
_NAME_CHARS = 60
_STREAMS = {"stdout": bytes([STDOUT]), "stderr": bytes([STDERR])}


async def attach(socket: WebSocket) -> None:
    """A process for this connection, by the spec in its first frame. The frames are those of foundation's attachment.

    What its errors are is said in a last frame, and by the code with which the connection is closed.
    """
    machine = await machine_of(socket, "processes")
    await socket.accept()
    wanted = await _first(socket)
    if wanted is None:
        return
    machine.note_access(*_told(wanted))
    news, room = _News(), _News()

    def come() -> None:
        news.come()
        room.come()

    process = await machine.run(start, machine.shell, wanted, come)
    try:
        with suppress(WebSocketDisconnect):
            await _Session(socket, machine, process, wanted, news, room).run()
    finally:
        await machine.run(process.close)


ROUTES = (WebSocketRoute(f"{BASE}/machines/{{machine_id}}/attach", attach),)


async def _first(socket: WebSocket) -> Attachment | None:
    """What the first frame wants; None when the client left instead."""
    try:
        message = await asyncio.wait_for(socket.receive(), _SPEC_SECONDS)
    except TimeoutError:
        raise TimedOut("Nothing came that says which process is to be started") from None
    if message["type"] == "websocket.disconnect":
        return None
    text = message.get("text")
    if text is None:
        raise InvalidBody.of([Fault("", "the first frame is a text frame: the process to be started, as JSON", "text")])
    return Attachment.model_validate_json(text)


def _told(spec: ProcessSpec) -> tuple[str, str]:
    """Kind and message of the use. The program alone is named: what it is given may be nobody else's business."""
    program = f"'{spec.argv[0].rpartition('/')[2][:_NAME_CHARS]}'" if spec.argv else "a line for the shell"
    if spec.terminal is not None:
        return "shell", f"A terminal was opened in the machine as {spec.user}, for {program}."
    return "exec", f"A command was run in the machine as {spec.user}: {program}."


class _News:
    """Wakes the event loop from the connection's thread: once for all that came since it last looked."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        self._coming = False

    def come(self) -> None:
        """There is news. Called by any thread."""
        if not self._coming:
            self._coming = True
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._event.set)

    def look(self) -> None:
        """What comes from now on wakes who waits."""
        self._coming = False
        self._event.clear()

    async def wait(self, seconds: float | None = None) -> bool:
        """Whether something has come since the last look; waits for it, at most so many seconds."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return False
        return True


class _Session:
    """One process and its client."""

    def __init__(
        self,
        socket: WebSocket,
        machine: Machine,
        process: AttachedProcess,
        wanted: Attachment,
        news: _News,
        room: _News,
    ) -> None:
        self._socket = socket
        self._machine = machine
        self._process = process
        self._wanted = wanted
        # The same for who sends the process's output on, and for who waits for room in its input.
        self._news = news
        self._input_room = room
        self._came = asyncio.Event()
        self._fed = asyncio.Event()
        self._pending = bytearray()
        self._eof = not (wanted.stdin or wanted.terminal)
        self._taken = Taken(WINDOW)
        self._window = Window(wanted.window)
        self._acknowledged = asyncio.Event()
        self._timed_out = False

    async def run(self) -> None:
        """Until the process has ended, or the client has left."""
        await self._send({"started": {"pid": self._process.pid, "window": WINDOW}})
        output = asyncio.create_task(self._output())
        tasks = {output, asyncio.create_task(self._receive())}
        aside = [asyncio.create_task(self._feed())]
        if self._wanted.limits.timeout is not None:
            aside.append(asyncio.create_task(self._hold_to_time(self._wanted.limits.timeout)))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (*tasks, *aside):
                task.cancel()
            done = await asyncio.gather(*tasks, *aside, return_exceptions=True)
        for came in done:
            if isinstance(came, Exception):
                raise came
        if not output.cancelled():
            await self._say_end(output.result())

    async def _say_end(self, ended: Exit | None) -> None:
        if ended is None:
            raise self._machine.shell.broken("The connection to the guest broke while the process ran")
        reason = "timeout" if self._timed_out else None
        await self._send({"exit": {"code": ended.code, "signal": ended.signal, "reason": reason}})
        with suppress(RuntimeError):
            await self._socket.close(NORMAL)

    async def _output(self) -> Exit | None:
        """Send on what the process writes, and at last how it ended; None when that cannot be known any more."""
        loop = asyncio.get_running_loop()
        kill_at: float | None = None
        killed = False
        while True:
            self._news.look()
            ended = self._process.exit
            if ended is not None:
                kill_at = kill_at or loop.time() + _LINGER_SECONDS
                if not killed and not self._process.is_silent and loop.time() >= kill_at:
                    killed = True
                    await self._machine.run(self._process.kill_rest)
            if self._process.has_output:
                for stream, data in await self._machine.run(self._read):
                    await self._send_output(_STREAMS[stream], data)
                continue
            if self._process.is_cut_off or (ended is not None and self._process.is_silent):
                return ended
            if kill_at is None:
                await self._news.wait()
            elif not await self._news.wait(_END_SECONDS if killed else kill_at - loop.time()) and killed:
                return ended

    def _read(self) -> list[tuple[str, bytes]]:
        return list(self._process.read())

    async def _send_output(self, stream: bytes, data: bytes) -> None:
        at = 0
        while at < len(data):
            self._acknowledged.clear()
            room = min(self._window.room, PIECE)
            if not room:
                await self._acknowledged.wait()
                continue
            piece = data[at : at + room]
            await self._socket.send_bytes(stream + piece)
            self._window.sent += len(piece)
            at += len(piece)

    async def _receive(self) -> None:
        """Take what the client sends, until it leaves."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            if (data := message.get("bytes")) is not None:
                if data[:1] == bytes([STDIN]) and not self._eof:
                    self._pending += memoryview(data)[1:]
                    self._came.set()
            else:
                await self._control(Control.model_validate_json(message.get("text") or ""))
            while len(self._pending) > _UNREAD_MOST:
                self._fed.clear()
                await self._fed.wait()

    async def _control(self, control: Control) -> None:
        if control.taken is not None:
            self._window.take(control.taken)
            self._acknowledged.set()
        if control.eof:
            self._eof = True
            self._came.set()
        if control.resize is not None and self._wanted.terminal is not None:
            await self._machine.run(self._process.resize, *control.resize)
        if control.signal is not None:
            await self._machine.run(self._process.signal, control.signal)

    async def _feed(self) -> None:
        """Give the process what has come for it, and its end."""
        while True:
            self._came.clear()
            if self._pending:
                self._input_room.look()
                if not self._process.takes_input:
                    await self._input_room.wait()
                    continue
                piece = bytes(self._pending[:PIECE])
                count = await self._machine.run(self._process.write, piece)
                del self._pending[:count]
                self._fed.set()
                if self._taken.add(count):
                    await self._send({"taken": self._taken.total})
            elif self._eof:
                await self._machine.run(self._process.close_input)
                return
            else:
                await self._came.wait()

    async def _hold_to_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        self._timed_out = True
        await self._machine.run(self._process.signal, "TERM")
        await asyncio.sleep(_GRACE_SECONDS)
        await self._machine.run(self._process.signal, "KILL")

    async def _send(self, control: dict[str, Any]) -> None:
        await self._socket.send_text(frame(**control))
