"""The egress proxy as the tests of it run it: with names that lead to local origins, and connections as guests have."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from foundation.settings import Settings
from worker.egress.egress import Egress
from worker.egress.passage import EgressLimits
from workflows.specs.wire import NetworkMode, NetworkPolicy

MACHINE = "vm-00000000000000aa"
#: Where origins may be: addresses of loopback that a rule may lead to.
ORIGINS = "127.0.4.0/24"
ORIGIN = "127.0.4.1"
NAMES = {"allowed.example.org": [ORIGIN], "private.example.org": ["10.1.2.3"], "other.example.org": [ORIGIN]}


@asynccontextmanager
async def serving(
    home: Path, limits: EgressLimits | None = None, *, names: Mapping[str, Sequence[str]] = NAMES, **settings: Any
) -> AsyncIterator[Egress]:
    """A proxy that runs, for which ``names`` have these addresses and no others exist."""

    def resolve(name: str) -> Sequence[str]:
        if name not in names:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return names[name]

    given = {"egress_allowed_hosts": [], "egress_private_networks": [ORIGINS], **settings}
    egress = Egress(Settings(home=home, **given), limits=limits, resolver=resolve)
    await egress.start()
    try:
        yield egress
    finally:
        await egress.stop()


async def connect(home: Path, machine: str = MACHINE) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection of a machine's guest."""
    return await asyncio.open_unix_connection(sock=await connect_without_reading(home, machine))


async def connect_without_reading(home: Path, machine: str = MACHINE) -> socket.socket:
    """The same, of which nothing is read by itself."""
    mine, theirs = socket.socketpair()
    with theirs:
        await asyncio.to_thread(_hand_over, home / "run", machine, theirs)
    return mine


def connecting(host: str, port: int) -> bytes:
    """A request for a tunnel."""
    return f"CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()


def outbound(*hosts: str) -> NetworkPolicy:
    """A policy that allows these alone."""
    return NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=list(hosts))


def _hand_over(run: Path, machine: str, connection: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
        door.connect(os.fspath(run / "egress.sock"))
        socket.send_fds(door, [machine.encode()], [connection.fileno()])
