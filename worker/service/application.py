"""The application of a host's service: its routes, one module for each part, and its errors in the one body."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from foundation.errors import InvalidBody, NotFound, TaskyardError
from foundation.faults import Fault
from foundation.service.paths import ALIVE, BASE
from foundation.service.refusals import as_body, as_frame, close_code, close_reason
from worker.service import attach, files, log, ports, processes
from worker.service.machine import Admission, admission_of

_LONGEST_PATH = 200


async def _alive(_: Request) -> Response:
    return Response(status_code=204)


async def _state(request: Request) -> Response:
    """The machine can be entered, by its record: its state and its epoch."""
    record = await admission_of(request).look(request)
    return JSONResponse({"id": record.id, "state": record.state, "epoch": record.epoch})


#: Every route of the service: each part adds its own here.
ROUTES: Sequence[BaseRoute] = (
    Route(ALIVE, _alive),
    Route(f"{BASE}/machines/{{machine_id}}", _state),
    *attach.ROUTES,
    *processes.ROUTES,
    *files.ROUTES,
    *ports.ROUTES,
    *log.ROUTES,
)


def make_application(admission: Admission, routes: Sequence[BaseRoute] = ROUTES) -> Starlette:
    """The application over the machines that ``admission`` lets requests to."""
    handlers: dict[Any, Any] = {
        TaskyardError: _refuse,
        ValidationError: _refuse_body,
        HTTPException: _refuse_request,
        Exception: _refuse_unforeseen,
    }
    application = Starlette(routes=routes, exception_handlers=handlers)
    application.state.admission = admission
    return application


async def _refuse(connection: HTTPConnection, error: TaskyardError) -> Response | None:
    """The error as an answer; of a WebSocket, as an answer to its handshake, or else as its last frame."""
    answer = JSONResponse(as_body(error), status_code=error.http_status)
    if not isinstance(connection, WebSocket):
        return answer
    with suppress(WebSocketDisconnect, RuntimeError):
        if connection.application_state is WebSocketState.CONNECTING:
            await connection.send_denial_response(answer)
        else:
            await connection.send_text(as_frame(error))
            await connection.close(close_code(error), close_reason(error))
    return None


async def _refuse_body(connection: HTTPConnection, error: ValidationError) -> Response | None:
    faults = []
    for item in error.errors(include_url=False, include_input=False, include_context=False):
        field = ".".join(str(part) for part in item["loc"]) or "body"
        faults.append(Fault(field, item["msg"].removeprefix("Value error, "), item["type"]))
    return await _refuse(connection, InvalidBody.of(faults))


async def _refuse_request(connection: HTTPConnection, _: HTTPException) -> Response | None:
    """No such path or method: a server of a newer version may ask for it."""
    path = str(connection.scope["path"])[:_LONGEST_PATH]
    return await _refuse(
        connection, NotFound(f"This host's service has nothing at {path}; its worker may be of another version")
    )


async def _refuse_unforeseen(connection: HTTPConnection, _: Exception) -> Response | None:
    """The server that this runs in logs the cause."""
    return await _refuse(
        connection, TaskyardError("The host's service failed at this; the worker's log has the cause.")
    )
