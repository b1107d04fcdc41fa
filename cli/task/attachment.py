"""The command line's end of an attached process: its streams are those of this program, its signals too."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO, TypeVar
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from cli.task.terminal_mode import RawTerminal, raw_terminal, terminal_size
from client.refusals import refusal
from client.tasks.calls import headers, task_url, trust
from foundation.errors import ForeignServer, ServiceUnavailable, TaskyardError
from foundation.service.attachment import PIECE, STDERR, STDIN, STDOUT, WINDOW, Attachment, Taken, Window, frame
from foundation.service.refusals import error_from
from foundation.urls import without_credentials

_T = TypeVar("_T")

_CONNECT_SECONDS = 5.0
# The server has looked for the machine then, and its host has entered it.
_OPEN_SECONDS = 45.0
# A server that has gone is noticed after a minute: by what it does not acknowledge, whatever else waits to be read.
_PING_SECONDS = 20.0
_UNACKNOWLEDGED_MILLISECONDS = 60_000
# Those of its output that are not written yet; there is no more of it than the window.
_FRAMES_HELD = 2**16
_CLOSE_SECONDS = 2.0
_FRAME_BYTES = 2**20
_SIGNAL_BASE = 128
_INTERRUPTED = 130


@dataclass(frozen=True)
class Server:
    """The server, and the token that goes to it."""

    address: str
    token: str | None


def attach(server: Server, task_id: str, wanted: Attachment, *, raw: bool) -> int:
    """Run the process, with this program's own streams; the exit code, 128 and its number for a signal.

    With ``raw``, standard input is a terminal that is the process's alone meanwhile.
    Raises the server's refusals, and ServiceUnavailable when the connection breaks.
    """
    try:
        with raw_terminal() if raw else nullcontext() as terminal:
            return asyncio.run(_Attached(server, task_id, wanted, terminal).run())
    except ServiceUnavailable:
        if raw:
            sys.stderr.write("\n")  # the process may have left the cursor anywhere
        raise


class _Left(Exception):
    """The program is to end with this code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Attached:
    def __init__(self, server: Server, task_id: str, wanted: Attachment, terminal: RawTerminal | None) -> None:
        self._server = server
        self._shown = without_credentials(server.address)
        self._task_id = task_id
        self._wanted = wanted.model_copy(update={"window": WINDOW})
        self._terminal = terminal
        self._taken = Taken(WINDOW)
        self._window = Window(0)
        self._room = asyncio.Event()
        self._interrupted = False

    async def run(self) -> int:
        connection = await self._connected()
        try:
            await connection.send(self._wanted.model_dump_json(exclude_defaults=True))
            return await self._serve(connection)
        except ConnectionClosed:
            raise ServiceUnavailable(
                f"The connection to the server at {self._shown} broke; the command in the machine has ended with it."
            ) from None
        finally:
            with suppress(TimeoutError, OSError):
                await asyncio.wait_for(connection.close(), _CLOSE_SECONDS)

    async def _serve(self, connection: ClientConnection) -> int:
        loop = asyncio.get_running_loop()
        reading = loop.create_task(self._read(connection))
        left: asyncio.Future[int] = loop.create_future()
        tasks = {reading, left}
        handled = self._handle_signals(connection, left)
        feeding = loop.create_task(self._feed(connection)) if self._wanted.stdin else None
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return left.result() if left.done() else reading.result()
        except _Left as leaving:
            return leaving.code
        finally:
            for number in handled:
                loop.remove_signal_handler(number)
            for task in (reading, left, feeding):
                if task is not None:
                    task.cancel()
            await asyncio.gather(reading, *([feeding] if feeding else []), return_exceptions=True)

    def _handle_signals(self, connection: ClientConnection, left: asyncio.Future[int]) -> list[signal.Signals]:
        loop = asyncio.get_running_loop()
        sending: set[asyncio.Task[None]] = set()

        def send(control: str) -> None:
            task = loop.create_task(_sent(connection, control))
            sending.add(task)
            task.add_done_callback(sending.discard)

        def interrupt() -> None:
            if self._interrupted and not left.done():
                left.set_result(_INTERRUPTED)
            self._interrupted = True
            send(frame(signal="INT"))

        def resize() -> None:
            if self._terminal is not None:
                # After a suspension, whatever the shell has set in the meantime.
                self._terminal.enter()
            send(frame(resize=terminal_size()))

        handlers: dict[signal.Signals, Callable[[], None]] = {signal.SIGINT: interrupt}
        if self._wanted.terminal is not None:
            handlers |= {signal.SIGWINCH: resize, signal.SIGCONT: resize}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        return list(handlers)

    async def _read(self, connection: ClientConnection) -> int:
        """Write what the process writes; its exit code."""
        writing = _Thread()
        outputs = {STDOUT: sys.stdout, STDERR: sys.stderr}
        async for message in connection:
            if isinstance(message, bytes):
                output = outputs.get(message[0] if message else -1)
                if output is not None:
                    await writing.call(_write, output, message[1:])
                    if self._taken.add(len(message) - 1):
                        await connection.send(frame(taken=self._taken.total))
            elif (code := self._control(message)) is not None:
                return code
        raise ConnectionClosed(None, None)

    def _control(self, text: str) -> int | None:
        """The exit code, once the process has ended. Raises what the server refuses."""
        try:
            control: dict[str, Any] = json.loads(text)
            if "error" in control:
                raise error_from(control["error"])
            if "started" in control:
                self._window = Window(int(control["started"]["window"]))
                self._room.set()
            if "taken" in control:
                self._window.take(int(control["taken"]))
                self._room.set()
            return _exit_code(control["exit"]) if "exit" in control else None
        except TaskyardError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._foreign() from error

    async def _feed(self, connection: ClientConnection) -> None:
        """Send what comes on standard input, as fast as it is taken."""
        source = _Thread()
        with suppress(ConnectionClosed):
            while True:
                self._room.clear()
                if not (room := min(self._window.room, PIECE)):
                    await self._room.wait()
                    continue
                data = await source.call(_read, room)
                if not data:
                    await connection.send(frame(eof=True))
                    return
                self._window.sent += len(data)
                await connection.send(bytes([STDIN]) + data)

    async def _connected(self) -> ClientConnection:
        address = self._server.address.rstrip("/")
        given = headers(self._server.token)
        away = ServiceUnavailable(
            f"The server at {self._shown} does not answer; start it with 'sandbox up', or name another with --server "
            "or TASKYARD_SERVER."
        )
        try:
            opened = await asyncio.wait_for(_dial(address), _CONNECT_SECONDS)
        except (OSError, TimeoutError) as error:
            raise away from error
        try:
            return await _Connect(
                f"ws{address[4:]}{task_url(self._task_id)}/exec",
                sock=opened,
                additional_headers={name: value for name, value in given.items() if name != "User-Agent"},
                user_agent_header=given["User-Agent"],
                ssl=trust(address) if address.startswith("https:") else None,
                compression=None,
                open_timeout=_OPEN_SECONDS,
                ping_interval=_PING_SECONDS,
                ping_timeout=None,
                close_timeout=_CLOSE_SECONDS,
                max_size=_FRAME_BYTES,
                max_queue=_FRAMES_HELD,
            )
        except InvalidStatus as refused:
            answer = refused.response
            raise refusal(self._shown, answer.status_code, answer.headers, bytes(answer.body or b"")) from None
        except InvalidMessage as error:
            raise (away if isinstance(error.__cause__, EOFError | OSError) else self._foreign()) from error
        except InvalidHandshake as error:
            raise self._foreign() from error
        except (OSError, TimeoutError, EOFError) as error:
            raise away from error

    def _foreign(self) -> ForeignServer:
        return ForeignServer(f"What answers at {self._shown} is not Taskyard, or another version of it.")


