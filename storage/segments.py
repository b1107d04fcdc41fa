"""Segments of the run log: how entries are written down, and where the chain of segments ends.

A segment is NDJSON: one line that describes it, then a line for each entry. Ids are contiguous: a segment's key is
its first id, the next segment's is its last id plus one, so two writers that believe in the same end meet at one key
and the bucket lets only one of them in. The description carries the guest offsets reached, so the last segment tells
everything that a writer must know to go on.

A writer may tell readers of entries before they are stored, under ids that the description of its last segment
reserves. Whoever goes on behind it and cannot know what was told leaves these ids to entries that say nothing, so no
id ever means two things.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from math import inf
from typing import Literal, NamedTuple

from pydantic import BaseModel

from foundation.errors import Conflict
from storage.bucket import ObjectStore
from storage.layout import Place, Span, merged_span

Stream = Literal["stdout", "stderr", "event", "told"]
GuestStream = Literal["stdout", "stderr"]
GUEST_STREAMS: tuple[GuestStream, ...] = ("stdout", "stderr")
NDJSON = "application/x-ndjson"
#: How many ids a writer reserves that tells readers of its entries before they are stored.
RESERVED_IDS = 500
_UNUSED = '{"type": "unused"}'
_DESCRIPTION = b'{"segment":'
_ENTRY_ID = re.compile(rb'\{"id":(\d+),')


class LogEntry(BaseModel):
    """One line of the agent's output, one event of the run, or one entry that a client tells.

    ``id`` counts from 1 without gaps over all streams. ``data`` is a line with its newline (UTF-8; other bytes became
    U+FFFD), or an event as JSON; an entry of a client is a line of JSON. ``offset`` is the raw byte offset in the
    guest's file after this entry, or the number that a client has given its entry; null for events and for entries
    without a number.
    """

    id: int
    ts: datetime
    stream: Stream
    data: str
    offset: int | None = None

    @property
    def unused(self) -> bool:
        """Whether it only stands for an id that may have been told for something that was lost. Readers get none."""
        return self.stream == "event" and self.data == _UNUSED


class Segment(BaseModel):
    """Describes a segment. ``offsets`` are those of the whole log up to here; ``closed``: nothing follows, ever.

    Ids behind it, up to ``reserved``, may be known to readers already, from its writer. ``sequence`` is the last number
    of a numbered entry of clients in the whole log up to here.
    """

    writer: str
    first: int
    last: int
    offsets: dict[GuestStream, int]
    closed: bool = False
    reserved: int = 0
    sequence: int = 0


class SealedPart(BaseModel):
    """One object of a closed log, with the entries ``first`` to ``last``."""

    key: str
    first: int
    last: int


class Seal(BaseModel):
    """The end of a log: its parts in order, which hold all entries up to ``last``."""

    parts: list[SealedPart]
    last: int
    offsets: dict[GuestStream, int]
    sealed_at: datetime
    sequence: int = 0


class Draft(NamedTuple):
    """An entry that has no id yet."""

    ts: datetime
    stream: Stream
    data: str
    offset: int | None


#: What is to be appended, seen from the end of the log as it is then; it may raise, and may be nothing.
Drafts = Callable[["ChainEnd"], Sequence[Draft]]


class ChainEnd(NamedTuple):
    """Where the log ends: its last id (0: empty), the guest offsets stored, and whether it takes no more.

    ``writer`` has put the last segment, and may have told ids up to ``reserved``. ``sequence`` is as in ``Segment``.
    """

    last: int
    offsets: dict[GuestStream, int]
    closed: bool
    writer: str = ""
    reserved: int = 0
    sequence: int = 0

    @classmethod
    def empty(cls, *, closed: bool = False) -> ChainEnd:
        """The end of a log without entries."""
        return cls(0, dict.fromkeys(GUEST_STREAMS, 0), closed)


def event_draft(payload: Mapping[str, object]) -> Draft:
    """An event of now."""
    text = json.dumps(payload, ensure_ascii=False, default=str)
    # File names that are no UTF-8 reach here as lone surrogates, which no JSON reader takes.
    return Draft(datetime.now(UTC), "event", text.encode(errors="replace").decode(), None)


def told_draft(line: str, number: int | None = None) -> Draft:
    """An entry of a client, of now: a line of JSON, and the number that the client has given it."""
    return Draft(datetime.now(UTC), "told", line, number)


def unused_drafts(end: ChainEnd) -> list[Draft]:
    """What goes first behind an end by somebody who does not know what its writer has told."""
    return [Draft(datetime.now(UTC), "event", _UNUSED, None)] * max(0, end.reserved - end.last)


def entry_line(number: int, draft: Draft) -> bytes:
    """A draft as the entry of that id, as segments have it, without a newline."""
    entry = LogEntry(id=number, ts=draft.ts, stream=draft.stream, data=draft.data, offset=draft.offset)
    return entry.model_dump_json().encode()


def encode_segment(
    writer: str, after: ChainEnd, drafts: Sequence[Draft], *, closed: bool = False, reserve: int = 0
) -> tuple[Segment, bytes]:
    """The segment that holds ``drafts`` as the next entries after the end ``after``, and reserves ids behind them."""
    offsets = dict(after.offsets)
    sequence = after.sequence
    lines = []
    for number, draft in enumerate(drafts, after.last + 1):
        if draft.offset is None:
            pass
        elif draft.stream == "told":
            sequence = draft.offset
        elif draft.stream != "event":
            offsets[draft.stream] = draft.offset
        lines.append(entry_line(number, draft))
    last = after.last + len(drafts)
    segment = Segment(
        writer=writer,
        first=after.last + 1,
        last=last,
        offsets=offsets,
        closed=closed,
        reserved=last + reserve if reserve else 0,
        sequence=sequence,
    )
    head = f'{{"segment":{segment.model_dump_json()}}}'.encode()
    return segment, b"\n".join([head, *lines, b""])


def entry_lines(body: bytes) -> list[bytes]:
    """The entries of one segment's body as ``entry_line`` writes them, from its first id on."""
    return body.split(b"\n")[1:-1]


