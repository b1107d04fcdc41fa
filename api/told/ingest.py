"""Numbered entries that an agent sends as they arise: each is stored once, whatever is sent again and by which server.

The number of the last one stands in the log itself, with the entries, so that no server has to remember it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from api.told.appending import ClientLogs
from foundation.errors import Conflict
from storage.layout import Place
from storage.segments import ChainEnd, Draft, told_draft


class Numbered(NamedTuple):
    """An entry as a line of JSON with its newline, and its number, which counts from 1."""

    number: int
    line: str


@dataclass(frozen=True)
class Ingested:
    """How many entries were stored and how many were there before, and the number of the last one."""

    accepted: int = 0
    duplicate: int = 0
    last: int = 0

    def __add__(self, other: Ingested) -> Ingested:
        return Ingested(self.accepted + other.accepted, self.duplicate + other.duplicate, other.last)


async def ingest(logs: ClientLogs, place: Place, entries: Sequence[Numbered]) -> Ingested:
    """Store the entries that are new, in order; without any, tell the last number.

    What comes before a gap is stored. Raises Conflict at a gap (``last_accepted_seq`` is the last that is stored) and
    when the log is closed (``reason``: ``closed``), BucketUnavailable, RateLimitExceeded.
    """
    taken = _Taken(entries)
    end = await logs.append(place, taken.drafts, sum(len(entry.line) for entry in entries), fresh=not entries)
    if taken.beyond is not None:
        raise _gap(taken.beyond, end.sequence)
    return Ingested(taken.accepted, taken.duplicate, end.sequence)


class _Taken:
    """What of one request is new at the end of the log as it is."""

    def __init__(self, entries: Sequence[Numbered]) -> None:
        self._entries = entries
        self.accepted = self.duplicate = 0
        self.beyond: int | None = None

    def drafts(self, end: ChainEnd) -> Sequence[Draft]:
        last = end.sequence
        found: list[Draft] = []
        self.duplicate, self.beyond = 0, None
        for entry in self._entries:
            if entry.number == last + 1:
                found.append(told_draft(entry.line, entry.number))
                last = entry.number
            elif entry.number <= last:
                self.duplicate += 1
            elif found:
                self.beyond = entry.number
                break
            else:
                raise _gap(entry.number, last)
        self.accepted = len(found)
        return found


def _gap(number: int, last: int) -> Conflict:
    return Conflict(f"Entry {number} does not follow entry {last}; send on from {last + 1}.", last_accepted_seq=last)
