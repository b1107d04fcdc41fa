"""A server inside a process that keeps its own signal handlers, and the sockets that such servers listen on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

BACKLOG = 128


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leaves SIGINT and SIGTERM to the worker, which stops its parts in order."""
        yield


class BackgroundServer:
    """Serves what ``config`` says on one listening socket, as a task of the running event loop."""

    def __init__(self, config: uvicorn.Config) -> None:
        self._server = _Server(config)
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> uvicorn.server.ServerState:
        """The connections and tasks of the server."""
        return self._server.server_state

    async def start(self, listener: socket.socket) -> None:
        """Returns when connections are taken."""
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._task.done():
                await self._task
                raise RuntimeError(f"The server on {listener.getsockname()} ended while it started.")
            await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Takes no more connections, and returns when what is under way has ended or has had its grace."""
        if self._task is None:
            return
        self._server.should_exit = True
        await self._task
        self._task = None


class SocketFile:
    """The socket file of a server: put in the place of what a killed process has left, and removed by its maker."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._inode = 0

    def listen(self) -> socket.socket:
        """A socket that listens there, which only its owner may open."""
        listener, self._inode = bind_beside(self.path, socket.SOCK_STREAM)
        listener.listen(BACKLOG)
        return listener

    def remove(self) -> None:
        """Remove the file, unless another server has taken the path over."""
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_ino == self._inode:
                self.path.unlink()


def ending_quietly(app: ASGIApp) -> ASGIApp:
    """Requests that the stop cuts off after their grace end without a traceback in the log; that is no fault."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await app(scope, receive, send)

    return application


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
