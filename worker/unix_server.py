"""An ASGI application served on a unix socket, inside a process that keeps its own signal handlers."""

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

_GRACE_SECONDS = 5
# Longer than an agent's usual pause between two requests, so that it seldom meets a connection just being closed.
_IDLE_SECONDS = 300


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
    """Serves ``app`` on the socket ``path``, which only the owner may open. Requests under way get 5 s at the stop."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._path = path
        self._server = _Server(
            uvicorn.Config(
                _ending_quietly(app),
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=_IDLE_SECONDS,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )
        self._task: asyncio.Task[None] | None = None
        self._inode = 0

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
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Bound beside and renamed into place: the path always leads to a socket that somebody serves.
        draft = self._path.with_name(f".{secrets.token_hex(4)}")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(os.fspath(draft))
        draft.chmod(0o600)
        listener.listen(128)
        listener.setblocking(False)
        self._inode = draft.stat().st_ino
        draft.replace(self._path)
        return listener
