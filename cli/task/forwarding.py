"""Local ports that lead to those of a run's machine: each connection is a WebSocket of its own to the server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from cli.streams import clean
from cli.task.connection import Server, open_socket
from cli.terminal import talk
from foundation.errors import TaskyardError, UsageError
from foundation.service.refusals import error_from

_EOF = json.dumps({"eof": True})
_PIECE_BYTES = 64 * 1024
_FRAMES_HELD = 8
_CLOSE_SECONDS = 2.0


@dataclass(frozen=True)
class Forward:
    """A local port, 0 for one that is free, and the machine's that it leads to."""

    local: int
    remote: int


def forward(server: Server, task_id: str, forwards: Sequence[Forward], addresses: Sequence[str]) -> None:
    """Take connections until Ctrl-C or SIGTERM. Raises UsageError for what cannot be listened on."""
    asyncio.run(_Forwarding(server, task_id).run(forwards, addresses))


class _Forwarding:
    def __init__(self, server: Server, task_id: str) -> None:
        self._server = server
        self._task_id = task_id

    async def run(self, forwards: Sequence[Forward], addresses: Sequence[str]) -> None:
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopping.set)
        opened: list[asyncio.Server] = []
        try:
            for each in forwards:
                for address in addresses:
                    opened.append(listening := await self._listen(each, address))
                    for one in listening.sockets:
                        sys.stdout.write(f"Forwarding from {_shown(one)} -> {each.remote}\n")
            sys.stdout.flush()
            await stopping.wait()
        finally:
            for listening in opened:
                listening.close()

    async def _listen(self, wanted: Forward, address: str) -> asyncio.Server:
        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._take(wanted, reader, writer)

        try:
            return await asyncio.start_server(take, address, wanted.local, limit=_PIECE_BYTES)
        except (OSError, UnicodeError) as error:
            number = error.errno if isinstance(error, OSError) else None
            reason = os.strerror(number) if number is not None and number > 0 else str(error)
            raise UsageError(f"Port {wanted.local} of {address} cannot be listened on: {reason}.") from error

    async def _take(self, wanted: Forward, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection to its end; what goes wrong with it is told, and is no end of the others."""
        talk().print(f"Handling connection for {writer.get_extra_info('sockname')[1]}")
        try:
            what = f"connect/{wanted.remote}"
            upstream = await open_socket(self._server, self._task_id, what, frames_held=_FRAMES_HELD)
            try:
                await _tie(reader, writer, upstream)
            finally:
                with suppress(TimeoutError, OSError):
                    await asyncio.wait_for(upstream.close(), _CLOSE_SECONDS)
        except TaskyardError as error:
            _complain(wanted, error.message)
            writer.transport.abort()
        except ConnectionClosed:
            _complain(wanted, f"The connection to the server at {self._server.shown} broke.")
            writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()


async def _tie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: ClientConnection) -> None:
    """Bytes both ways, until both have ended. Raises what the server says, ConnectionClosed, OSError."""
    inward, outward = asyncio.create_task(_inward(reader, upstream)), asyncio.create_task(_outward(writer, upstream))
    try:
        await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_COMPLETED)
        if not outward.done():
            inward.result()
        await outward
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)


async def _inward(reader: asyncio.StreamReader, upstream: ClientConnection) -> None:
    with suppress(ConnectionClosed):  # why, is told by what comes the other way
        while data := await reader.read(_PIECE_BYTES):
            await upstream.send(data)
        await upstream.send(_EOF)


async def _outward(writer: asyncio.StreamWriter, upstream: ClientConnection) -> None:
    with suppress(ConnectionClosedOK):
        while True:
            message = await upstream.recv()
            if isinstance(message, bytes):
                writer.write(message)
                await writer.drain()
            elif _ends(message):
                writer.write_eof()
    if not writer.is_closing():
        writer.close()


def _ends(message: str) -> bool:
    """Whether a control frame says that nothing more comes. Raises the error that it is instead."""
    try:
        told = json.loads(message)
    except ValueError:
        told = None
    if isinstance(told, dict) and told.get("eof") is True:
        return True
    raise error_from(told.get("error") if isinstance(told, dict) else None)


def _complain(wanted: Forward, sentence: str) -> None:
    sys.stderr.write(f"Port {wanted.remote}: {clean(sentence)}\n")
    sys.stderr.flush()


def _shown(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
