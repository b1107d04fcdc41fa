"""Follows live run logs: one poller for each followed run feeds all its subscribers, and each gets every entry once.

The poller keeps a window of the newest entries. A subscriber that is behind the window (it came late, or its client
is slow) reads from the bucket until it has caught up; so memory is bounded by the window, and nobody slows anybody
down. Subscribers that read the same object of the bucket share it, and one whose client is slow lets go of it.

Where the host of the run tells of its log, entries come from there as they are written, and the bucket is looked at
seldom, for what the host does not have. Ids are the same on both ways, so the follower changes from one to the other
at any entry.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress
from itertools import islice
from types import TracebackType
from typing import NamedTuple, Protocol, Self

import structlog

from foundation.errors import BucketUnavailable, TaskyardError
from storage.bucket import ObjectInfo, ObjectStore
from storage.layout import Place
from storage.reader import LogReader
from storage.segments import LogEntry, chain_end

POLL_SECONDS = 0.15
_AWAY_SECONDS = 1.0
_WINDOW_ENTRIES = 4000
_WINDOW_CHARACTERS = 4 * 1024 * 1024
_BATCH = 500
# What one subscriber holds for a client that takes nothing.
_HANDED_BATCH = 100
_SLOW_SECONDS = 1.0
# Between looks into the bucket while the host tells of the log.
_SELDOM_SECONDS = 2.0
# A host that tells nothing is asked again when the log has grown, and now and then.
_ASK_SECONDS = 0.5
_ASK_SECONDS_MOST = 10.0

log = structlog.get_logger("follower")


class LiveNews(NamedTuple):
    """What a run's host tells: entries, and whether it writes the log now, so that more come before they are stored."""

    live: bool
    entries: Sequence[LogEntry] = ()


class LiveSource(Protocol):
    """Where entries of logs are told as they are written."""

    def listen(self, place: Place, after_id: int) -> AsyncGenerator[LiveNews]:
        """Entries behind an id as they are written, until the source has nothing more to say, or no longer has them.

        A source that is silent for long raises. May raise TaskyardError and OSError.
        """


