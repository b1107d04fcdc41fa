"""Reads the run log, live or closed: every entry once, in the order of ids, with few requests.

A live log is read from its segments, and as far as it goes from their merged copies; nothing of a live log is ever
deleted. Closing it writes sealed parts, then the seal, and only then deletes the rest: a reader that misses a segment
finds the seal. What the bucket's own rule has deleted of an old log was its beginning.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import dropwhile, islice

from foundation.errors import TaskyardError
from storage.bucket import ObjectStore
from storage.layout import Place, Span, segment_first_id
from storage.segments import LogEntry, Seal, decode_entries, decode_last, describe, find_seal, merged_spans

# With more new segments than this, looking for merged copies of them pays.
_BACKLOG = 32
_TAIL_TRIES = 5


def read_entries(store: ObjectStore, place: Place, after_id: int = 0) -> Iterator[LogEntry]:
    """All entries with an id above ``after_id`` that the bucket holds now; none when the run has no log."""
    return (entry for entry in LogReader(store, place, after_id, aged=True).read() if not entry.unused)


def tail(store: ObjectStore, place: Place, count: int) -> list[LogEntry]:
    """The last ``count`` entries (fewer when there are not so many), oldest first."""
    for _ in range(_TAIL_TRIES):
        entries = _backwards(store, place, lambda found: len(_used(found)) >= count, count)
        if entries is not None:
            return _used(entries)
    raise damaged(place, 0)


def entries_since(store: ObjectStore, place: Place, at: datetime) -> list[LogEntry]:
    """The entries from the first one at or after ``at`` on, oldest first; of the log before them little is read."""
    for _ in range(_TAIL_TRIES):
        entries = _backwards(store, place, lambda found: found[0].ts < at, None)
        if entries is not None:
            return _used(list(dropwhile(lambda entry: entry.ts < at, entries)))
    raise damaged(place, 0)


class LogReader:
    """Reads on from where it stopped, also when a caller left ``read`` half-way or the bucket was away.

    ``position`` is the last id given out; ``closed`` when no entry can follow. Entries that only stand for ids are
    given too: whoever reads for people leaves them out. The log may be ``aged``: what is missing before the first entry
    is passed over then, and is damage otherwise.
    """

    def __init__(self, store: ObjectStore, place: Place, after_id: int = 0, *, aged: bool = False) -> None:
        self.position = after_id
        self.closed = False
        self._store = store
        self._place = place
        # Whether what is missing here is passed over: until something was given out.
        self._passes = aged
        # Whether ``position`` is the last id of a segment, so that the next segment's key is known.
        self._aligned = after_id == 0

    def read(self) -> Iterator[LogEntry]:
        """The entries behind ``position`` that the bucket holds now. Raises BucketUnavailable; read again to go on."""
        if self.closed:
            return
        seal, due = self._look()
        # Where the next segment begins: behind the position, unless that is within a segment.
        expected = self.position + 1
        while due and seal is None:
            key = due.popleft()
            if key.first > expected:
                # A listing that runs beside a writer can show a segment and not the one before it.
                due.appendleft(key)
                key = Span(self._place.segment_key(expected), expected, 0)
            body = self._store.get(key.key)
            if body is None:
                seal = find_seal(self._store, self._place)
                if seal is None and not self._passes:
                    raise damaged(self._place, self.position)
                if seal is None and due:
                    expected = due[0].first
                    self.position = expected - 1
                continue
            last = describe(body)
            expected = last.last + 1
            self._aligned = False
            yield from self._take(body)
            self._aligned = self.position == last.last
            if last.closed:
                self.closed = True
                return
        if seal is not None:
            yield from self._read_sealed(seal)

    def _look(self) -> tuple[Seal | None, deque[Span]]:
        """What is to be read: a closed log by its seal, an open one by these objects."""
        if self._aligned:
            prefix = self._place.segments_prefix
            listing = self._store.list(prefix, start_after=self._place.segment_key(self.position))
            keys = [found.key for found in islice(listing, _BACKLOG + 1)]
            if not keys:
                return None, deque()
            if len(keys) <= _BACKLOG and keys[-1] != self._place.seal_key:
                return None, deque(Span(key, segment_first_id(key), 0) for key in keys)
        seal = find_seal(self._store, self._place)
        return (seal, deque()) if seal else (None, deque(cover(self._store, self._place, self.position)))

    def _read_sealed(self, seal: Seal) -> Iterator[LogEntry]:
        for part in seal.parts:
            if part.last > self.position:
                body = self._store.get(part.key)
                if body is None and not self._passes:
                    raise damaged(self._place, self.position)
                if body is None:
                    self.position = part.last
                else:
                    yield from self._take(body)
        self.closed = True

    def _take(self, body: bytes) -> Iterator[LogEntry]:
        for entry in decode_entries(body, self.position):
            if entry.id != self.position + 1:
                raise damaged(self._place, self.position)
            self.position = entry.id
            self._passes = False
            yield entry


def cover(store: ObjectStore, place: Place, after_id: int) -> list[Span]:
    """The fewest objects of an open log that hold everything behind ``after_id``, in order."""
    merged = merged_spans(store, place)
    chosen: list[Span] = []
    position = after_id
    while True:
        usable = [span for span in merged if span.first <= position + 1 and span.last > position]
        if not usable:
            break
        chosen.append(max(usable, key=lambda span: span.last))
        position = chosen[-1].last
    # Merged copies end where a segment ends, so segments can be listed from there.
    start = position if chosen else max((span.last for span in merged if span.last <= after_id), default=0)
    listing = store.list(place.segments_prefix, start_after=place.segment_key(start))
    keys = [found.key for found in listing if found.key != place.seal_key]
    segments = [Span(key, segment_first_id(key), 0) for key in keys]
    while len(segments) > 1 and segments[1].first <= position + 1:
        del segments[0]
    return chosen + segments


def _backwards(
    store: ObjectStore, place: Place, enough: Callable[[list[LogEntry]], bool], count: int | None
) -> list[LogEntry] | None:
    """Whole objects from the log's end back until they are enough, of each object ``count`` entries at most.

    None when the log changed its shape while it was read.
    """
    seal = find_seal(store, place)
    keys = [part.key for part in seal.parts] if seal else [span.key for span in cover(store, place, 0)]
    found: list[LogEntry] = []
    for key in reversed(keys):
        if found and enough(found):
            break
        body = store.get(key)
        if body is None and seal:
            # What was before it is gone too.
            break
        if body is None:
            return None
        left = None if count is None else count - len(_used(found))
        entries = decode_last(body, found[0].id if found else None, left)
        if entries and found and entries[-1].id != found[0].id - 1:
            return None
        found = entries + found
    return found


def _used(entries: list[LogEntry]) -> list[LogEntry]:
    return [entry for entry in entries if not entry.unused]


def damaged(place: Place, position: int) -> TaskyardError:
    """The error of a log whose objects were deleted or changed by somebody else."""
    return TaskyardError(
        f"The log of {place} is damaged: what follows entry {position} is missing in the bucket; "
        "restore the objects below its log/ prefix, or read the artifacts instead"
    )
