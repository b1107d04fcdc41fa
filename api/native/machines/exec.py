"""Commands in the machine of a run: /api/v1/tasks/{id}/exec, as a WebSocket and as an answer of lines."""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter, Depends, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.deps import Services, ServicesOf
from api.http.rates import address
from api.machines.processes import Told, Written, attached
from api.native import errors, examples, views
from api.native.bodies import Execution, read_form
from api.native.machine import enter
from api.native.parameters import known_parameters
from foundation.errors import (
    HostUnreachable,
    InvalidBody,
    InvalidParameter,
    MachineLost,
    MachineUnavailable,
    PayloadTooLarge,
    RateLimitExceeded,
    TaskNotFound,
    TaskyardError,
    TimedOut,
    UnsupportedMediaType,
)
from foundation.service.refusals import as_body

router = APIRouter(prefix=views.BASE, tags=["machines"])

MEDIA_TYPE = "application/x-ndjson"
# A client that hears nothing for longer takes the server for lost; one that takes nothing for longer is not waited for.
_ALIVE_SECONDS = 10.0
_STALL_SECONDS = 180.0


@router.websocket("/{task_id}/exec")
async def attach(task_id: str, socket: WebSocket, services: ServicesOf) -> None:
    """A process in the run's machine, which ends with this connection.

    The client's first frame says which, as JSON; then come bytes and controls, either way (docs/machines.md).
    """
    await enter(socket, services, task_id, "processes", ("attach",))


@router.post(
    "/{task_id}/exec",
    summary="Run a command in a task's machine",
    response_class=StreamingResponse,
    openapi_extra=examples.EXECUTION_BODY,
    responses=errors.responses(
        TaskNotFound,
        MachineUnavailable,
        MachineLost,
        InvalidParameter,
        InvalidBody,
        PayloadTooLarge,
        UnsupportedMediaType,
        RateLimitExceeded,
        HostUnreachable,
        TimedOut,
    )
    | {
        200: {
            "description": "What it writes, as it writes it, and last its exit, a JSON object a line",
            "content": {MEDIA_TYPE: {"example": examples.EXECUTED}},
        }
    },
    dependencies=[Depends(known_parameters)],
)
async def execute(task_id: str, request: Request, services: ServicesOf) -> Response:
    """Run a command in the machine of a run, as the agent's user in the workspace unless the body says otherwise.

    The answer begins when the command has started. It ends with this request: whoever leaves before it has ended kills
    it, and whatever it has started. Lines: ``{"started": …}``, then ``{"stream": "stdout", "text": …}``, with ``data``
    in base64 in the place of ``text`` for what is not UTF-8, ``{"alive": true}`` after ten silent seconds, and last
    ``{"exit": {"code", "signal", "reason"}}`` or ``{"error": {…}}``.
    """
    sent = await read_form(request, Execution)
    return _Lines(request, services, task_id, sent)


class _Lines(Response):
    """The answer. Errors before the command has started are raised; later ones are its last line."""

    media_type = MEDIA_TYPE

    def __init__(self, request: Request, services: Services, task_id: str, sent: Execution) -> None:
        super().__init__()
        self._client = address(request)
        self._services = services
        self._find = services.machines.finder(task_id)
        self._sent = sent

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 -- as of each answer
        with self._services.rates.stream(self._client):
            serving = asyncio.create_task(self._serve(send))
            leaving = asyncio.create_task(_until_left(receive))
            try:
                await asyncio.wait({serving, leaving}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                leaving.cancel()
                if not serving.done():
                    serving.cancel()
                await asyncio.gather(serving, leaving, return_exceptions=True)
        if not serving.cancelled():
            serving.result()

    async def _serve(self, send: Send) -> None:
        begun = False
        stdin = base64.b64decode(self._sent.stdin or "")
        try:
            async with (
                attached(self._services.hosts, self._find, self._sent.attachment, stdin) as events,
                aclosing(_lines(events)) as lines,
            ):
                async for line in lines:
                    async with asyncio.timeout(_STALL_SECONDS):
                        if not begun:
                            begun = True
                            head = [(b"content-type", MEDIA_TYPE.encode())]
                            await send({"type": "http.response.start", "status": 200, "headers": head})
                        await _send_line(send, line)
        except TaskyardError as error:
            if not begun:
                raise
            await _send_line(send, {"error": as_body(error)})
        except TimeoutError:
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _lines(events: AsyncIterator[Written | Told]) -> AsyncGenerator[dict[str, Any]]:
    """The events as they are sent, and a sign of life after each silence; nothing before the first of them."""
    texts = {"stdout": _Text(), "stderr": _Text()}
    begun = False
    coming = asyncio.ensure_future(anext(events))
    try:
        while True:
            await asyncio.wait({coming}, timeout=_ALIVE_SECONDS)
            if not coming.done():
                if begun:
                    yield {"alive": True}
                continue
            event, begun = coming.result(), True
            if isinstance(event, Written):
                for line in texts[event.stream].take(event.data):
                    yield {"stream": event.stream} | line
            else:
                if event.what == "exit":
                    for stream, text in texts.items():
                        for line in text.finish():
                            yield {"stream": stream} | line
                yield {event.what: event.facts}
                if event.what == "exit":
                    return
            coming = asyncio.ensure_future(anext(events))
    finally:
        coming.cancel()
        with suppress(asyncio.CancelledError, StopAsyncIteration, TaskyardError):
            await coming


class _Text:
    """One stream in pieces of text, or of base64 where it is none; half a character waits for its other half."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def take(self, data: bytes) -> Iterator[dict[str, str]]:
        """The next piece."""
        pending, _ = self._decoder.getstate()
        try:
            if text := self._decoder.decode(data):
                yield {"text": text}
        except UnicodeDecodeError:
            self._decoder.reset()
            yield {"data": base64.b64encode(pending + data).decode()}

    def finish(self) -> Iterator[dict[str, str]]:
        """What is left."""
        pending, _ = self._decoder.getstate()
        if pending:
            yield {"data": base64.b64encode(pending).decode()}


async def _send_line(send: Send, line: dict[str, Any]) -> None:
    body = json.dumps(line).encode() + b"\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
