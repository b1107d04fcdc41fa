"""Followers of live runs: however many clients follow one run, this process reads its log once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import islice, takewhile

import structlog
from storage.runlog import LogEntry, read_entries

from foundation.errors import ServiceUnavailable
from storage.bucket import Bucket

_log = structlog.get_logger()

BATCH = 1000

_QUICK_SECONDS = 0.2
_SLOW_SECONDS = 1.0
_END_CHECK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
# What is kept for clients that are close behind; those further behind read the bucket themselves.
_KEPT_ENTRIES = 5000
_KEPT_BYTES = 4 * 2**20


class Followers:
    """All runs that somebody follows through this process."""

    def __init__(self, bucket: Bucket, has_ended: Callable[[str], Awaitable[bool]]) -> None:
        self._bucket = bucket
        self._has_ended = has_ended
        self._tails: dict[str, _Tail] = {}

    @property
    def count(self) -> int:
        """How many clients follow now."""
        return sum(tail.clients for tail in self._tails.values())

    async def follow(self, task_id: str, after_id: int, idle_seconds: float) -> AsyncIterator[list[LogEntry]]:
        """The run's entries after an id, in batches as they come, until the run has ended and all are told.

        An empty batch says that nothing came for ``idle_seconds``. Nothing is queued for a client: a slow one reads
        on from where it stands, so its memory is one batch. Raises ServiceUnavailable when the log stays out of reach.
        """
        tail = self._tails.setdefault(task_id, _Tail(self._bucket, task_id, self._has_ended))
        tail.clients += 1
        try:
            position = await self._known(task_id, after_id)
            while True:
                if not tail.reaches(position):
                    batch = await read_batch(self._bucket, task_id, position)
                    if not batch:
                        position = tail.start(position)
                else:
                    batch = tail.after(position)
                    if not batch and tail.ended:
                        return
                    if not batch and await tail.wait(idle_seconds):
                        continue
                if batch:
                    position = batch[-1].id
                yield batch
        finally:
            tail.clients -= 1
            if not tail.clients and self._tails.get(task_id) is tail:
                del self._tails[task_id]
                tail.stop()

    async def close(self) -> None:
        """Stop reading."""
        for tail in self._tails.values():
            tail.stop()
        self._tails.clear()

    async def _known(self, task_id: str, after_id: int) -> int:
        """The id to start after: an id that the log does not hold would let the shared reader skip what is to come."""
        if after_id <= 0:
            return 0
        found = await asyncio.to_thread(lambda: next(iter(read_entries(self._bucket, task_id, after_id - 1)), None))
        return after_id if found is not None and found.id == after_id else 0


async def read_batch(bucket: Bucket, task_id: str, after_id: int) -> list[LogEntry]:
    """At most BATCH entries after an id."""
    return await asyncio.to_thread(lambda: list(islice(read_entries(bucket, task_id, after_id), BATCH)))


class _Tail:
    """The one reader of one run's log, and its latest entries."""

    def __init__(self, bucket: Bucket, task_id: str, has_ended: Callable[[str], Awaitable[bool]]) -> None:
        self.clients = 0
        self.ended = False
        self._bucket = bucket
        self._task_id = task_id
        self._has_ended = has_ended
        self._recent: deque[LogEntry] = deque()
        self._bytes = 0
        self._base: int | None = None
        self._last = 0
        self._failure: ServiceUnavailable | None = None
        self._news = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    def reaches(self, position: int) -> bool:
        """Whether what comes after this id is all here, so that the bucket need not be read for it."""
        return self._base is not None and position >= self._base

    def start(self, position: int) -> int:
        """Begin to read after an id that is the log's last so far. Gives the id after which all is here."""
        if self._base is None:
            self._base = self._last = position
            self._reader = asyncio.create_task(self._read(), name=f"follow {self._task_id}")
        return max(self._base, position)

    def stop(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    def after(self, position: int) -> list[LogEntry]:
        """Kept entries after an id. Raises the failure that ended the reading."""
        if self._failure is not None:
            raise self._failure
        newest_first = takewhile(lambda entry: entry.id > position, reversed(self._recent))
        return list(reversed(list(newest_first)))[:BATCH]

    async def wait(self, seconds: float) -> bool:
        """Wait for news; false when none came in time."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _read(self) -> None:
        try:
            await self._read_to_end()
        except ServiceUnavailable as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 -- whatever it is, the clients must not wait for ever
            _log.exception("the reader of a run log failed", task_id=self._task_id)
            self._failure = ServiceUnavailable(f"The log of task '{self._task_id}' cannot be read: {error}")
        else:
            self.ended = True
        self._tell()

    async def _read_to_end(self) -> None:
        pause = _QUICK_SECONDS
        last_answer = time.monotonic()
        last_check = float("-inf")
        ended = False
        while True:
            try:
                # Asked before reading: what a run writes before it ends is then surely read.
                if time.monotonic() - last_check >= _END_CHECK_SECONDS:
                    ended = await self._has_ended(self._task_id)
                    last_check = time.monotonic()
                batch = await read_batch(self._bucket, self._task_id, self._last)
                last_answer = time.monotonic()
            except ServiceUnavailable:
                if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                    raise
                batch = []
            if batch:
                self._keep(batch)
                self._tell()
                pause = _QUICK_SECONDS
            elif ended:
                return
            else:
                pause = min(pause * 1.3, _SLOW_SECONDS)
            if len(batch) < BATCH:
                await asyncio.sleep(pause)

    def _keep(self, batch: list[LogEntry]) -> None:
        for entry in batch:
            self._recent.append(entry)
            self._bytes += len(entry.data)
        self._last = batch[-1].id
        while len(self._recent) > _KEPT_ENTRIES or (self._bytes > _KEPT_BYTES and len(self._recent) > 1):
            gone = self._recent.popleft()
            self._bytes -= len(gone.data)
            self._base = gone.id

    def _tell(self) -> None:
        """Wake everybody who waits now; those who come later look first."""
        self._news.set()
        self._news = asyncio.Event()
