"""Appends what clients tell to logs: at the same cost however long a log is, and whichever servers append beside.

Each log that this process appends to has one writer here: what comes while it stores one segment goes into the next.
It knows the end of the log from its last append, so an append is one conditional write; whoever was quicker is
followed. From time to time a writer copies neighbouring segments into one object, as hosts do, so that whoever comes
late needs few requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from anyio import CapacityLimiter, to_thread

from foundation.errors import RateLimitExceeded, TaskyardError
from storage.bucket import ObjectStore
from storage.layout import Place
from storage.sealing import append_behind, merge_segments
from storage.segments import ChainEnd, Draft, Drafts

_LOGS_MOST = 1000
_THREADS = 8
# What waits for one log, in characters.
_HELD_MOST = 16 * 1024 * 1024
# What goes into one segment.
_SEGMENT_CHARACTERS = 4 * 1024 * 1024
_MERGE_EVERY = 128

log = structlog.get_logger("appending")


@dataclass
class _Item:
    drafts: Drafts
    characters: int
    stored: asyncio.Future[ChainEnd]


@dataclass
class _Log:
    """One log: where it ended last, what waits to be appended, and how many appends were not merged."""

    end: ChainEnd | None = None
    waiting: list[_Item] = field(default_factory=list)
    held: int = 0
    appends: int = 0
    writing: asyncio.Task[None] | None = None


class _Attempt:
    """One segment of several items; what one of them raises refuses that one alone."""

    def __init__(self, items: Sequence[_Item]) -> None:
        self._items = list(items)
        self._done: list[tuple[_Item, ChainEnd]] = []
        self._ends: list[tuple[_Item, ChainEnd]] = []
        self.refused: list[tuple[_Item, Exception]] = []

    def drafts(self, end: ChainEnd) -> Sequence[Draft]:
        self._ends, self.refused = [], []
        found: list[Draft] = []
        for item in self._items:
            try:
                own = item.drafts(end)
            except TaskyardError as error:
                self.refused.append((item, error))
                continue
            found += own
            numbers = [draft.offset for draft in own if draft.offset is not None]
            end = end._replace(last=end.last + len(own), sequence=numbers[-1] if numbers else end.sequence)
            self._ends.append((item, end))
        return found

    def retry(self) -> None:
        """Take what was not refused as done, and have the rest tried again."""
        self._done += self._ends
        self._items = [item for item, _ in self.refused]

    def fail(self, error: Exception) -> None:
        done = {id(item) for item, _ in self._done}
        self.refused = [(item, error) for item in self._items if id(item) not in done]
        self._ends = []

    def tell(self) -> None:
        for item, end in (*self._done, *self._ends):
            if not item.stored.done():
                item.stored.set_result(end)
        for item, error in self.refused:
            if not item.stored.done():
                item.stored.set_exception(error)


class ClientLogs:
    """Logs to which clients append through this process. For the event loop alone."""

    def __init__(self, bucket: ObjectStore) -> None:
        self._bucket = bucket
        self._logs: dict[Place, _Log] = {}
        self._limiter = CapacityLimiter(_THREADS)

    async def append(self, place: Place, drafts: Drafts, characters: int, *, fresh: bool = False) -> ChainEnd:
        """Store what ``drafts`` gives, all or nothing, and give the end of the log then.

        ``characters`` is about how much that is; with ``fresh`` the end is looked up, not remembered. It is stored also
        when nobody waits any more. Raises Conflict when the log is closed (``reason``: ``closed``), BucketUnavailable,
        RateLimitExceeded, and what ``drafts`` raises.
        """
        found = self._logs.pop(place, None) or _Log()
        if fresh:
            found.end = None
        # The latest comes last.
        self._logs[place] = found
        self._forget()
        if found.held and found.held + characters > _HELD_MOST:
            raise RateLimitExceeded(f"Too much waits to be appended to the log of {place}; send this again later.")
        item = _Item(drafts, characters, asyncio.get_running_loop().create_future())
        found.waiting.append(item)
        found.held += characters
        if found.writing is None:
            found.writing = asyncio.create_task(self._write(place, found), name=f"append-{place.id}")
        return await asyncio.shield(item.stored)

    async def close(self) -> None:
        """Store what was taken."""
        await asyncio.gather(*(each.writing for each in self._logs.values() if each.writing), return_exceptions=True)

    async def _write(self, place: Place, found: _Log) -> None:
        try:
            while found.waiting:
                batch = _first(found.waiting)
                del found.waiting[: len(batch)]
                await self._store(place, found, batch)
                found.held -= sum(item.characters for item in batch)
                if found.appends >= _MERGE_EVERY:
                    found.appends = 0
                    await self._merge(place)
        finally:
            found.writing = None

    async def _store(self, place: Place, found: _Log, batch: list[_Item]) -> None:
        """Append what is in a batch, as one segment, and tell those who wait for it."""
        attempt = _Attempt(batch)
        try:
            known = found.end
            found.end, stored = await self._append(place, known, attempt)
            if known is not None and attempt.refused:
                # What was refused may be in order at the log's end, which may have gone on since it was known.
                attempt.retry()
                found.end, more = await self._append(place, None, attempt)
                stored = [*stored, *more]
            found.appends += bool(stored)
        except Exception as error:  # noqa: BLE001 -- raised again where it is waited for
            found.end = None
            attempt.fail(error)
        attempt.tell()

    async def _append(self, place: Place, end: ChainEnd | None, attempt: _Attempt) -> tuple[ChainEnd, Sequence[Draft]]:
        return await to_thread.run_sync(append_behind, self._bucket, place, end, attempt.drafts, limiter=self._limiter)

    async def _merge(self, place: Place) -> None:
        try:
            await to_thread.run_sync(merge_segments, self._bucket, place, limiter=self._limiter)
        except TaskyardError as error:
            # The log is whole without it; the next merge has the more to do.
            log.warning("segments were not merged", place=str(place), error=error.message)

    def _forget(self) -> None:
        """Keep the ends of the logs that were appended to last."""
        if len(self._logs) > _LOGS_MOST:
            for place, each in list(self._logs.items()):
                if each.writing is None:
                    del self._logs[place]
                    break


def _first(waiting: list[_Item]) -> list[_Item]:
    batch: list[_Item] = []
    for item in waiting:
        if batch and sum(each.characters for each in batch) + item.characters > _SEGMENT_CHARACTERS:
            break
        batch.append(item)
    return batch