def decode_blocks(body: bytes) -> Iterator[tuple[Segment, list[bytes]]]:
    """The segments in ``body`` (a segment, or many of them joined), each with its entries as undecoded lines."""
    segment: Segment | None = None
    lines: list[bytes] = []
    for line in body.split(b"\n"):
        if line.startswith(_DESCRIPTION):
            if segment:
                yield segment, lines
            segment, lines = Segment.model_validate(json.loads(line)["segment"]), []
        elif line:
            lines.append(line)
    if segment:
        yield segment, lines


def decode_entries(body: bytes, after_id: int) -> Iterator[LogEntry]:
    """The entries in ``body`` (segments or a sealed part) that come after ``after_id``, line by line."""
    begin = 0
    while begin < len(body):
        end = body.find(b"\n", begin)
        end = len(body) if end < 0 else end
        # An entry that was given out before is known by its first bytes.
        known = _ENTRY_ID.match(body, begin, end)
        if begin < end and not (known and int(known[1]) <= after_id) and not body.startswith(_DESCRIPTION, begin):
            entry = LogEntry.model_validate_json(body[begin:end])
            if entry.id > after_id:
                yield entry
        begin = end + 1


def decode_last(body: bytes, before_id: int | None, count: int | None) -> list[LogEntry]:
    """The last ``count`` entries in ``body`` (None: all), of those that come before ``before_id``.

    Between them are those that only stand for an id, which do not count.
    """
    entries: list[LogEntry] = []
    left = inf if count is None else count
    for line in reversed(body.split(b"\n")):
        if left <= 0:
            break
        if line and not line.startswith(_DESCRIPTION):
            entry = LogEntry.model_validate_json(line)
            if before_id is None or entry.id < before_id:
                entries.append(entry)
                left -= not entry.unused
    return entries[::-1]


def describe(body: bytes) -> Segment:
    """The description of the last segment in ``body``."""
    last = body.rfind(b"\n" + _DESCRIPTION) + 1
    return Segment.model_validate(json.loads(body[last : body.index(b"\n", last)])["segment"])


def merged_spans(store: ObjectStore, place: Place) -> list[Span]:
    """The merged copies of a live log, by last id. They may overlap; where they do, they say the same."""
    return [merged_span(found.key) for found in store.list(place.merged_prefix)]


def chain_end(store: ObjectStore, place: Place) -> ChainEnd:
    """Where the log ends now, read from the bucket."""
    merged = merged_spans(store, place)
    start_after = place.segment_key(merged[-1].first - 1) if merged else None
    keys = [found.key for found in store.list(place.segments_prefix, start_after=start_after)]
    sealed = bool(keys) and keys[-1] == place.seal_key
    segments = keys[:-1] if sealed else keys
    body = store.get(segments[-1]) if segments else None
    if body is None:
        return ChainEnd.empty(closed=sealed)
    end = end_behind(describe(body))
    return end._replace(closed=end.closed or sealed)


def end_behind(segment: Segment) -> ChainEnd:
    """The end of a log whose last segment it is."""
    return ChainEnd(segment.last, segment.offsets, segment.closed, segment.writer, segment.reserved, segment.sequence)


def find_seal(store: ObjectStore, place: Place) -> Seal | None:
    """The seal of a closed log; None while it is open (or being closed)."""
    body = store.get(place.seal_key)
    return Seal.model_validate_json(body) if body else None


def segment_after(store: ObjectStore, place: Place, end: ChainEnd) -> tuple[Segment, bytes]:
    """The segment that another writer put behind ``end``. Raises Conflict when the log is closed."""
    body = store.get(place.segment_key(end.last + 1))
    segment = describe(body) if body else None
    if body is None or segment is None or segment.closed:
        raise log_closed(place)
    return segment, body


def log_closed(place: Place) -> Conflict:
    """The error of writing to a log that is closed."""
    return Conflict(f"The log of {place} is closed; the run has ended and takes no more entries", reason="closed")
