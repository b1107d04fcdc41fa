"""Ports of a run's machine: /api/v1/tasks/{id}/ports/{port}/…, a reverse proxy, and …/connect/{port}, plain bytes."""

from __future__ import annotations

import re
from urllib.parse import unquote

from fastapi import APIRouter, WebSocket
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from api.deps import Dialect, Services, ServicesOf
from api.http.origins import check_origin
from api.http.rates import address
from api.machines.ports.exchange import PortAnswer
from api.machines.ports.fields import Way
from api.machines.ports.web_socket import deny, tie
from api.native import views
from api.native.machine import enter
from foundation.errors import InvalidParameter, NotFound, TaskyardError

router = APIRouter()

_PATH = f"{views.BASE}/{{task_id}}/ports/{{port}}"
_WRITTEN = re.compile(rb"(.*?%b/([^/]+)/ports/([^/]+))(/.*)?" % views.BASE.encode(), re.DOTALL)
_PORT = re.compile(r"[1-9]\d{0,4}")
_PORT_MOST = 65535


@router.websocket(f"{views.BASE}/{{task_id}}/connect/{{port}}")
async def connect(socket: WebSocket, services: ServicesOf, task_id: str, port: str) -> None:
    """Bytes to and from a port of the run's machine, in binary frames; ``{"eof": true}`` ends one way, either way."""
    await enter(socket, services, task_id, "ports", ("connect", port))


@router.websocket(_PATH)
@router.websocket(f"{_PATH}/{{path:path}}")
async def open_socket(socket: WebSocket, services: ServicesOf, task_id: str, port: str) -> None:
    """A WebSocket of the program that listens on the port."""
    try:
        check_origin(socket, services.settings)
        way, target = _way(socket, task_id, port)
        with services.rates.stream(address(socket)), services.metrics.tied.track_inprogress():
            await tie(socket, services.hosts, services.machines.finder(task_id), way, target or b"/")
    except TaskyardError as error:
        await deny(socket, error)


async def _proxy(scope: Scope, receive: Receive, send: Send) -> None:
    """The answer of the program that listens on the port, as an ASGI application: any method, a body of any size."""
    request = Request(scope)
    dialect: Dialect = request.app
    services: Services = dialect.services
    task_id, port = request.path_params["task_id"], request.path_params["port"]
    way, target = _way(request, task_id, port)
    if not target.startswith(b"/"):
        # Without the slash, whatever the page names beside itself would be looked for beside the port.
        await RedirectResponse(f"{way.prefix.decode('latin-1')}/{target.decode('latin-1')}", 308)(scope, receive, send)
        return
    answer = PortAnswer(services.hosts, services.machines.finder(task_id), way, target)
    await answer(scope, receive, send)


class Proxy:
    """The proxy as an object: the framework takes a function for one that makes a response."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        await _proxy(scope, receive, send)


router.add_route(_PATH, Proxy(), include_in_schema=False)  # type: ignore[arg-type]
router.add_route(f"{_PATH}/{{path:path}}", Proxy(), include_in_schema=False)  # type: ignore[arg-type]


def _way(connection: HTTPConnection, task_id: str, port: str) -> tuple[Way, bytes]:
    """How the request came, and what it is for in the machine: as it was written, which the framework has decoded."""
    raw: bytes = connection.scope["raw_path"]
    written = _WRITTEN.fullmatch(raw)
    if written is None or unquote(written[2].decode("latin-1")) != task_id or written[3].decode("latin-1") != port:
        raise NotFound("There is nothing at this path.")
    if not _PORT.fullmatch(port) or int(port) > _PORT_MOST:
        raise InvalidParameter(f"'{port[:40]}' is no port; one is a number from 1 to {_PORT_MOST}.")
    query: bytes = connection.scope["query_string"]
    client = connection.client.host if connection.client else ""
    host = connection.headers.get("host", "").encode("latin-1")
    way = Way(int(port), written[1], client, connection.scope["scheme"], host)
    return way, (written[4] or b"") + (b"?" + query if query else b"")
