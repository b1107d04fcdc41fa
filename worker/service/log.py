"""The logs of this host's runs as they are written, for the servers that have followers of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Send

from foundation.errors import InvalidParameter, NotFound
from foundation.service.paths import BASE
from storage.layout import TASKS
from storage.live.attached import attached
from storage.live.host import HostLogs
from storage.live.wire import told
from storage.segments import NDJSON
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
    admission = admission_of(request)
    place = TASKS.place(str(request.path_params["resource_id"]))
    admission.check_token(request, place.prefix.rstrip("/"), "log")
    after = request.query_params.get("after", "0")
    if not (after.isascii() and after.isdecimal() and len(after) <= _ID_DIGITS):
        raise InvalidParameter("after is the id of an entry")
    logs = attached(admission.bucket)
    if not isinstance(logs, HostLogs):
        raise NotFound("This host tells of no logs")
    return _Stream(told(logs, place, int(after)))


ROUTES: Sequence[BaseRoute] = (Route(f"{BASE}/logs/{TASKS.directory}/{{resource_id}}", _tell),)
