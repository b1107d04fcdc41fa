"""Writes the run log: guest bytes in, immutable segments out, each byte once whatever was killed or runs twice.

What counts is only what the bucket holds. A writer learns from the last segment where to go on, holds what it was fed
until a segment with it is stored, and puts each segment under a key that can be taken once. A writer that finds its
key taken was overtaken: it reads what the other stored, drops that from what it holds, and goes on behind it.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from foundation.errors import Conflict
from storage.bucket import ObjectStore
from storage.layout import Place
from storage.lines import Line, LineAssembler
from storage.reader import entries_since, read_entries, tail
from storage.redaction import Redactor
from storage.sealing import append_event, seal
from storage.segments import (
    GUEST_STREAMS,
    NDJSON,
    ChainEnd,
    Draft,
    GuestStream,
    LogEntry,
    Segment,
    chain_end,
    encode_segment,
    event_draft,
    log_closed,
    segment_after,
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
    the call can be repeated, and Conflict when the log is closed.
    """

    def __init__(
        self,
        bucket: ObjectStore,
        place: Place,
        redactor: Redactor,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._place = place
        self._redactor = redactor
        self._clock = clock
        self._token = secrets.token_hex(8)
        self._lock = threading.RLock()
        self._end: ChainEnd | None = None
        self._files: dict[GuestStream, _GuestFile] = {}
        self._pending: list[Draft] = []
        self._pending_bytes = 0
        # The segment that is being put: repeated unchanged until it is known whether it was stored.
        self._sent: tuple[Segment, bytes] | None = None
        self._flushed_at: float | None = None
        self._unmerged: list[bytes] = []
        self._unmerged_first = 1
        self._finished = False

    def resume(self) -> dict[GuestStream, int]:
        """The byte offset in each guest file from which to feed, as the bucket has it. Forgets what was not stored."""
        with self._lock:
            end = chain_end(self._bucket, self._place)
            if end.closed:
                raise log_closed(self._place)
            self._end = end
            # A put of before whose answer was lost may still arrive: it must not pass for one of the entries to come.
            self._token = secrets.token_hex(8)
            self._files = {stream: _GuestFile(self._redactor, end.offsets.get(stream, 0)) for stream in GUEST_STREAMS}
            self._pending.clear()
            self._pending_bytes = 0
            self._sent = None
            self._start_merge()
            return {stream: file.stored for stream, file in self._files.items()}

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

    def _ready(self) -> None:
        if self._end is None:
            self.resume()

    def _add(self, drafts: list[Draft]) -> None:
        self._pending += drafts
        self._pending_bytes += sum(len(draft.data) for draft in drafts)

    def _store_if_due(self) -> None:
        first = self._flushed_at is None
        if self._pending and (
            first or self._pending_bytes >= FLUSH_BYTES or self._clock() - (self._flushed_at or 0) >= FLUSH_SECONDS
        ):
            self._store()

    def _store(self) -> None:
        while self._pending:
            if self._end is None:
                return
            if self._sent is None:
                self._sent = encode_segment(self._token, self._end, self._pending)
            segment, body = self._sent
            key = self._place.segment_key(segment.first)
            if not self._bucket.put(key, body, if_absent=True, content_type=NDJSON):
                segment, body = segment_after(self._bucket, self._place, self._end)
            self._go_on_behind(segment, body)
        self._flushed_at = self._clock()
        self._merge_if_due()

    def _go_on_behind(self, segment: Segment, body: bytes) -> None:
        """Take a stored segment, of this writer or of another, as the new end of the log."""
        if segment.writer == self._token:
            # Pending entries only grow at their end, so those of the segment are the first ones.
            del self._pending[: segment.last - segment.first + 1]
            for stream, file in self._files.items():
                file.keep_from(segment.offsets.get(stream, 0))
        else:
            for stream, file in self._files.items():
                stored = segment.offsets.get(stream, 0)
                if stored > file.stored:
                    self._pending = [draft for draft in self._pending if draft.stream != stream]
                    self._add(file.restart(stream, stored, finish=self._finished))
        self._pending_bytes = sum(len(draft.data) for draft in self._pending)
        self._sent = None
        self._end = ChainEnd(segment.last, segment.offsets, closed=False)
        self._unmerged.append(body)

    def _start_merge(self) -> None:
        self._unmerged.clear()
        self._unmerged_first = self._end.last + 1 if self._end else 1

    def _merge_if_due(self) -> None:
        many = len(self._unmerged) >= _MERGE_SEGMENTS or sum(map(len, self._unmerged)) >= _MERGE_BYTES
        if self._end is not None and many and len(self._unmerged) > 1:
            key = self._place.merged_key(self._unmerged_first, self._end.last)
            self._bucket.put(key, b"".join(self._unmerged), content_type=NDJSON)
            self._start_merge()


class _GuestFile:
    """One guest file as a writer sees it: stored up to ``stored``, fed up to ``fed``, the raw bytes between held."""

    def __init__(self, redactor: Redactor, offset: int) -> None:
        self._redactor = redactor
        self.stored = offset
        self._held = bytearray()
        self._lines = LineAssembler(redactor, offset)

    @property
    def fed(self) -> int:
        return self.stored + len(self._held)

    def feed(self, stream: GuestStream, data: bytes) -> list[Draft]:
        self._held += data
        return self._drafts(stream, self._lines.feed(data))

    def finish(self, stream: GuestStream) -> list[Draft]:
        return self._drafts(stream, self._lines.finish())

    def keep_from(self, stored: int) -> None:
        del self._held[: stored - self.stored]
        self.stored = stored

    def restart(self, stream: GuestStream, stored: int, *, finish: bool) -> list[Draft]:
        """Begin again behind what another writer stored, with the bytes held from there on."""
        rest = bytes(self._held[stored - self.stored :])
        self.stored = stored
        self._held = bytearray()
        self._lines = LineAssembler(self._redactor, stored)
        drafts = self.feed(stream, rest)
        return drafts + self.finish(stream) if finish else drafts

    def _drafts(self, stream: GuestStream, lines: list[Line]) -> list[Draft]:
        now = datetime.now(UTC)
        return [Draft(now, stream, line.data.decode(errors="replace"), line.end) for line in lines]


__all__ = ["LogEntry", "RunLogWriter", "append_event", "entries_since", "read_entries", "seal", "tail"]
