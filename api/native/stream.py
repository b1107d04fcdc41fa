"""The WebSocket of the Task Orchestration dialect: /api/v1/tasks/stream (contract, section 3)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress

from fastapi import APIRouter, WebSocket, WebSocketDisconnect

from api.deps import Services, ServicesOf
from api.http.origins import check_origin
from api.http.rates import address
from api.native import views
from api.native.parameters import parse_entry_id, parse_filter
from api.runs.events import Event, error_event
from foundation.errors import InvalidParameter, OriginRefused, RateLimitExceeded, TaskNotFound, TaskyardError

router = APIRouter()

NORMAL = 1000
FAILED = 1011
BAD_REQUEST = 4400
FORBIDDEN = 4403
NOT_FOUND = 4404
TOO_MANY = 4429

_CODES: dict[type[TaskyardError], int] = {
    InvalidParameter: BAD_REQUEST,
    OriginRefused: FORBIDDEN,
    TaskNotFound: NOT_FOUND,
    RateLimitExceeded: TOO_MANY,
}
_REASON_BYTES = 120
_PARAMETERS = frozenset({"after_id", "filter", "task_id"})


@router.websocket(f"{views.BASE}/stream")
async def stream_events(socket: WebSocket, services: ServicesOf) -> None:
    """Events as text frames, one JSON object each. The client sends nothing; the query says what it wants.

    ``task_id`` is one run, from the first line of its log (or the line after ``after_id``) to its end, which closes
    normally; without it, all runs from now on. ``filter`` lists the kinds of events. A refusal is an event of type
    ``error``, and then close code 4400, 4403, 4404 or 4429.
    """
    await socket.accept()
    task_id = socket.query_params.get("task_id") or None
    sending = asyncio.create_task(_send(socket, services, task_id))
    leaving = asyncio.create_task(_until_left(socket))
    streams = services.metrics.streams
    streams.inc()
    try:
        await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        streams.dec()
        for task in (sending, leaving):
            task.cancel()
        await asyncio.gather(sending, leaving, return_exceptions=True)
    if not sending.cancelled() and not leaving.done():
        sending.result()


async def _send(socket: WebSocket, services: Services, task_id: str | None) -> None:
    code, reason = NORMAL, "The run has ended."
    try:
        check_origin(socket, services.settings)
        with services.rates.stream(address(socket)):
            async with aclosing(_events(socket, services, task_id)) as events:
                async for event in events:
                    await _send_event(socket, event)
    except TaskyardError as error:
        code, reason = _CODES.get(type(error), FAILED), error.message
        with suppress(WebSocketDisconnect):
            await _send_event(socket, error_event(task_id, error))
    except WebSocketDisconnect:
        return
    with suppress(WebSocketDisconnect, RuntimeError):
        await socket.close(code, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))


def _events(socket: WebSocket, services: Services, task_id: str | None) -> AsyncGenerator[Event]:
    events = services.events
    kinds = parse_filter(",".join(socket.query_params.getlist("filter")))
    unknown = sorted(socket.query_params.keys() - _PARAMETERS)
    if unknown:
        there = ", ".join(sorted(_PARAMETERS))
        raise InvalidParameter(f"'{unknown[0][:80]}' is no parameter of this; there is {there}.")
    after_id = parse_entry_id(socket.query_params.get("after_id", ""), "after_id")
    return events.of_run(task_id, kinds, after_id) if task_id else events.of_all(kinds)


async def _send_event(socket: WebSocket, event: Event) -> None:
    await socket.send_text(json.dumps(event, ensure_ascii=False))


async def _until_left(socket: WebSocket) -> None:
    """Take what the client sends, which means nothing, until it has left."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
