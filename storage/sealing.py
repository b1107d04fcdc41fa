"""Events that come from elsewhere than the agent's output, and the end of the run log."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
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
    Seal,
    SealedPart,
    Segment,
    chain_end,
    decode_blocks,
    encode_segment,
    end_behind,
    event_draft,
    find_seal,
    log_closed,
    segment_after,
    unused_drafts,
)

_PART_BYTES = 8 * 1024 * 1024


def append_event(
    bucket: ObjectStore, place: Place, payload: Mapping[str, Any], redactor: Redactor | None = None
) -> None:
    """Store one event from any process: through the open writer of this one, if there is one, or else beside others.

    Raises Conflict when the log is closed, BucketUnavailable.
    """
    draft = event_draft(redactor.redact_json(payload) if redactor else payload)
    logs = attached(bucket)
    if logs is not None:
        logs.append(place, draft)
    else:
        append_draft(bucket, place, draft)


def append_draft(bucket: ObjectStore, place: Place, draft: Draft) -> None:
    """Store one event beside whoever writes this log. Raises Conflict when it is closed, BucketUnavailable."""
    end = chain_end(bucket, place)
    if end.closed:
        raise log_closed(place)
    segment = _append(bucket, place, end, [draft])
    if find_seal(bucket, place) and not _sealed_with(bucket, place, segment.last, draft):
        # The log was sealed, and its segments deleted, between the look and the put: this one came too late.
        bucket.delete([place.segment_key(segment.first)])
        raise log_closed(place)


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
            made = Seal(parts=parts, last=end.last, offsets=end.offsets, sealed_at=datetime.now(UTC))
            data = made.model_dump_json().encode()
            bucket.put(place.seal_key, data, if_absent=True, content_type="application/json")
        # Of two that seal at once, the one whose seal was first has named the parts.
        found = find_seal(bucket, place)
    if found is None:
        raise damaged(place, 0)
    # The closing segment stays: a writer that slept through the end still meets it.
    kept = {place.seal_key, place.segment_key(found.last + 1), *(part.key for part in found.parts)}
    bucket.delete([item.key for item in bucket.list(place.log_prefix) if item.key not in kept])


def _append(bucket: ObjectStore, place: Place, end: ChainEnd, drafts: list[Draft], *, closed: bool = False) -> Segment:
    """Put a segment behind the end of the log, wherever that is by now."""
    token = secrets.token_hex(8)
    while True:
        # Behind the closing segment nothing comes that could take an id for itself.
        unused = [] if closed else unused_drafts(end)
        segment, body = encode_segment(token, end, [*unused, *drafts], closed=closed)
        if bucket.put(place.segment_key(segment.first), body, if_absent=True, content_type=NDJSON):
            return segment
        other, _ = segment_after(bucket, place, end)
        if other.writer == token:
            return segment
        end = end_behind(other)


def _close_chain(bucket: ObjectStore, place: Place) -> ChainEnd:
    """Put the closing segment behind the last one, or find it there."""
    end = chain_end(bucket, place)
    while not end.closed:
        try:
            segment = _append(bucket, place, end, [], closed=True)
        except Conflict:
            end = chain_end(bucket, place)
        else:
            return end_behind(segment)
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