class RunLogFollowers:
    """The followers of one process by run: made with the first subscriber, ended with the last."""

    def __init__(
        self, store: ObjectStore, live: LiveSource | None = None, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store = store
        self._live = live
        self._poll_seconds = poll_seconds
        self._followers: dict[Place, RunLogFollower] = {}
        self._subscribers: dict[Place, int] = {}

    async def follow(self, place: Place, after_id: int = 0) -> AsyncGenerator[LogEntry]:
        """Every entry with an id above ``after_id``, stored and to come, until the log is closed.

        Close it (``contextlib.aclosing``) when leaving early.
        """
        follower = self._followers.get(place)
        if follower is None:
            follower = RunLogFollower(self._store, place, self._live, poll_seconds=self._poll_seconds)
            self._followers[place] = follower
        self._subscribers[place] = self._subscribers.get(place, 0) + 1
        try:
            async with aclosing(follower.follow(after_id)) as entries:
                async for entry in entries:
                    yield entry
        finally:
            self._subscribers[place] -= 1
            if not self._subscribers[place]:
                del self._subscribers[place]
                self._followers.pop(place)
                await follower.stop()

    @property
    def followed(self) -> dict[Place, int]:
        """Number of subscribers of each followed run."""
        return dict(self._subscribers)


class RunLogFollower:
    """Follows the log of one run with a single poller. ``async with`` it, or ``stop`` it."""

    def __init__(
        self, store: ObjectStore, place: Place, source: LiveSource | None = None, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        self._store = store
        self._place = place
        self._source = source
        self._ask_seconds = min(_ASK_SECONDS, 4 * poll_seconds)
        # Whether the source tells what is written, as it is written.
        self._live = False
        # Set when the bucket is to be looked at now, and when the source may have something.
        self._look_now = asyncio.Event()
        self._ask_now = asyncio.Event()
        self._poll_seconds = poll_seconds
        self._window: deque[LogEntry] = deque()
        self._window_characters = 0
        # Id of the last entry that the poller has seen; None before its first look.
        self._seen: int | None = None
        self._closed = False
        self._failure: Exception | None = None
        self._latest_object = _LatestObject(store)
        self._news = asyncio.Condition()
        self._poller: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def follow(self, after_id: int = 0) -> AsyncGenerator[LogEntry]:
        """Every entry with an id above ``after_id``, stored and to come, until the log is closed.

        A bucket that is away is waited for. Raises what else the poller met.
        """
        if self._poller is None:
            self._poller = asyncio.create_task(self._poll(), name=f"follow-{self._place.id}")
            if self._source is not None:
                listening = self._listen(self._source)
                self._listener = asyncio.create_task(listening, name=f"listen-{self._place.id}")
        position = after_id
        stored: list[_Stored] = []
        while await self._wait_for_news(position):
            # The window holds neighbouring ids up to the last one seen.
            begin = self._window[0].id if self._window else (self._seen or 0) + 1
            if position + 1 >= begin:
                self._let_go(stored)
                batch = list(islice(self._window, position + 1 - begin, position + 1 - begin + _HANDED_BATCH))
            else:
                # Kept from batch to batch, since a reader holds the object that it is in.
                if not stored:
                    stored.append(_Stored(self._latest_object, self._place, position))
                batch = await asyncio.to_thread(stored[0].batch)
                if not batch:
                    # Behind what has been deleted of an old log.
                    position = stored[0].position
            slow = asyncio.get_running_loop().call_later(_SLOW_SECONDS, self._let_go, stored)
            try:
                for entry in batch:
                    if not entry.unused:
                        yield entry
                    position = entry.id
            finally:
                slow.cancel()
            if not batch:
                self._let_go(stored)
                await asyncio.sleep(self._poll_seconds)

    async def stop(self) -> None:
        """End the poller. Subscribers that are left end too."""
        self._closed = True
        tasks = [task for task in (self._poller, self._listener) if task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        async with self._news:
            self._seen = self._seen or 0
            self._news.notify_all()

    def _let_go(self, stored: list[_Stored]) -> None:
        """Hold no object of the bucket any longer; it is asked for again at the position reached."""
        if stored:
            stored.clear()
            self._latest_object.clear()

    async def _wait_for_news(self, position: int) -> bool:
        """Wait until there is something behind ``position``. False: there never will be."""
        async with self._news:
            while self._seen is None or self._seen <= position:
                if self._failure:
                    raise self._failure
                if self._closed:
                    return False
                await self._news.wait()
        return True

    async def _poll(self) -> None:
        reader: LogReader | None = None
        try:
            while not self._closed:
                self._look_now.clear()
                pause = _SELDOM_SECONDS if self._live else self._poll_seconds
                try:
                    # A reader of before stands behind what the source has told since.
                    if reader is None or (self._seen is not None and reader.position < self._seen):
                        start = self._seen
                        if start is None:
                            start = (await asyncio.to_thread(chain_end, self._store, self._place)).last
                        reader = LogReader(self._store, self._place, start)
                    await self._look(reader)
                except BucketUnavailable:
                    pause = max(pause, _AWAY_SECONDS)
                    # What the broken look had read is lost with it: begin again behind what was given out.
                    reader = None
                if not self._closed:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._look_now.wait(), pause)
        except Exception as error:  # noqa: BLE001 -- whatever it was, those who wait must hear of it
            async with self._news:
                self._failure = error
                self._news.notify_all()
        finally:
            if self._listener is not None:
                self._listener.cancel()

    async def _look(self, reader: LogReader) -> None:
        """One look into the bucket, in batches, so that a burst does not stay in memory as a whole."""
        entries = reader.read()
        while True:
            start = reader.position
            batch = await asyncio.to_thread(lambda: list(islice(entries, _BATCH)))
            grown = await self._take(batch, start=start, closed=reader.closed)
            if grown and not self._live:
                self._ask_now.set()
            if len(batch) < _BATCH:
                return

    async def _take(self, entries: Sequence[LogEntry], *, start: int | None = None, closed: bool = False) -> bool:
        """Have the entries behind those seen in the window; whether there were any. A first look began at ``start``.

        Neighbours only: what comes behind a gap is left out.
        """
        grown = False
        async with self._news:
            if self._seen is None and start is not None:
                self._seen = start
                self._ask_now.set()
                self._news.notify_all()
            for entry in entries:
                if self._seen is not None and entry.id == self._seen + 1:
                    self._window.append(entry)
                    self._window_characters += len(entry.data)
                    self._seen = entry.id
                    grown = True
            while len(self._window) > _WINDOW_ENTRIES or self._window_characters > _WINDOW_CHARACTERS:
                self._window_characters -= len(self._window.popleft().data)
            self._closed = self._closed or closed
            if grown or self._closed:
                self._news.notify_all()
        return grown

    async def _listen(self, source: LiveSource) -> None:
        """Take what the source tells, for as long as it does, and ask it again when there is reason to."""
        # A cancel that comes while a connection breaks may be lost with it.
        while not self._closed:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ask_now.wait(), _ASK_SECONDS_MOST)
            self._ask_now.clear()
            if self._seen is None:
                continue
            try:
                async with aclosing(source.listen(self._place, self._seen)) as coming:
                    async for news in coming:
                        if news.live is not self._live:
                            self._live = news.live
                            # What was stored before the host began to tell, or by somebody else when it has ended.
                            self._look_now.set()
                        await self._take(news.entries)
                        if news.entries and news.entries[-1].id > self._seen:
                            break
            except (TaskyardError, OSError) as error:
                log.debug("the host does not tell of the log", place=str(self._place), error=str(error))
            except Exception as error:  # noqa: BLE001 -- the bucket has all of it, only later
                log.warning("the host's log could not be followed", place=str(self._place), error=repr(error))
            self._live = False
            self._look_now.set()
            await asyncio.sleep(self._ask_seconds)


class _Stored:
    """What one subscriber reads of the bucket, batch by batch."""

    def __init__(self, store: ObjectStore, place: Place, position: int) -> None:
        self._reader = LogReader(store, place, position, aged=True)
        self._entries = self._reader.read()

    @property
    def position(self) -> int:
        """The last id of what was read, or is not there any more."""
        return self._reader.position

    def batch(self) -> list[LogEntry]:
        """The next batch; none when all is read or the bucket is away."""
        batch: list[LogEntry] = []
        with suppress(BucketUnavailable):
            batch.extend(islice(self._entries, _HANDED_BATCH))
        return batch


class _LatestObject:
    """The bucket, with the object that was read last kept for those who read the same; no object ever changes."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._held: tuple[str, bytes] | None = None
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes | None:
        with self._lock:
            held = self._held
            if held is not None and held[0] == key:
                return held[1]
            body = self._store.get(key)
            if body is not None and not key.endswith(".json"):
                # The seal is asked for before every part, and must not take its place.
                self._held = (key, body)
            return body

    def clear(self) -> None:
        self._held = None

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str = "") -> bool:
        return self._store.put(key, data, if_absent=if_absent, content_type=content_type)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return self._store.list(prefix, start_after=start_after)

    def delete(self, keys: Iterable[str]) -> None:
        self._store.delete(keys)
