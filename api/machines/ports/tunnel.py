"""Bytes to and from a port of a machine, over a WebSocket to its host."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed, ConnectionClosedOK

from api.machines.hosts import Find, Hosts
from foundation.errors import HostUnreachable
from foundation.service.refusals import error_from

_EOF = json.dumps({"eof": True})
# Frames of the host's service have a limit of their own.
_FRAME_BYTES = 256 * 1024


class Tunnel:
    """One connection to a port: two ways, each of which ends by itself."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._over = False

    async def read(self) -> bytes:
        """What comes next from the port; empty at the end. Raises what the host says of a connection that broke."""
        while not self._over:
            try:
                message = await self._socket.recv()
            except ConnectionClosedOK:
                break
            except ConnectionClosed:
                raise _lost() from None
            if isinstance(message, bytes):
                if message:
                    return message
            else:
                self._over = _ends(message)
        self._over = True
        return b""

    async def write(self, data: bytes) -> None:
        """Send bytes to the port; what one that is gone would get is dropped."""
        with suppress(ConnectionClosedOK):
            try:
                for begin in range(0, len(data), _FRAME_BYTES):
                    await self._socket.send(data[begin : begin + _FRAME_BYTES])
            except ConnectionClosedOK:
                raise
            except ConnectionClosed:
                raise _lost() from None

    async def end(self) -> None:
        """Tell the port that nothing more comes."""
        with suppress(ConnectionClosed):
            await self._socket.send(_EOF)


@asynccontextmanager
async def tunnel(hosts: Hosts, find: Find, port: int) -> AsyncIterator[Tunnel]:
    """A connection to the port, open while the block runs. Raises what ``Hosts.socket`` raises, and PortRefused."""
    async with hosts.socket(find, "ports", ("connect", str(port))) as socket:
        yield Tunnel(socket)


def _ends(message: str) -> bool:
    """Whether a control frame is the end of what the port sends. Raises the error that it is instead."""
    try:
        told = json.loads(message)
    except ValueError:
        told = None
    if isinstance(told, dict) and told.get("eof") is True:
        return True
    raise error_from(told.get("error") if isinstance(told, dict) else None)


def _lost() -> HostUnreachable:
    return HostUnreachable("The worker of the machine's host went away; the run and its machine go on. Try again.")
