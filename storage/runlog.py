"""Writes the run log: guest bytes in, immutable segments out, each byte once whatever was killed or runs twice.

What counts is only what the bucket holds. A writer learns from the last segment where to go on, holds what it was fed
until a segment with it is stored, and puts each segment under a key that can be taken once. A writer that finds its
key taken was overtaken: it reads what the other stored, drops that from what it holds, and goes on behind it.

A writer with a journal tells those who listen of each entry at once, under ids that its last segment has reserved. The
journal has it before they do, so that whoever follows this writer on its host stores the same under the same id.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from foundation.errors import Conflict
from storage.bucket import ObjectStore
from storage.layout import Place
from storage.lines import GuestFile
from storage.live.journal import Journal
from storage.reader import entries_since, read_entries, tail
from storage.redaction import Redactor
from storage.sealing import append_event, seal
from storage.segments import (
    GUEST_STREAMS,
    NDJSON,
    RESERVED_IDS,
    ChainEnd,
    Draft,
    Drafts,
    GuestStream,
    LogEntry,
    Segment,
    chain_end,
    encode_segment,
    end_behind,
    entry_line,
    entry_lines,
    event_draft,
    log_closed,
    segment_after,
    unused_drafts,
)

FLUSH_SECONDS = 0.15
FLUSH_BYTES = 256 * 1024
# While the bucket is away, a writer holds this much and then takes no more.
_HELD_BYTES_MAX = 4 * 1024 * 1024
# Neighbouring segments are copied into one object from time to time, so that a reader who comes late needs few
# requests.
_MERGE_SEGMENTS = 256
_MERGE_BYTES = 4 * 1024 * 1024


class RunLogWriter:
    """Appends to the log of one run. Thread-safe.

    Call ``resume`` first and feed each guest file from the offset it returns; call ``flush`` a few times a second,
    since a writer has no clock of its own. All methods may raise BucketUnavailable, after which nothing is lost and
    the call can be repeated, Conflict when the log is closed, and Superseded when another writer of this host has
    begun, after which this one is of no use.

    ``journal`` has what writers of this host told before; ``tell`` gets the entries from an id on, as lines. With
    ``live`` it gets them before they are stored, else when they are. ``aside`` carries out a call in another thread, so
    that what comes is told while a segment is on its way to the bucket; what the bucket says is raised by a later call.
    """

    def __init__(
        self,
        bucket: ObjectStore,
        place: Place,
        redactor: Redactor,
        *,
        journal: Journal | None = None,
        tell: Callable[[int, Sequence[bytes]], None] = lambda _first, _lines: None,
        live: bool = False,
        aside: Callable[[Callable[[], None]], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._place = place
        self._redactor = redactor
        self._journal = journal
        self._tell = tell
        self._live = live and journal is not None
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._aside = aside
        self._lock = threading.RLock()
        # Whether a segment is being stored aside, and what went wrong with the last one.
        self._storing = False
        self._stored = threading.Condition(self._lock)
        self._failure: Exception | None = None
        self._end: ChainEnd | None = None
        self._files: dict[GuestStream, GuestFile] = {}
        self._pending: list[Draft] = []
        self._pending_bytes = 0
        # The segment that is being put: repeated unchanged until it is known whether it was stored.
        self._sent: tuple[Segment, bytes] | None = None
        self._flushed_at: float | None = None
        self._unmerged: list[bytes] = []
        self._unmerged_first = 1
        self._finished = False
        # The last id that was told, and the last that may be before it is stored.
        self._told = 0
        self._reserved = 0
        self._recovered: list[Draft] = []

    def resume(self) -> dict[GuestStream, int]:
        """The byte offset in each guest file from which to feed, as the bucket has it. Forgets what was not stored.

        What a writer of this host has told is not forgotten: it is stored now, as it was told.
        """
        with self._lock:
            self._await_stored()
            self._failure = None
            self._pending.clear()
            self._pending_bytes = 0
            self._sent = None
            self._end = end = self._recover()
            self._files = {stream: GuestFile(self._redactor, end.offsets.get(stream, 0)) for stream in GUEST_STREAMS}
            self._start_merge()
            return {stream: file.stored for stream, file in self._files.items()}

    def _recover(self) -> ChainEnd:
        """The end of the log, behind all that was told."""
        while True:
            end = chain_end(self._bucket, self._place)
            if end.closed:
                raise log_closed(self._place)
            # A put of before whose answer was lost may still arrive: it must not pass for one of the entries to come.
            self._token = secrets.token_hex(8)
            told = self._journal.begin(self._token, end) if self._journal else None
            if told is None:
                first = unused_drafts(end)
            else:
                first = [Draft(entry.ts, entry.stream, entry.data, entry.offset) for entry in told]
                self._recovered = first
            if first:
                segment, body = encode_segment(self._token, end, first, reserve=self._reserve)
                if not self._bucket.put(
                    self._place.segment_key(segment.first), body, if_absent=True, content_type=NDJSON
                ):
                    continue
                end = end_behind(segment)
                self._tell(segment.first, entry_lines(body))
            # Where the journal has all that was told, the ids that were reserved still are.
            self._reserved = end.reserved if self._live and (first or told is not None) else 0
            self._told = end.last
            return end

    @property
    def stored(self) -> dict[GuestStream, int]:
        """The byte offset in each guest file up to which the bucket holds it."""
        with self._lock:
            return {stream: file.stored for stream, file in self._files.items()}

    def feed(self, stream: GuestStream, data: bytes, offset: int) -> None:
        """Take bytes that stand at ``offset`` of a guest file. Bytes fed before are dropped; a gap raises Conflict."""
        with self._lock:
            self._ready()
            if self._finished:
                raise Conflict(f"The log writer of {self._place} is closed; start another and resume", reason="closed")
            if self._pending_bytes >= _HELD_BYTES_MAX:
                self._store()
            file = self._files[stream]
            if offset > file.fed:
                raise Conflict(
                    f"The log of {self._place} has {stream} up to byte {file.fed}, and was fed byte {offset}; "
                    f"read the file again from byte {file.fed}",
                    reason="gap",
                    expected=file.fed,
                )
            self._add(file.feed(stream, data[file.fed - offset :]))
            self._store_if_due()

    def event(self, payload: Mapping[str, Any]) -> None:
        """Append an event; ``payload`` is JSON-ready, and redacted here."""
        with self._lock:
            self._ready()
            self._add([event_draft(self._redactor.redact_json(payload))])
            self._store_if_due()

    def append(self, drafts: Drafts) -> None:
        """Store what was made elsewhere, and what ``drafts`` makes for the end of the log behind all that is held.

        Of it, no event that is held already or was told by the writer before. Raises what ``drafts`` raises.
        """
        with self._lock:
            self._ready()
            known = {each.data for each in (*self._recovered, *self._pending) if each.stream == "event"}
            new = drafts(self._held_end())
            self._add([draft for draft in new if draft.stream != "event" or draft.data not in known])
            self._store()

    def flush(self, *, force: bool = False) -> None:
        """Store what is held and complete, if it is time to or ``force`` is set. Unfinished lines stay held."""
        with self._lock:
            self._ready()
            if force:
                self._store()
            else:
                self._store_if_due()

    def close(self) -> None:
        """Store everything, unfinished lines too. Only when the guest files are complete; the log itself stays open.

        To hand over to another writer, ``flush(force=True)`` and forget this one: it reads unfinished lines again.
        """
        with self._lock:
            self._ready()
            if not self._finished:
                self._finished = True
                for stream, file in self._files.items():
                    self._add(file.finish(stream))
            self._store()

    def settle(self) -> None:
        """Wait until nothing is on its way to the bucket any more. What was not stored is not."""
        with self._lock:
            self._await_stored()

    def _ready(self) -> None:
        if self._end is None:
            self.resume()

    def _held_end(self) -> ChainEnd:
        """The end of the log, with the last number of what is held."""
        end = self._end or ChainEnd.empty()
        numbers = [each.offset for each in self._pending if each.stream == "told" and each.offset is not None]
        return end._replace(sequence=numbers[-1]) if numbers else end

    def _add(self, drafts: list[Draft]) -> None:
        self._pending += drafts
        self._pending_bytes += sum(len(draft.data) for draft in drafts)
        self._tell_held()

    def _tell_held(self) -> None:
        """Tell what is held, as far as ids are reserved for it and the journal has room."""
        if self._journal is None or self._end is None:
            return
        begin, last = self._end.last + 1, min(self._end.last + len(self._pending), self._reserved)
        if self._told < last:
            drafts = enumerate(self._pending[self._told + 1 - begin : last + 1 - begin], self._told + 1)
            lines = [entry_line(number, draft) for number, draft in drafts]
            if self._journal.append(self._token, lines):
                self._tell(self._told + 1, lines)
                self._told = last

    def _store_if_due(self) -> None:
        self._raise_failure()
        first = self._flushed_at is None
        if self._pending and (
            first or self._pending_bytes >= FLUSH_BYTES or self._clock() - (self._flushed_at or 0) >= FLUSH_SECONDS
        ):
            if first or self._aside is None:
                self._store()
            elif not self._storing:
                self._storing = True
                try:
                    self._aside(self._store_one)
                except RuntimeError:
                    # Nobody carries out anything any more: the process is about to end.
                    self._storing = False
                    self._store()

    def _store(self) -> None:
        self._await_stored()
        self._raise_failure()
        while (prepared := self._prepared()) is not None:
            self._go_on_behind(*self._put(*prepared))
        self._flushed_at = self._clock()
        self._merge_if_due()

    def _store_one(self) -> None:
        """Store what is held now, in a thread of its own: what comes meanwhile goes into a later segment."""
        try:
            own = False
            while not own:
                with self._lock:
                    prepared = self._prepared()
                if prepared is None:
                    break
                segment, body = self._put(*prepared)
                with self._lock:
                    own = segment.writer == self._token
                    self._go_on_behind(segment, body)
            self._flushed_at = self._clock()
            # Nobody else stores meanwhile.
            self._merge_if_due()
        except Exception as error:  # noqa: BLE001 -- raised by the next call
            self._failure = error
        finally:
            with self._lock:
                self._storing = False
                self._stored.notify_all()

    def _await_stored(self) -> None:
        """Wait for the segment that is on its way, with the lock let go. The bucket's own limits bound it."""
        while self._storing:
            # With a limit, so that an exception raised in this thread is not held up.
            self._stored.wait(1.0)

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _prepared(self) -> tuple[ChainEnd, Segment, bytes] | None:
        """The segment that comes next, behind the end of the log; None when nothing is held."""
        if not self._pending or self._end is None:
            return None
        if self._journal is not None:
            self._journal.check(self._token)
        if self._sent is None:
            self._sent = encode_segment(self._token, self._end, self._pending, reserve=self._reserve)
        return self._end, *self._sent

    def _put(self, end: ChainEnd, segment: Segment, body: bytes) -> tuple[Segment, bytes]:
        """Store a segment; gives it, or the one that another writer has put in its place."""
        key = self._place.segment_key(segment.first)
        if self._bucket.put(key, body, if_absent=True, content_type=NDJSON):
            return segment, body
        return segment_after(self._bucket, self._place, end)

    def _go_on_behind(self, segment: Segment, body: bytes) -> None:
        """Take a stored segment, of this writer or of another, as the new end of the log."""
        own = segment.writer == self._token
        lines = entry_lines(body)
        if own:
            # Pending entries only grow at their end, so those of the segment are the first ones.
            del self._pending[: len(lines)]
            for stream, file in self._files.items():
                file.keep_from(segment.offsets.get(stream, 0))
        else:
            self._drop_stored(segment, lines)
        self._pending_bytes = sum(len(draft.data) for draft in self._pending)
        self._sent = None
        self._end = end_behind(segment)
        self._unmerged.append(body)
        self._tell_stored(segment, lines, own=own)
        if not own:
            self._pending[:0] = unused_drafts(self._end)

    def _drop_stored(self, segment: Segment, lines: list[bytes]) -> None:
        """Hold no longer what another writer has stored."""
        # It may have found in the journal what this one has told.
        for number, line in enumerate(lines, segment.first):
            if not self._pending or entry_line(number, self._pending[0]) != line:
                break
            del self._pending[0]
        self._pending = [each for each in self._pending if not _is_numbered_before(each, segment.sequence)]
        for stream, file in self._files.items():
            stored = segment.offsets.get(stream, 0)
            if stored > file.stored:
                self._pending = [draft for draft in self._pending if draft.stream != stream]
                self._pending += file.restart(stream, stored, finish=self._finished)

    def _tell_stored(self, segment: Segment, lines: list[bytes], *, own: bool) -> None:
        """Tell what was not told before it was stored, and reserve ids for what comes."""
        if self._told < segment.last:
            unknown = max(segment.first, self._told + 1)
            self._tell(unknown, lines[unknown - segment.first :])
            self._told = segment.last
        if not own:
            # Somebody writes who does not know this one: from now on it tells what the bucket has.
            self._live = False
        self._reserved = segment.reserved if self._live else 0
        if own and self._journal is not None:
            kept = self._pending[: self._told - segment.last]
            self._journal.cut(
                self._token, [entry_line(number, each) for number, each in enumerate(kept, segment.last + 1)]
            )

    @property
    def _reserve(self) -> int:
        return RESERVED_IDS if self._live else 0

    def _start_merge(self) -> None:
        self._unmerged.clear()
        self._unmerged_first = self._end.last + 1 if self._end else 1

    def _merge_if_due(self) -> None:
        many = len(self._unmerged) >= _MERGE_SEGMENTS or sum(map(len, self._unmerged)) >= _MERGE_BYTES
        if self._end is not None and many and len(self._unmerged) > 1:
            key = self._place.merged_key(self._unmerged_first, self._end.last)
            self._bucket.put(key, b"".join(self._unmerged), content_type=NDJSON)
            self._start_merge()


def _is_numbered_before(draft: Draft, sequence: int) -> bool:
    return draft.stream == "told" and draft.offset is not None and draft.offset <= sequence


__all__ = ["LogEntry", "RunLogWriter", "append_event", "entries_since", "read_entries", "seal", "tail"]
