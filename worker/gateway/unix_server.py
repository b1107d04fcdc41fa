"""An ASGI application served on a unix socket to guests, whose connections may be held to limits."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from worker.gateway.guest_connection import ConnectionLimits, ConnectionTable, GuestConnection
from worker.serving import BACKLOG, BackgroundServer, SocketFile, ending_quietly

#: In the state of a request's scope: the machine whose the connection is, where it is known.
HANDED_BY = "machine"

_GRACE_SECONDS = 5
# Longer than an agent's usual pause between two requests, so that it seldom meets a connection just being closed.
_IDLE_SECONDS = 300


class UnixServer:
    """Serves ``app`` on the socket ``path``, which only the owner may open. Requests under way get 5 s at the stop.

    With ``limits``, its connections are held to them.
    """

    def __init__(self, app: ASGIApp, path: Path, limits: ConnectionLimits | None = None) -> None:
        self._file = SocketFile(path)
        self.connections = ConnectionTable(limits) if limits else None
        self._config = uvicorn.Config(
            ending_quietly(app),
            # Starlette's test for the type of this argument takes classes only: its caller asks for a factory.
            http="h11" if self.connections is None else partial(GuestConnection, table=self.connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            backlog=BACKLOG,
        )
        self._server = BackgroundServer(self._config)

    async def take(self, connection: socket.socket, machine: str) -> None:
        """Serve a connection that has come by another way, as one of the machine. Raises OSError when it is lost."""
        assert self.connections is not None  # noqa: S101 -- the server was made with limits
        protocol = partial(
            GuestConnection,
            config=self._config,
            server_state=self._server.state,
            app_state={HANDED_BY: machine},
            table=self.connections,
            machine=machine,
        )
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)

    async def start(self) -> None:
        """Returns when connections are taken. A socket file left by a killed process is replaced."""
        await self._server.start(self._file.listen())

    async def stop(self) -> None:
        """Ends the server and removes its socket file, unless another server has taken the path over."""
        self._file.remove()
        await self._server.stop()