class _Connect(connect):
    """Goes where it was told to go, and nowhere else: the token is for that server alone."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        """No redirect is followed."""
        return exc


async def _dial(address: str) -> socket.socket:
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(parts.hostname or "", port, type=socket.SOCK_STREAM)
    failure: OSError | None = None
    for family, kind, protocol, _, where in found:
        opened = socket.socket(family, kind, protocol)
        try:
            opened.setblocking(False)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MILLISECONDS)
            await loop.sock_connect(opened, where)
        except OSError as error:
            opened.close()
            failure = error
        except BaseException:
            opened.close()
            raise
        else:
            return opened
    raise failure or OSError(f"{address} has no address")


class _Thread:
    """A thread for calls that may never return, one after another: nobody waits for it at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def call(self, function: Callable[..., _T], *arguments: Any) -> _T:
        """What the function gives, or raises."""
        result: asyncio.Future[_T] = self._loop.create_future()
        self._calls.put((result, partial(function, *arguments)))
        return await result

    def _run(self) -> None:
        while True:
            result, call = self._calls.get()
            try:
                told = partial(self._tell, result, call())
            except Exception as error:  # noqa: BLE001 -- it is raised where it was called
                told = partial(self._tell, result, None, error)
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(told)

    @staticmethod
    def _tell(result: asyncio.Future[Any], value: Any, error: Exception | None = None) -> None:
        if result.done():
            return
        if error is None:
            result.set_result(value)
        else:
            result.set_exception(error)


def _read(most: int) -> bytes:
    try:
        return os.read(0, most)
    except OSError:
        return b""


def _write(output: TextIO, data: bytes) -> None:
    try:
        output.buffer.write(data)
        output.buffer.flush()
    except SystemExit as leaving:
        # Whoever reads has gone, or the disk is full: an event loop is no place for that.
        raise _Left(int(str(leaving.code))) from None


async def _sent(connection: ClientConnection, control: str) -> None:
    with suppress(ConnectionClosed):
        await connection.send(control)


def _exit_code(ended: dict[str, Any]) -> int:
    if ended.get("code") is not None:
        return int(ended["code"])
    number = signal.Signals.__members__.get(f"SIG{ended.get('signal')}")
    return _SIGNAL_BASE + number if number else 1
