"""The run log as it is written for one kind of reader: plain text, NDJSON or server-sent events."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Protocol

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from api.runs.core import Core
from api.runs.log import LogQuery, batches, timestamp
from foundation.errors import TaskyardError
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.runlog import LogEntry
from workflows.runs.messages import TaskStatus


class Writing(Protocol):
    """How a log is written for one kind of reader."""

    media_type: str

    def entry(self, entry: LogEntry) -> bytes: ...
    def keepalive(self) -> bytes: ...
    def completed(self, status: TaskStatus) -> bytes: ...
    def error(self, error: TaskyardError) -> bytes: ...


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


async def written(
    query: LogQuery, writing: Writing, task_id: str, core: Core, bucket: Bucket, followers: RunLogFollowers
) -> AsyncGenerator[bytes]:
    """The log's bytes, to the run's end if it is followed."""
    try:
        async with aclosing(batches(query, task_id, core, bucket, followers)) as coming:
            async for batch in coming:
                text = b"".join(writing.entry(entry) for entry in batch)
                yield text or writing.keepalive()
        status = (await core.status(task_id)).status
        if status.state.terminal:
            yield writing.completed(status)
    except TaskyardError as error:
        # The answer has begun: its status can no longer say so.
        yield writing.error(error)


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
