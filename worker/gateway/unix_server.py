"""An ASGI application served on a unix socket, inside a process that keeps its own signal handlers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Generator
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.gateway.guest_connection import ConnectionLimits, ConnectionTable, GuestConnection

#: In the state of a request's scope: the machine whose the connection is, where it is known.
HANDED_BY = "machine"

_GRACE_SECONDS = 5
# Longer than an agent's usual pause between two requests, so that it seldom meets a connection just being closed.
_IDLE_SECONDS = 300
_BACKLOG = 128


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves SIGINT and SIGTERM to the worker, which stops its parts in order."""
        yield


def _ending_quietly(app: ASGIApp) -> ASGIApp:
    """Requests that the stop cuts off after their grace end without a traceback in the log; that is no fault."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return application


class UnixServer:
    """Serves ``app`` on the socket ``path``, which only the owner may open. Requests under way get 5 s at the stop.

    With ``limits``, its connections are held to them.
    """

    def __init__(self, app: ASGIApp, path: Path, limits: ConnectionLimits | None = None) -> None:
        self._path = path
        self.connections = ConnectionTable(limits) if limits else None
        self._config = uvicorn.Config(
            _ending_quietly(app),
            # Starlette's test for the type of this argument takes classes only: its caller asks for a factory.
            http="h11" if self.connections is None else partial(GuestConnection, table=self.connections),  # type: ignore[arg-type]
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            backlog=_BACKLOG,
        )
        self._server = _Server(self._config)
        self._task: asyncio.Task[None] | None = None
        self._inode = 0

    async def take(self, connection: socket.socket, machine: str) -> None:
        """Serve a connection that has come by another way, as one of the machine. Raises OSError when it is lost."""
        assert self.connections is not None  # noqa: S101 -- the server was made with limits
        protocol = partial(
            GuestConnection,
            config=self._config,
            server_state=self._server.server_state,
            app_state={HANDED_BY: machine},
            table=self.connections,
            machine=machine,
        )
        await asyncio.get_running_loop().connect_accepted_socket(protocol, connection)

    async def start(self) -> None:
        """Returns when connections are taken. A socket file left by a killed process is replaced."""
        listener = self._bind()
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError(f"The server on {self._path} ended while it started.")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Ends the server and removes its socket file, unless another server has taken the path over."""
        if self._task is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()
        self._server.should_exit = True
        await self._task
        self._task = None

    def _bind(self) -> socket.socket:
        listener, self._inode = bind_beside(self._path, socket.SOCK_STREAM)
        listener.listen(_BACKLOG)
        return listener


def bind_beside(path: Path, kind: socket.SocketKind, mode: int = 0o600) -> tuple[socket.socket, int]:
    """A socket bound beside ``path`` and renamed into place, and its inode: the path always leads to a live socket."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{secrets.token_hex(4)}")
    bound = socket.socket(socket.AF_UNIX, kind)
    bound.bind(os.fspath(draft))
    draft.chmod(mode)
    bound.setblocking(False)
    inode = draft.stat().st_ino
    draft.replace(path)
    return bound, inode
