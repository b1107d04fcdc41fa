"""Routes for the events of a run: ``stream``, ``session_logs`` and ``logs``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Protocol, cast

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.encoders import jsonable_encoder
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection

from api.deps import Services, ServicesOf
from api.http.rates import address
from api.http.streams import LogResponse
from api.posthog.events.notifications import BEGINNING, Position, RunName, notifications, parse_event_id
from api.posthog.events.stream import MEDIA_TYPE, Standing, Streamed, frames
from api.posthog.events.table import LogQuery, LogTables
from api.posthog.lookup import FoundRun, RunOf, ancestors, opened_by_token
from api.posthog.models import run_object
from api.posthog.paths import RUN
from api.posthog.tokens import STREAM
from api.told.core import ToldRun
from foundation.errors import InvalidParameter
from storage.layout import TASKS
from storage.reader import read_entries, tail
from storage.segments import LogEntry

router = APIRouter(prefix=RUN, tags=["runs"])

_BATCH = 500
# What a followed run is said to be; the rest of a run is asked for.
_STANDING = ("status", "stage", "output", "branch", "error_message", "updated_at", "completed_at")


class _WithTables(Protocol):
    log_tables: LogTables


async def _tables(connection: HTTPConnection) -> LogTables:
    return cast("_WithTables", connection.app).log_tables


TablesOf = Annotated[LogTables, Depends(_tables)]


@router.get(
    "/stream",
    summary="Follow a run",
    response_class=StreamingResponse,
    dependencies=[opened_by_token(STREAM)],
    responses={200: {"description": "Server-sent events", "content": {MEDIA_TYPE: {"example": "id: 7\ndata: {}\n\n"}}}},
)
async def stream(
    run: RunOf,
    request: Request,
    services: ServicesOf,
    start: Annotated[str, Query(description="'latest' leaves out what was before")] = "",
    accept: Annotated[str, Header()] = "",
    last_event_id: Annotated[str, Header(description="Go on behind this event")] = "",
) -> LogResponse:
    """The run's events as they happen, to its end: its standing, its log, and ``stream-end``."""
    if not _accepts(accept):
        raise HTTPException(406)
    place = TASKS.place(run.id)
    position = BEGINNING
    if last_event_id:
        position = parse_event_id(last_event_id)
    elif start == "latest":
        last = await asyncio.to_thread(tail, services.bucket, place, 1)
        position = Position(last[-1].id) if last else BEGINNING
    streamed = Streamed(_name(run), place, _standings(request, services, run), services.followers, services.bucket)
    content = _counted(request, services, frames(streamed, position))
    # A stream too many is refused before the answer has begun.
    return LogResponse(_with_first(await anext(content), content), MEDIA_TYPE)


@router.get("/session_logs", summary="Read a run's log in pages")
async def session_logs(
    run: RunOf,
    tables: TablesOf,
    after: Annotated[str | None, Query(description="Only what is later than this ISO-8601 time")] = None,
    event_types: Annotated[str, Query(description="Only these types of events, separated by commas")] = "",
    exclude_types: Annotated[str, Query(description="None of these types")] = "",
    limit: Annotated[int, Query(ge=1, le=5000)] = 1000,
    offset: Annotated[int, Query(ge=0, lt=2**63)] = 0,
) -> Response:
    """Entries of this run's log as a JSON array; the headers say how many there are, and whether more match."""
    began = time.monotonic()
    query = LogQuery(_words(event_types), _words(exclude_types), _time(after), limit, offset)
    page = await asyncio.to_thread(tables.page, TASKS.place(run.id), _name(run), query)
    headers = _log_headers("filter", began) | {
        "X-Total-Count": str(page.total),
        "X-Filtered-Count": str(page.matching),
        "X-Matching-Count": str(page.matching),
        "X-Has-More": "true" if page.more else "false",
    }
    return Response(f"[{','.join(page.texts)}]", media_type="application/json", headers=headers)


@router.get(
    "/logs",
    summary="Read a run's log whole",
    response_class=StreamingResponse,
    responses={200: {"description": "One entry a line", "content": {"application/jsonl": {"example": "{}\n"}}}},
)
async def logs(run: RunOf, services: ServicesOf) -> LogResponse:
    """The log of this run behind those of the runs that it continues, the oldest first."""
    began = time.monotonic()
    chain = [*await ancestors(services, run), run]
    lines = _lines(services, chain)
    # What cannot be read at all is told before the answer has begun.
    first = await anext(lines, b"")
    return LogResponse(_with_first(first, lines), "application/jsonl", _log_headers("s3_read", began))


async def _standings(request: Request, services: Services, run: FoundRun) -> AsyncGenerator[Standing]:
    """The run as its stream shows it, now and whenever that has changed."""
    async with aclosing(services.told_watches.watch(run.id)) as looks:
        async for look in looks:
            told = ToldRun(look.status)
            shown = run_object(request, FoundRun(run.parent, told))
            event = {"type": "task_run_state", "run_id": run.id, "task_id": run.parent.id}
            event |= {name: shown[name] for name in _STANDING}
            # What is left to do for a local run when it has ended waits for a worker, and clients do not wait for that.
            ended = look.ended or (told.local is not None and told.ended)
            yield Standing(jsonable_encoder(event), ended, look.ended)


async def _counted(request: Request, services: Services, content: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """A stream, counted while it is open."""
    streams = services.metrics.streams
    with services.rates.stream(address(request)):
        streams.inc()
        try:
            async with aclosing(content):
                async for piece in content:
                    yield piece
        finally:
            streams.dec()


async def _lines(services: Services, chain: list[FoundRun]) -> AsyncGenerator[bytes]:
    for run in chain:
        entries = read_entries(services.bucket, TASKS.place(run.id))
        name = _name(run)
        while (text := await asyncio.to_thread(_next_lines, entries, name)) is not None:
            yield text


def _next_lines(entries: Iterator[LogEntry], name: RunName) -> bytes | None:
    """Some of the log's lines; None when it has no more."""
    read = list(islice(entries, _BATCH))
    told = [each.text for entry in read for each in notifications(entry, name) if each.logged]
    return "".join(f"{text}\n" for text in told).encode() if read else None


async def _with_first(first: bytes, rest: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


def _log_headers(timed: str, began: float) -> dict[str, str]:
    spent = 1000 * (time.monotonic() - began)
    return {"Cache-Control": "no-cache", "Server-Timing": f"{timed};dur={spent:.1f}"}


def _name(run: FoundRun) -> RunName:
    return RunName(run.id, run.parent.id)


def _accepts(accept: str) -> bool:
    """Whether a client takes a stream of events."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    return not accept.strip() or any(kind in {MEDIA_TYPE, "text/*", "*/*"} for kind in kinds)


def _words(text: str) -> frozenset[str]:
    return frozenset(word for part in text.split(",") if (word := part.strip()))


def _time(text: str | None) -> datetime | None:
    """An ISO-8601 time; without an offset it is UTC. Raises InvalidParameter."""
    if not text:
        return None
    try:
        # A '+' of the offset that was not percent-encoded arrives as a space.
        at = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise InvalidParameter(
            "This is not an ISO-8601 time; write one such as 2026-01-29T10:00:00Z.", field="after"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)
