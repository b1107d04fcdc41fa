"""The command line's end of an attached process: its streams are those of this program, its signals too."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any, TextIO, TypeVar

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from cli.task.connection import Server, open_socket
from cli.task.terminal_mode import RawTerminal, raw_terminal, terminal_size
from foundation.errors import ServiceUnavailable, TaskyardError
from foundation.service.attachment import PIECE, STDERR, STDIN, STDOUT, WINDOW, Attachment, Taken, Window, frame
from foundation.service.refusals import error_from

_T = TypeVar("_T")

# Those of its output that are not written yet; there is no more of it than the window.
_FRAMES_HELD = 2**16
_CLOSE_SECONDS = 2.0
_SIGNAL_BASE = 128
_INTERRUPTED = 130


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
        self._task_id = task_id
        self._wanted = wanted.model_copy(update={"window": WINDOW})
        self._terminal = terminal
        self._taken = Taken(WINDOW)
        self._window = Window(0)
        self._room = asyncio.Event()
        self._interrupted = False

    async def run(self) -> int:
        connection = await open_socket(self._server, self._task_id, "exec", frames_held=_FRAMES_HELD)
        try:
            # A server that has refused has closed by now; why is still to be read.
            await _sent(connection, self._wanted.model_dump_json(exclude_defaults=True))
            return await self._serve(connection)
        except ConnectionClosed:
            raise ServiceUnavailable(
                f"The connection to the server at {self._server.shown} broke; the command in the machine has "
                "ended with it."
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
            raise self._server.foreign() from error

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
