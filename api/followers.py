"""Followers of live runs: however many clients follow one run, this process reads its log once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from itertools import islice, takewhile

import structlog

from foundation.errors import ServiceUnavailable
from storage.bucket import Bucket
from storage.reader import LogReader
from storage.runlog import LogEntry, read_entries

_log = structlog.get_logger()

BATCH = 500

_QUICK_SECONDS = 0.2
_SLOW_SECONDS = 1.0
_END_CHECK_SECONDS = 1.0
_PATIENCE_SECONDS = 60.0
# What is kept for clients that are close behind; those further behind read the bucket themselves.
_KEPT_ENTRIES = 5000
_KEPT_CHARACTERS = 4 * 2**20


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

    async def follow(self, task_id: str, after_id: int, idle_seconds: float) -> AsyncGenerator[list[LogEntry]]:
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
                    async for batch in read_batches(self._bucket, task_id, position):
                        position = batch[-1].id
                        yield batch
                    position = tail.start(position)
                if batch := tail.after(position):
                    position = batch[-1].id
                    yield batch
                elif tail.ended:
                    return
                elif not await tail.wait(idle_seconds):
                    yield []
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
        found = await asyncio.to_thread(lambda: next(read_entries(self._bucket, task_id, after_id - 1), None))
        return after_id if found is not None and found.id == after_id else 0


async def read_batches(bucket: Bucket, task_id: str, after_id: int) -> AsyncIterator[list[LogEntry]]:
    """All entries after an id that are stored now, in batches of at most BATCH; no batch is empty."""
    entries = read_entries(bucket, task_id, after_id)
    while batch := await asyncio.to_thread(lambda: list(islice(entries, BATCH))):
        yield batch


class _Tail:
    """The one reader of one run's log, and its latest entries."""

    def __init__(self, bucket: Bucket, task_id: str, has_ended: Callable[[str], Awaitable[bool]]) -> None:
        self.clients = 0
        self.ended = False
        self._bucket = bucket
        self._task_id = task_id
        self._has_ended = has_ended
        self._recent: deque[LogEntry] = deque()
        self._characters = 0
        # The id after which all is kept; None until a client has caught up with what is stored.
        self._base: int | None = None
        self._failure: ServiceUnavailable | None = None
        self._news = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    def reaches(self, position: int) -> bool:
        """Whether what comes after this id is all here, so that the bucket need not be read for it."""
        return self._base is not None and position >= self._base

    def start(self, position: int) -> int:
        """Begin to read after an id that is the log's last so far. Gives the id after which all is here."""
        if self._base is None:
            self._base = position
            reader = LogReader(self._bucket, self._task_id, position)
            self._reading = asyncio.create_task(self._read(reader), name=f"follow {self._task_id}")
        return max(self._base, position)

    def stop(self) -> None:
        if self._reading is not None:
            self._reading.cancel()

    def after(self, position: int) -> list[LogEntry]:
        """Kept entries after an id. Raises the failure that ended the reading."""
        newest_first = takewhile(lambda entry: entry.id > position, reversed(self._recent))
        batch = list(reversed(list(newest_first)))[:BATCH]
        if not batch and self._failure is not None:
            raise self._failure
        return batch

    async def wait(self, seconds: float) -> bool:
        """Wait for news; false when none came in time."""
        try:
            await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def _read(self, reader: LogReader) -> None:
        try:
            await self._read_to_end(reader)
        except ServiceUnavailable as error:
            self._failure = error
        except Exception as error:  # noqa: BLE001 -- whatever it is, the clients must not wait for ever
            _log.exception("the reader of a run log failed", task_id=self._task_id)
            self._failure = ServiceUnavailable(f"The log of task '{self._task_id}' cannot be read: {error}")
        else:
            self.ended = True
        self._tell()

    async def _read_to_end(self, reader: LogReader) -> None:
        """Read until the log is closed, or until its run is over: that of a run ended from outside is never closed."""
        pause = _QUICK_SECONDS
        last_answer = time.monotonic()
        last_check = float("-inf")
        ended = False
        while True:
            batch: list[LogEntry] = []
            try:
                # Asked before reading: what a run writes before it ends is then surely read.
                if time.monotonic() - last_check >= _END_CHECK_SECONDS:
                    ended = await self._has_ended(self._task_id)
                    last_check = time.monotonic()
                batch = await asyncio.to_thread(_read_on, reader)
                last_answer = time.monotonic()
            except ServiceUnavailable:
                if time.monotonic() - last_answer > _PATIENCE_SECONDS:
                    raise
            if batch:
                self._keep(batch)
                self._tell()
                pause = _QUICK_SECONDS
            else:
                pause = min(pause * 1.3, _SLOW_SECONDS)
            if reader.closed or (ended and not batch):
                return
            await asyncio.sleep(pause)

    def _keep(self, batch: list[LogEntry]) -> None:
        for entry in batch:
            self._recent.append(entry)
            self._characters += len(entry.data)
        while len(self._recent) > _KEPT_ENTRIES or (self._characters > _KEPT_CHARACTERS and len(self._recent) > 1):
            gone = self._recent.popleft()
            self._characters -= len(gone.data)
            self._base = gone.id

    def _tell(self) -> None:
        """Wake everybody who waits now; those who come later look first."""
        self._news.set()
        self._news = asyncio.Event()


def _read_on(reader: LogReader) -> list[LogEntry]:
    """What has come since. What was read before the bucket failed is not lost with the failure."""
    batch: list[LogEntry] = []
    try:
        for entry in reader.read():
            batch.append(entry)  # noqa: PERF402 -- a list made in one go would be lost with the failure
    except ServiceUnavailable:
        if not batch:
            raise
    return batch
