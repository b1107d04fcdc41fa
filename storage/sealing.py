"""Events that come from elsewhere than the agent's output, and the end of the run log."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import count
from typing import Any

from foundation.errors import Conflict
from storage.bucket import ObjectStore
from storage.layout import Place
from storage.live.attached import attached
from storage.reader import cover, damaged, read_entries
from storage.redaction import Redactor
from storage.segments import (
    NDJSON,
    ChainEnd,
    Draft,
    Drafts,
    Seal,
    SealedPart,
    Segment,
    chain_end,
    decode_blocks,
    describe,
    encode_segment,
    end_behind,
    event_draft,
    find_seal,
    log_closed,
    merged_spans,
    segment_after,
    unused_drafts,
)

_PART_BYTES = 8 * 1024 * 1024
_STEPS_BEHIND = 32


def append_event(
    bucket: ObjectStore, place: Place, payload: Mapping[str, Any], redactor: Redactor | None = None
) -> None:
    """Store one event from any process: through the open writer of this one, if there is one, or else beside others.

    Raises Conflict when the log is closed, BucketUnavailable.
    """
    draft = event_draft(redactor.redact_json(payload) if redactor else payload)
    logs = attached(bucket)
    if logs is not None:
        logs.append(place, lambda _: [draft])
    else:
        append_behind(bucket, place, None, lambda _: [draft])


def append_behind(
    bucket: ObjectStore, place: Place, end: ChainEnd | None, drafts: Drafts
) -> tuple[ChainEnd, Sequence[Draft]]:
    """Store in one segment what ``drafts`` gives for the end of the log, whoever writes beside.

    ``end`` is one that was known before; from it on the log is followed. ``drafts`` is asked again whenever somebody
    else was quicker, and may give nothing. Gives the end now, and what was stored: the last entries up to it. Raises
    Conflict when the log is closed, BucketUnavailable.
    """
    if end is None or end.closed:
        end = _open_end(bucket, place)
    end, segment, stored = _append(bucket, place, end, drafts)
    if segment and find_seal(bucket, place) and not _sealed_with(bucket, place, segment.last, stored[-1]):
        # The log was sealed, and its segments deleted, between the look and the put: this one came too late.
        bucket.delete([place.segment_key(segment.first)])
        raise log_closed(place)
    return end, stored


def seal(bucket: ObjectStore, place: Place) -> None:
    """Close the log and merge it into few objects. Idempotent, and safe to repeat after a crash at any point.

    Readers see every entry once throughout: the parts are complete before the seal names them, and nothing is deleted
    before the seal is there.
    """
    found = find_seal(bucket, place)
    if found is None:
        end = _close_chain(bucket, place)
        parts = _put_parts(bucket, place)
        if parts is not None:
            made = Seal(
                parts=parts, last=end.last, offsets=end.offsets, sealed_at=datetime.now(UTC), sequence=end.sequence
            )
            data = made.model_dump_json().encode()
            bucket.put(place.seal_key, data, if_absent=True, content_type="application/json")
        # Of two that seal at once, the one whose seal was first has named the parts.
        found = find_seal(bucket, place)
    if found is None:
        raise damaged(place, 0)
    # The closing segment stays: a writer that slept through the end still meets it.
    kept = {place.seal_key, place.segment_key(found.last + 1), *(part.key for part in found.parts)}
    bucket.delete([item.key for item in bucket.list(place.log_prefix) if item.key not in kept])


def merge_segments(bucket: ObjectStore, place: Place) -> None:
    """Copy the segments of an open log that no copy has yet into few objects, as far as they are neighbours.

    Whoever appends does so now and then; writers that do it at once make copies that say the same. Raises
    BucketUnavailable.
    """
    merged = merged_spans(bucket, place)
    last = merged[-1].last if merged else 0
    bodies: list[bytes] = []
    first, size = last + 1, 0
    for found in bucket.list(place.segments_prefix, start_after=place.segment_key(last)):
        body = bucket.get(found.key) if found.key == place.segment_key(last + 1) else None
        if body is None or describe(body).closed:
            break
        last = describe(body).last
        bodies.append(body)
        size += len(body)
        if size >= _PART_BYTES:
            _put_copy(bucket, place, first, last, bodies)
            bodies, first, size = [], last + 1, 0
    if len(bodies) > 1:
        _put_copy(bucket, place, first, last, bodies)


def _put_copy(bucket: ObjectStore, place: Place, first: int, last: int, bodies: list[bytes]) -> None:
    key = place.merged_key(first, last)
    bucket.put(key, b"".join(bodies), content_type=NDJSON)
    if find_seal(bucket, place):
        # Nobody reads it any more, and the seal may have been too early to delete it.
        bucket.delete([key])


def _append(
    bucket: ObjectStore,
    place: Place,
    end: ChainEnd,
    drafts: Drafts,
    *,
    closed: bool = False,
) -> tuple[ChainEnd, Segment | None, Sequence[Draft]]:
    """Put a segment behind the end of the log, wherever that is by now: the new end, the segment, and what it holds."""
    token = secrets.token_hex(8)
    for behind in count(1):
        new = drafts(end)
        if not new and not closed:
            break
        # Behind the closing segment nothing comes that could take an id for itself.
        unused = [] if closed else unused_drafts(end)
        segment, body = encode_segment(token, end, [*unused, *new], closed=closed)
        if bucket.put(place.segment_key(segment.first), body, if_absent=True, content_type=NDJSON):
            return end_behind(segment), segment, new
        other, _ = segment_after(bucket, place, end)
        if other.writer == token:
            return end_behind(segment), segment, new
        end = end_behind(other)
        if behind % _STEPS_BEHIND == 0:
            # Whoever knows an end of long ago does not follow it segment by segment.
            end = _open_end(bucket, place)
    return end, None, ()


def _close_chain(bucket: ObjectStore, place: Place) -> ChainEnd:
    """Put the closing segment behind the last one, or find it there."""
    end = chain_end(bucket, place)
    while not end.closed:
        try:
            end, _, _ = _append(bucket, place, end, lambda _: (), closed=True)
        except Conflict:
            end = chain_end(bucket, place)
    return end


def _open_end(bucket: ObjectStore, place: Place) -> ChainEnd:
    end = chain_end(bucket, place)
    if end.closed:
        raise log_closed(place)
    return end


def _put_parts(bucket: ObjectStore, place: Place) -> list[SealedPart] | None:
    """Write the entries of a closed chain into few objects. None: another seal was quicker, and deleted the chain."""
    parts: list[SealedPart] = []
    lines: list[bytes] = []
    size = position = 0
    first = 1
    for span in cover(bucket, place, 0):
        body = bucket.get(span.key)
        if body is None:
            return None
        for segment, entries in decode_blocks(body):
            if segment.last <= position:
                continue
            lines += entries
            size += sum(map(len, entries))
            position = segment.last
            if size >= _PART_BYTES:
                parts.append(_put_part(bucket, place, lines, first, position))
                first, size, lines = position + 1, 0, []
    if lines:
        parts.append(_put_part(bucket, place, lines, first, position))
    return parts


def _put_part(bucket: ObjectStore, place: Place, lines: list[bytes], first: int, last: int) -> SealedPart:
    key = place.sealed_part_key(first, last)
    bucket.put(key, b"\n".join([*lines, b""]), content_type=NDJSON)
    return SealedPart(key=key, first=first, last=last)


def _sealed_with(bucket: ObjectStore, place: Place, entry_id: int, draft: Draft) -> bool:
    entry = next(read_entries(bucket, place, entry_id - 1), None)
    return entry is not None and (entry.ts, entry.stream, entry.data) == (draft.ts, draft.stream, draft.data)
