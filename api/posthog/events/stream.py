"""A run's stream: its standing, its log as it grows, and an end that says that it is one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from enum import Enum
from itertools import islice

from api.posthog.events.bodies import Json
from api.posthog.events.notifications import LONG_CHARS, Notification, Position, RunName, notifications
from api.runs.watching.sources import LogEnd, Put, merged
from foundation.errors import TaskyardError
from storage.bucket import ObjectStore
from storage.follower import RunLogFollowers
from storage.layout import Place
from storage.reader import read_entries
from storage.segments import LogEntry

MEDIA_TYPE = "text/event-stream"
KEEPALIVE_SECONDS = 20.0
# Connections are cut from time to time, so that servers can be taken out of service; clients come back where they are.
ROTATION_SECONDS = 15 * 60.0
_BATCH = 200


@dataclass(frozen=True)
class Standing:
    """How a run stands, as an event of its stream.

    Nothing changes any more once it has ``ended``; its log may get its last lines until all is ``over``.
    """

    event: Json
    ended: bool
    over: bool


class Beat(Enum):
    """What a stream says while there is nothing to say, and when it is cut."""

    KEEPALIVE = "keepalive"
    ROTATED = "rotated"


@dataclass(frozen=True)
class Streamed:
    """What one stream is read from. ``standings`` has the run as it is now, and whenever that has changed."""

    run: RunName
    place: Place
    standings: AsyncGenerator[Standing]
    followers: RunLogFollowers
    bucket: ObjectStore


async def frames(streamed: Streamed, start: Position) -> AsyncGenerator[bytes]:
    """The stream behind ``start`` as server-sent events."""
    cursor = start.event_id
    try:
        async with aclosing(_events(streamed, start)) as events:
            async for event in events:
                if isinstance(event, Notification):
                    cursor = event.event_id
                    yield _frame(event.text, event_id=cursor)
                elif isinstance(event, Standing):
                    # Behind the same notification, but an event of its own.
                    yield _frame(_json(event.event), event_id=f"{cursor}.{time.time_ns() // 1_000_000}")
                    if event.ended:
                        yield _frame(_json({"status": "complete"}), "stream-end")
                elif event is Beat.KEEPALIVE:
                    yield _frame(_json({"type": "keepalive"}), "keepalive")
                else:
                    yield _frame(_json({"type": "rotated"}), "end")
    except TaskyardError as error:
        # The answer has begun: its status can no longer say so.
        yield _frame(_json({"error": error.message}), "error")


async def _events(streamed: Streamed, start: Position) -> AsyncGenerator[Notification | Standing | Beat]:
    """Everything in its order: the run's standing first, and that with which it ends after its last notification."""
    async with aclosing(streamed.standings) as standings:
        first = await anext(standings)
        if first.over:
            async with aclosing(_stored(streamed, start)) as told:
                async for notification in told:
                    yield notification
            yield first
            return
        if not first.ended:
            yield first
        live = _Live(streamed, start, first)
        async with merged(lambda put: live.stand(standings, put), live.read, live.beat) as events:
            async for event in events:
                yield event
                live.quiet_since = time.monotonic()


async def _stored(streamed: Streamed, start: Position) -> AsyncGenerator[Notification]:
    entries = read_entries(streamed.bucket, streamed.place, start.after_entry)

    def more() -> list[Notification] | None:
        read = list(islice(entries, _BATCH))
        return [each for entry in read for each in notifications(entry, streamed.run, start)] if read else None

    while (told := await asyncio.to_thread(more)) is not None:
        for notification in told:
            yield notification


class _Live:
    """The sources of one stream of a run that has not ended."""

    def __init__(self, streamed: Streamed, start: Position, shown: Standing) -> None:
        self.quiet_since = time.monotonic()
        self._streamed = streamed
        self._start = start
        self._shown = shown
        self._log = LogEnd()

    async def stand(self, standings: AsyncIterator[Standing], put: Put[Notification | Standing | Beat]) -> None:
        """The run's changes, up to its end or until the stream is cut."""
        try:
            async with asyncio.timeout(ROTATION_SECONDS):
                last = self._shown if self._shown.ended else await self._changes(standings, put)
                # The last lines come before the state that ends the stream.
                await self._log.wait()
                await put(last)
        except TimeoutError:
            await put(Beat.ROTATED)

    async def _changes(self, standings: AsyncIterator[Standing], put: Put[Notification | Standing | Beat]) -> Standing:
        """Tell how the run stands whenever that has changed; how it stands at its end."""
        async for standing in standings:
            if standing.ended:
                return standing
            if standing != self._shown:
                self._shown = standing
                await put(standing)
        raise AssertionError("a run is watched to its end")

    async def read(self, put: Put[Notification | Standing | Beat]) -> None:
        """The log from where the client is."""
        follow = self._streamed.followers.follow(self._streamed.place, self._start.after_entry)
        async with aclosing(follow) as entries:
            async for entry in entries:
                self._log.begin_line()
                for notification in await self._notifications(entry):
                    await put(notification)
                self._log.end_line()
        self._log.set()

    async def beat(self, put: Put[Notification | Standing | Beat]) -> None:
        """A sign of life whenever nothing was sent for a while."""
        while True:
            quiet = time.monotonic() - self.quiet_since
            if quiet >= KEEPALIVE_SECONDS:
                await put(Beat.KEEPALIVE)
                self.quiet_since = time.monotonic()
            await asyncio.sleep(max(KEEPALIVE_SECONDS - quiet, KEEPALIVE_SECONDS / 10))

    async def _notifications(self, entry: LogEntry) -> list[Notification]:
        if len(entry.data) > LONG_CHARS:
            return await asyncio.to_thread(notifications, entry, self._streamed.run, self._start)
        return notifications(entry, self._streamed.run, self._start)


def _frame(data: str, event: str = "", event_id: str = "") -> bytes:
    head = f"event: {event}\n" if event else ""
    head += f"id: {event_id}\n" if event_id else ""
    return f"{head}data: {data}\n\n".encode()


def _json(data: Json) -> str:
    return json.dumps(data, separators=(",", ":"))
