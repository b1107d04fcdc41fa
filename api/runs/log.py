"""The run log for readers: which entries, live or not, and written as plain text, NDJSON or server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal, Protocol

import anyio
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event
from starlette.types import Send

from api.runs.core import Core
from foundation.errors import EngineUnavailable, InvalidParameter, TaskyardError
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.runlog import LogEntry, read_entries, tail
from workflows.runs.messages import TaskStatus

Stream = Literal["all", "stdout", "stderr", "events"]

KEEPALIVE_SECONDS = 10.0

_BATCH = 500


@dataclass(frozen=True)
class LogQuery:
    """Which entries: of one stream or all, since a time, after an id, only the last ``tail`` (0: all of them)."""

    stream: Stream = "all"
    since: datetime | None = None
    tail: int = 0
    after_id: int = 0
    follow: bool = False

    def wants(self, entry: LogEntry) -> bool:
        """Whether the entry is of the stream and time asked for."""
        if self.stream != "all" and entry.stream != self.stream.removesuffix("s"):
            return False
        return self.since is None or entry.ts >= self.since


class Writing(Protocol):
    """How a log is written for one kind of reader."""

    media_type: str

    def entry(self, entry: LogEntry) -> bytes: ...
    def keepalive(self) -> bytes: ...
    def completed(self, status: TaskStatus) -> bytes: ...
    def error(self, error: TaskyardError) -> bytes: ...


def parse_since(text: str | None) -> datetime | None:
    """An ISO-8601 time; without an offset it is UTC. Raises InvalidParameter."""
    if not text:
        return None
    try:
        # A '+' of the offset that was not percent-encoded arrives as a space.
        since = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError as error:
        raise InvalidParameter(
            f"since: '{text}' is not an ISO-8601 time; write one such as 2026-01-29T10:00:00Z.", field="since"
        ) from error
    return since if since.tzinfo else since.replace(tzinfo=UTC)


def negotiate(accept: str, *, follow: bool) -> Writing:
    """How to write the log for an Accept header (contract, section 2.5)."""
    accept = accept.lower()
    if "text/event-stream" in accept:
        return EventStream()
    if "application/x-ndjson" in accept or "application/jsonl" in accept:
        return JsonLines()
    if follow and "text/plain" not in accept:
        return EventStream()
    return PlainText()


class LogResponse(StreamingResponse):
    """A log as it is written. When the client goes, what the log is read from is closed at once."""

    def __init__(self, content: AsyncGenerator[bytes], media_type: str) -> None:
        self._content = content
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(content, media_type=media_type, headers=headers)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._content):
            await super().stream_response(send)


async def written(
    query: LogQuery, writing: Writing, task_id: str, core: Core, bucket: Bucket, followers: RunLogFollowers
) -> AsyncGenerator[bytes]:
    """The log's bytes. A followed log ends when the run has; any other after what is stored now."""
    try:
        async with aclosing(_batches(query, task_id, core, bucket, followers)) as batches:
            async for batch in batches:
                text = b"".join(writing.entry(entry) for entry in batch)
                yield text or writing.keepalive()
        status = (await core.status(task_id)).status
        if status.state.terminal:
            yield writing.completed(status)
    except TaskyardError as error:
        # The answer has begun: its status can no longer say so.
        yield writing.error(error)


async def _batches(
    query: LogQuery, task_id: str, core: Core, bucket: Bucket, followers: RunLogFollowers
) -> AsyncGenerator[list[LogEntry]]:
    after_id = query.after_id
    if query.tail:
        latest = await asyncio.to_thread(_latest, bucket, task_id, query)
        yield latest
        if latest:
            after_id = latest[-1].id
    elif not query.follow:
        entries = read_entries(bucket, task_id, after_id)
        while batch := await asyncio.to_thread(lambda: list(islice(entries, _BATCH))):
            yield [entry for entry in batch if query.wants(entry)]
    if query.follow:
        async with (
            aclosing(followers.follow(task_id, after_id)) as coming,
            aclosing(_with_pauses(coming, lambda: core.has_ended(task_id))) as batches,
        ):
            async for batch in batches:
                yield [entry for entry in batch if query.wants(entry)]


