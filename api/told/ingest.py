"""Numbered entries that an agent sends: each is stored once, whatever is sent again and by which server."""

from __future__ import annotations

from collections.abc import Sequence

from api.told.appending import ClientLogs
from storage.layout import Place
from storage.live.numbered import Ingested, Intake, Numbered


async def ingest(logs: ClientLogs, place: Place, entries: Sequence[Numbered]) -> Ingested:
    """Store the entries that are new, in order; without any, tell the last number.

    What comes before a gap is stored. Raises Conflict at a gap (``last_accepted_seq`` is the last that is stored) and
    when the log is closed (``reason``: ``closed``), BucketUnavailable, RateLimitExceeded.
    """
    intake = Intake(entries)
    await logs.append(place, intake.drafts, sum(len(entry.line) for entry in entries), fresh=not entries)
    return intake.outcome()
