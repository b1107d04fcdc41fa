"""A client's WebSocket tied to one of a machine's host: frames both ways, as fast as the slower end takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from fastapi import WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from api.machines.hosts import Find, Hosts, Params
from foundation.errors import HostUnreachable, PayloadTooLarge, TaskyardError
from foundation.service.refusals import NORMAL, as_frame, close_code, close_reason
from foundation.service.tokens import Purpose

_OWN_CODES = range(3000, 5000)
_TOO_BIG = 1009


async def relay(
    socket: WebSocket,
    hosts: Hosts,
    find: Find,
    purpose: Purpose,
    parts: Sequence[str],
    *,
    params: Params = None,
    subprotocols: Sequence[str] = (),
) -> None:
    """Tie the client's WebSocket, which is not accepted yet, to ``parts`` of the machine's path, until either ends.

    A refusal is a last text frame ``{"error": …}`` and a close code of 4000 and the error's HTTP status, since a
    browser shows nothing else of it. Codes and reasons of the host's own pass through.
    """
    try:
        async with hosts.socket(find, purpose, parts, params=params, subprotocols=subprotocols) as upstream:
            await socket.accept(subprotocol=upstream.subprotocol)
            await _tie(socket, upstream)
    except TaskyardError as error:
        await refuse(socket, error)


async def refuse(socket: WebSocket, error: TaskyardError) -> None:
    """End a client's WebSocket, accepted or not, with the error."""
    with suppress(WebSocketDisconnect, RuntimeError):
        if socket.application_state is WebSocketState.CONNECTING:
            await socket.accept()
        await socket.send_text(as_frame(error))
        await socket.close(close_code(error), close_reason(error))


async def _tie(socket: WebSocket, upstream: ClientConnection) -> None:
    """Raises HostUnreachable when the host's end breaks."""
    inward, outward = asyncio.create_task(_inward(socket, upstream)), asyncio.create_task(_outward(socket, upstream))
    try:
        await asyncio.wait({inward, outward}, return_when=asyncio.FIRST_COMPLETED)
        if inward.done() and not outward.done() and inward.exception() is None:
            return  # the client has left
        # The host has ended it: what it sent before is with the client first.
        await outward
    finally:
        for task in (inward, outward):
            task.cancel()
        await asyncio.gather(inward, outward, return_exceptions=True)
    code = upstream.close_code
    if code == _TOO_BIG:
        raise PayloadTooLarge("A frame may have 1 MiB at most; send more in several.")
    if code is None or (code != NORMAL and code not in _OWN_CODES):
        raise HostUnreachable("The worker of the run's host went away; the run and its machine go on. Connect again.")
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code, upstream.close_reason)


async def _inward(socket: WebSocket, upstream: ClientConnection) -> None:
    """From the client to the host, until the client leaves; raises ConnectionClosed when the host has ended it."""
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            return
        data = message.get("bytes")
        await upstream.send(message["text"] if data is None else data)


async def _outward(socket: WebSocket, upstream: ClientConnection) -> None:
    """From the host to the client, until the host ends it or the client has left."""
    with suppress(ConnectionClosed, WebSocketDisconnect, RuntimeError):
        while True:
            message = await upstream.recv()
            if isinstance(message, str):
                await socket.send_text(message)
            else:
                await socket.send_bytes(message)