async def _with_pauses(
    entries: AsyncIterator[LogEntry], has_ended: Callable[[], Awaitable[bool]]
) -> AsyncGenerator[list[LogEntry]]:
    """Entries one by one, with an empty batch whenever none came for a while.

    A closed log ends this at once. That of a run which was ended past its own steps is never closed: it ends when
    nothing has come for a while after its end.
    """
    ended = False
    coming: asyncio.Task[LogEntry | None] | None = None
    try:
        while True:
            # Kept over the pauses: a wait that is broken off would lose the entry that comes with it.
            coming = coming or asyncio.create_task(_next(entries))
            done, _ = await asyncio.wait({coming}, timeout=KEEPALIVE_SECONDS)
            if not done:
                if ended:
                    return
                with suppress(EngineUnavailable):
                    ended = await has_ended()
                yield []
            elif (entry := coming.result()) is None:
                return
            else:
                coming = None
                yield [entry]
    finally:
        if coming is not None:
            coming.cancel()
            # Also when the client has left: the entries cannot be closed while they are being awaited.
            with anyio.CancelScope(shield=True):
                await asyncio.wait({coming})


async def _next(entries: AsyncIterator[LogEntry]) -> LogEntry | None:
    return await anext(entries, None)


def _latest(bucket: Bucket, task_id: str, query: LogQuery) -> list[LogEntry]:
    if query.stream == "all" and query.since is None and not query.after_id:
        return tail(bucket, task_id, query.tail)
    entries = read_entries(bucket, task_id, query.after_id)
    return list(deque((entry for entry in entries if query.wants(entry)), maxlen=query.tail))


class PlainText:
    """One line of text for each line of the log: ``[time] [STREAM] text``."""

    media_type = "text/plain; charset=utf-8"

    def entry(self, entry: LogEntry) -> bytes:
        head = f"[{timestamp(entry.ts)}] [{entry.stream.upper()}] "
        return "".join(f"{head}{line}\n" for line in entry.data.removesuffix("\n").split("\n")).encode()

    def keepalive(self) -> bytes:
        return b""

    def completed(self, status: TaskStatus) -> bytes:  # noqa: ARG002 -- the text just ends
        return b""

    def error(self, error: TaskyardError) -> bytes:
        return f"[{timestamp(datetime.now(UTC))}] [ERROR] {error.message}\n".encode()


class JsonLines:
    """One JSON object a line; the fields of an event stand beside ``stream``."""

    media_type = "application/x-ndjson"

    def entry(self, entry: LogEntry) -> bytes:
        head = {"id": entry.id, "timestamp": timestamp(entry.ts), "stream": entry.stream}
        return _json_line(_event(entry) | head if entry.stream == "event" else head | {"data": entry.data})

    def keepalive(self) -> bytes:
        return b"\n"

    def completed(self, status: TaskStatus) -> bytes:
        at = timestamp(status.state_changed_at)
        end = {"timestamp": at, "stream": "event", "type": "completed", "state": status.state.value}
        return _json_line(end | {"exit_code": status.exit_code})

    def error(self, error: TaskyardError) -> bytes:
        at = timestamp(datetime.now(UTC))
        return _json_line(
            {"timestamp": at, "stream": "event", "type": "error", "error": error.code, "message": error.message}
        )


class EventStream:
    """Server-sent events named for the stream; the ids resume by Last-Event-ID."""

    media_type = "text/event-stream"

    def entry(self, entry: LogEntry) -> bytes:
        return format_sse_event(data_str=entry.data.removesuffix("\n"), event=entry.stream, id=str(entry.id))

    def keepalive(self) -> bytes:
        return KEEPALIVE_COMMENT

    def completed(self, status: TaskStatus) -> bytes:
        # Clients drop events without data, so a run that left no exit code has its state in them.
        data = status.state.value if status.exit_code is None else str(status.exit_code)
        return format_sse_event(data_str=data, event="completed")

    def error(self, error: TaskyardError) -> bytes:
        return format_sse_event(data_str=error.message, event="error")


def _event(entry: LogEntry) -> dict[str, object]:
    payload = json.loads(entry.data)
    return payload if isinstance(payload, dict) else {"data": payload}


def _json_line(data: Mapping[str, object]) -> bytes:
    # Some clients take more than the newline for the end of a line; escaped, none of those is left in the text.
    return json.dumps(data).encode() + b"\n"


def timestamp(at: datetime) -> str:
    """A time as every dialect writes it: UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
