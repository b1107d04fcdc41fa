"""Connections of guests, each handed to this process as an open descriptor by the program that QEMU starts for it."""

from __future__ import annotations

import array
import asyncio
import os
import re
import socket
import struct
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

import structlog

from foundation.machine_ids import MACHINE_ID
from machines.hypervisor.unprivileged import is_machine_user
from machines.paths import machine_of
from worker.serving import bind_beside

_NAME_BYTES = 64
_TAKEN_AT_ONCE = 64
_DESCRIPTORS = 4
_CREDENTIALS = struct.Struct("3i")
_ANCILLARY = socket.CMSG_SPACE(_DESCRIPTORS * 4) + socket.CMSG_SPACE(_CREDENTIALS.size)
_NAME = re.compile(MACHINE_ID.pattern.encode())

_log = structlog.get_logger(__name__)


class HandedConnections:
    """Takes connections at the socket ``path``: one message, the name of a machine's process, with one descriptor.

    A message is one datagram: nothing of a guest's, and nobody who has sent half of one, is ever waited for. ``take``
    gets each connection with its machine's id; what it does not close is closed when it fails with an OSError.
    ``machines`` is the directory of all of them.
    """

    def __init__(
        self, path: Path, machines: Path, take: Callable[[socket.socket, str], Coroutine[None, None, None]]
    ) -> None:
        self._path = path
        self._machines = machines
        self._take = take
        self._socket: socket.socket | None = None
        self._inode = 0
        self._taking: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Take connections from now on, while the running event loop lives."""
        # Started by root, a machine's programs are another user's: the directory decides who comes so far.
        self._socket, self._inode = bind_beside(self._path, socket.SOCK_DGRAM, 0o666 if os.geteuid() == 0 else 0o600)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._receive)

    async def stop(self) -> None:
        """Take no more, and remove the socket unless a successor has put its own in its place."""
        if self._socket is None:
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        with suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        await asyncio.gather(*self._taking, return_exceptions=True)

    def _receive(self) -> None:
        assert self._socket is not None  # noqa: S101 -- the reader is removed before it is closed
        # Not all at once: other work of this loop has its turn between.
        for _ in range(_TAKEN_AT_ONCE):
            try:
                name, ancillary, _, _ = self._socket.recvmsg(_NAME_BYTES, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:
                # More descriptors than this process may have: what was sent is closed by that already.
                _log.warning("a guest's connection was not taken", error=str(error))
                return
            descriptors, user = _contents(ancillary)
            connection = _as_connection(descriptors)
            if connection is None or not _NAME.fullmatch(name) or not (user == os.geteuid() or is_machine_user(user)):
                if connection is not None:
                    connection.close()
                continue
            task = asyncio.create_task(self._serve(connection, machine_of(self._machines, name.decode())))
            self._taking.add(task)
            task.add_done_callback(self._taking.discard)

    async def _serve(self, connection: socket.socket, machine: str) -> None:
        try:
            await self._take(connection, machine)
        except OSError as error:
            connection.close()
            _log.warning("a guest's connection was lost", machine=machine, error=str(error))


def _contents(ancillary: list[tuple[int, int, bytes]]) -> tuple[list[int], int]:
    """The descriptors of a message and the user id of its sender, which the kernel vouches for; -1 for none."""
    descriptors, user = array.array("i"), -1
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            descriptors.frombytes(data[: len(data) // descriptors.itemsize * descriptors.itemsize])
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            _, user, _ = _CREDENTIALS.unpack(data)
    return list(descriptors), user


def _as_connection(descriptors: list[int]) -> socket.socket | None:
    """The one descriptor as a stream; None, and nothing is left open, for anything else."""
    found: list[socket.socket] = []
    for descriptor in descriptors:
        try:
            found.append(socket.socket(fileno=descriptor))
        except OSError:
            os.close(descriptor)
    if len(found) == len(descriptors) == 1 and found[0].type == socket.SOCK_STREAM:
        found[0].setblocking(False)
        return found[0]
    for each in found:
        each.close()
    return None
