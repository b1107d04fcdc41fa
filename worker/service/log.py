"""The logs of this host's runs: told to servers as they are written, and written to by clients through servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from foundation.errors import InvalidParameter, NotFound, PayloadTooLarge
from foundation.service.paths import BASE, TOLD_BYTES_MOST
from storage.layout import TASKS, Place
from storage.live.attached import attached
from storage.live.host import HostLogs
from storage.live.numbered import Ingested, Intake, from_lines
from storage.live.wire import told
from storage.segments import NDJSON, told_draft
from worker.service.machine import admission_of

_ID_DIGITS = 16


class _Stream(StreamingResponse):
    """What is told; when the client goes, listening ends at once."""

    def __init__(self, content: AsyncGenerator[bytes]) -> None:
        self._content = content
        super().__init__(content, media_type=NDJSON)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._content):
            await super().stream_response(send)


async def _tell(request: Request) -> Response:
    """The entries behind ``after`` as ``storage.live.wire`` writes them, for as long as the client reads."""
    place, logs = _place_and_logs(request)
    after = request.query_params.get("after", "0")
    if not (after.isascii() and after.isdecimal() and len(after) <= _ID_DIGITS):
        raise InvalidParameter("after is the id of an entry")
    return _Stream(told(logs, place, int(after)))


async def _take(request: Request) -> Response:
    """Append what clients tell, a line of JSON for each entry, through the writer of this host: all of it, or none."""
    place, logs = _place_and_logs(request)
    await to_thread.run_sync(_append, logs, place, await _body(request))
    return Response(status_code=204)


async def _take_numbered(request: Request) -> Response:
    """The same of numbered entries, as ``storage.live.numbered`` writes them: those that are new, up to a gap."""
    place, logs = _place_and_logs(request)
    taken = await to_thread.run_sync(_ingest, logs, place, await _body(request))
    return Response(taken.model_dump_json(), media_type="application/json")


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > TOLD_BYTES_MOST:
            raise PayloadTooLarge(f"At most {TOLD_BYTES_MOST} bytes are appended at once")
    return bytes(body)


def _append(logs: HostLogs, place: Place, body: bytes) -> None:
    # At this newline alone: JSON may hold others.
    drafts = [told_draft(f"{line}\n") for line in body.decode().split("\n")[:-1]]
    logs.append(place, lambda _: drafts)


def _ingest(logs: HostLogs, place: Place, body: bytes) -> Ingested:
    intake = Intake(from_lines(body.decode()))
    logs.append(place, intake.drafts)
    return intake.outcome()


_PLACE = f"{TASKS.directory}/{{resource_id}}"
ROUTES: Sequence[BaseRoute] = (
    Route(f"{BASE}/logs/{_PLACE}", _tell, methods=["GET"]),
    Route(f"{BASE}/logs/{_PLACE}", _take, methods=["POST"]),
    Route(f"{BASE}/logs/{_PLACE}/numbered", _take_numbered, methods=["POST"]),
)


def _place_and_logs(request: Request) -> tuple[Place, HostLogs]:
    admission = admission_of(request)
    place = TASKS.place(str(request.path_params["resource_id"]))
    admission.check_token(request, place.prefix.rstrip("/"), "log")
    logs = attached(admission.bucket)
    if not isinstance(logs, HostLogs):
        raise NotFound("This host tells of no logs")
    return place, logs
