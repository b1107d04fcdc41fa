"""Attached processes of a machine, for who wants their output as events and gives all of their input beforehand."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from api.machines.hosts import Find, Hosts
from foundation.errors import ForeignServer, HostUnreachable, TaskyardError
from foundation.service.attachment import PIECE, STDERR, STDIN, STDOUT, Attachment, frame
from foundation.service.refusals import error_from

_STREAMS: dict[int, Literal["stdout", "stderr"]] = {STDOUT: "stdout", STDERR: "stderr"}


@dataclass(frozen=True)
class Written:
    """Bytes that the process wrote."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True)
class Told:
    """What the host says of the process, as JSON: that it has ``started``, or its ``exit``."""

    what: Literal["started", "exit"]
    facts: dict[str, Any]


@asynccontextmanager
async def attached(
    hosts: Hosts, find: Find, wanted: Attachment, stdin: bytes
) -> AsyncIterator[AsyncIterator[Written | Told]]:
    """A process, running while the block does: that it has started, what it writes, and last how it ended.

    Enter and leave it in one task. Raises what the host answers, also while the events are read, HostUnreachable.
    """
    async with hosts.socket(find, "processes", ("attach",)) as connection:
        feeding = asyncio.create_task(_feed(connection, wanted, stdin))
        try:
            yield _events(connection)
        finally:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(connection: ClientConnection, wanted: Attachment, stdin: bytes) -> None:
    with suppress(ConnectionClosed):
        await connection.send(wanted.model_dump_json(exclude_defaults=True))
        for at in range(0, len(stdin), PIECE):
            await connection.send(bytes([STDIN]) + stdin[at : at + PIECE])
        if wanted.stdin:
            await connection.send(frame(eof=True))


async def _events(connection: ClientConnection) -> AsyncIterator[Written | Told]:
    while True:
        try:
            message = await connection.recv()
        except ConnectionClosed:
            raise HostUnreachable(
                "The worker of the run's host went away; the command in the machine has ended with it."
            ) from None
        if isinstance(message, bytes):
            if (stream := _STREAMS.get(message[0] if message else -1)) is not None:
                yield Written(stream, message[1:])
            continue
        if (told := _told(message)) is not None:
            yield told
            if told.what == "exit":
                return


def _told(text: str) -> Told | None:
    """What a control says; None for one that means nothing here. Raises the error that it is."""
    try:
        control = json.loads(text)
        if "error" in control:
            raise error_from(control["error"])
        if "started" in control:
            return Told("started", dict(control["started"]))
        if "exit" in control:
            return Told("exit", dict(control["exit"]))
    except TaskyardError:
        raise
    except (ValueError, TypeError) as error:
        raise ForeignServer("The host's service says what no Taskyard of this version understands.") from error
    return None
