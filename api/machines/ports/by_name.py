"""Ports by host name: requests for ``PORT-ID.DOMAIN`` go to the machine, and nothing else of the server sees them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from api.machines.hosts import Find, Hosts
from api.machines.ports.exchange import PortAnswer
from api.machines.ports.fields import Way
from api.machines.ports.names import PortName, named_by
from api.machines.ports.web_socket import deny, tie
from foundation.errors import OriginRefused, ServiceUnavailable, TaskyardError
from foundation.service.refusals import as_body
from foundation.settings import Settings

_RETRY_AFTER_SECONDS = 2


@dataclass(frozen=True)
class NamedPorts:
    """Answers requests whose host is the name of a port; all others are for ``app``.

    ``finder`` gives what finds the machine of a run.
    """

    app: ASGIApp
    settings: Settings
    hosts: Hosts
    finder: Callable[[str], Find]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        host = connection.headers.get("host", "")
        name = named_by(host, self.settings.sandbox_domain)
        if name is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(name, scope, receive, send)
        else:
            await self._tie(name, WebSocket(scope, receive, send))

    async def _answer(self, name: PortName, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            way, target = self._way(name, HTTPConnection(scope))
            await PortAnswer(self.hosts, self.finder(name.owner), way, target)(scope, receive, send)
        except TaskyardError as error:
            later = {"Retry-After": str(_RETRY_AFTER_SECONDS)} if isinstance(error, ServiceUnavailable) else None
            await JSONResponse(as_body(error), error.http_status, later)(scope, receive, send)

    async def _tie(self, name: PortName, socket: WebSocket) -> None:
        try:
            way, target = self._way(name, socket)
            await tie(socket, self.hosts, self.finder(name.owner), way, target)
        except TaskyardError as error:
            await deny(socket, error)

    def _way(self, name: PortName, connection: HTTPConnection) -> tuple[Way, bytes]:
        """How the request came, and what it is for. Raises OriginRefused."""
        self._check_origin(name, connection)
        scope = connection.scope
        target: bytes = scope["raw_path"]
        if scope["query_string"]:
            target += b"?" + scope["query_string"]
        client = connection.client.host if connection.client else ""
        host = connection.headers["host"].encode("latin-1")
        return Way(name.port, b"", client, scope["scheme"], host), target

    def _check_origin(self, name: PortName, connection: HTTPConnection) -> None:
        """Let through clients that are no browser, pages of the same machine, and the origins allowed.

        A page of another machine may be written by whom this one is to be kept from.
        """
        origin = connection.headers.get("origin")
        if origin is None or origin in self.settings.allowed_origins:
            return
        page = named_by(_netloc(origin), self.settings.sandbox_domain)
        if page is None or page.owner != name.owner:
            raise OriginRefused(
                f"Web pages of {origin[:200]} may not use this machine; TASKYARD_ALLOWED_ORIGINS says which may.",
                origin=origin[:200],
            )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
