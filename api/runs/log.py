"""The run log for readers: which entries there are for them, live or not."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Literal

import anyio

from api.runs.core import Core
from foundation.errors import EngineUnavailable
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.layout import TASKS, Place
from storage.runlog import LogEntry, read_entries, tail

Stream = Literal["all", "stdout", "stderr", "events", "told"]

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


async def batches(
    query: LogQuery, task_id: str, core: Core, bucket: Bucket, followers: RunLogFollowers
) -> AsyncGenerator[list[LogEntry]]:
    """The entries asked for, some at a time; an empty batch when a followed log was silent for a while.

    A followed log ends when the run has; any other after what is stored now. Close it (``contextlib.aclosing``) when
    leaving early.
    """
    place = TASKS.place(task_id)
    after_id = query.after_id
    if query.tail:
        latest = await asyncio.to_thread(_latest, bucket, place, query)
        yield latest
        if latest:
            after_id = latest[-1].id
    elif not query.follow:
        entries = read_entries(bucket, place, after_id)
        while batch := await asyncio.to_thread(lambda: list(islice(entries, _BATCH))):
            yield [entry for entry in batch if query.wants(entry)]
    if query.follow:
        async with (
            aclosing(followers.follow(place, after_id)) as coming,
            aclosing(_with_pauses(coming, lambda: core.has_ended(task_id))) as paced,
        ):
            async for batch in paced:
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


def _latest(bucket: Bucket, place: Place, query: LogQuery) -> list[LogEntry]:
    if query.stream == "all" and query.since is None and not query.after_id:
        return tail(bucket, place, query.tail)
    entries = read_entries(bucket, place, query.after_id)
    return list(deque((entry for entry in entries if query.wants(entry)), maxlen=query.tail))


def timestamp(at: datetime) -> str:
    """A time as every dialect writes it: UTC, to the millisecond."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
