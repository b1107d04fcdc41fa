"""The server of a host's service: on the unix socket of its home and, where servers are elsewhere, on TCP with TLS."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import h11
import structlog
import uvicorn
from starlette.routing import BaseRoute
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState

from foundation.errors import HostNotReady
from foundation.service.paths import SOCKET
from foundation.settings import Settings
from machines.host import MachineHost
from storage.bucket import Bucket
from storage.hosts import ServiceAddress
from worker.service.access import AccessLog
from worker.service.application import ROUTES, make_application
from worker.service.certificate import Certificate, host_certificate
from worker.service.keeping import OutputKeeper
from worker.service.machine import Admission
from worker.serving import BACKLOG, BackgroundServer, SocketFile, ending_quietly

# What follows a guest has no end of its own; whoever reads it goes on with the next worker.
_GRACE_SECONDS = 2
# Longer than a server keeps a connection that it does not use.
_IDLE_SECONDS = 130
_FRAME_BYTES = 2**20
# For the head of a request, from its first byte or that of the connection.
_HEAD_SECONDS = 15.0
# Over TCP, a server whose host has gone is noticed after a minute; a slow reader is no such.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 20), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 4))
_ANY = {"0.0.0.0", "::"}  # noqa: S104 -- addresses that no client can be told

_log = structlog.get_logger("service")


_quiet = logging.getLogger(__name__)
_quiet.setLevel(logging.WARNING)


class _Connection(H11Protocol):
    """uvicorn's, which waits without end for a request that has begun to come, from whoever reaches the port."""

    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is None or self.cycle.response_complete:
            self._await_head()
        else:
            self._await_no_more()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self._await_no_more()
        # From here on it is another's, and has no head to come.
        self._await_head = lambda: None  # type: ignore[method-assign]
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_no_more()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(_HEAD_SECONDS, self.transport.abort)

    def _await_no_more(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None


class _WebSocket(WebSocketsSansIOProtocol):
    """uvicorn's, which takes a refusal for a handshake that failed, and has a line for each connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.logger = _quiet

    def shutdown(self) -> None:
        # One that is just being closed cannot be closed once more, which would end the end of all others.
        with suppress(InvalidState):
            super().shutdown()
        self.transport.close()

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True


class HostService:
    """The service while it runs. ``address`` is where servers find it."""

    def __init__(
        self, settings: Settings, host: MachineHost, bucket: Bucket, routes: Sequence[BaseRoute] = ROUTES
    ) -> None:
        """Raises HostNotReady when the settings are of no use."""
        self._settings = settings
        self._accesses = AccessLog(settings, bucket)
        self._keeper = OutputKeeper(settings, host, bucket)
        self.application = make_application(Admission(settings, host, bucket, self._accesses, self._keeper), routes)
        self._file = SocketFile(settings.sockets / SOCKET)
        certificate = host_certificate(settings) if settings.host_listen else None
        self._local = BackgroundServer(self._config(None))
        self._remote = BackgroundServer(self._config(certificate)) if certificate else None
        self.address = ServiceAddress(
            since=datetime.now(UTC),
            socket=str(self._file.path),
            address=_told(settings) if certificate else None,
            certificate=certificate.pem if certificate else None,
        )

    async def start(self) -> None:
        """Returns when requests are taken. Raises HostNotReady when TASKYARD_HOST_LISTEN cannot be listened on."""
        await self._local.start(self._file.listen())
        if self._remote is not None:
            await self._remote.start(self._listen())
        self._keeper.start()
        _log.info("serving", socket=self.address.socket, address=self.address.address)

    async def stop(self) -> None:
        """Takes no more requests, and returns when those under way have ended or had their grace."""
        self._file.remove()
        for server in (self._local, self._remote):
            if server is not None:
                await server.stop()
        await self._accesses.close()
        await asyncio.to_thread(self._keeper.stop)

    def _config(self, certificate: Certificate | None) -> uvicorn.Config:
        return uvicorn.Config(
            ending_quietly(self.application),
            http=_Connection,
            ws=_WebSocket,
            ws_max_size=_FRAME_BYTES,
            # A reader that is slow answers no ping for as long.
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            backlog=BACKLOG,
            ssl_certfile=certificate.chain if certificate else None,
            ssl_keyfile=certificate.key if certificate else None,
        )

    def _listen(self) -> socket.socket:
        host, port = _host_and_port(self._settings.host_listen or "")
        listener = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
        )
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise HostNotReady(
                f"The host's service cannot listen on {host}:{port} ({error.strerror}); look at TASKYARD_HOST_LISTEN"
            ) from error
        listener.setblocking(False)
        return listener


def _told(settings: Settings) -> str:
    """host:port as servers are told it."""
    if settings.host_address:
        return settings.host_address
    host, port = _host_and_port(settings.host_listen or "")
    if host in _ANY:
        return f"{settings.host_name}:{port}"
    return settings.host_listen or ""


def _host_and_port(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    return parts.hostname or "", parts.port or 0
