"""Numbered entries that an agent sends as they arise: which of them are new at the end of a log, and stand in order.

The number of the last one stands in the log itself, with the entries, so that nobody has to remember it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from pydantic import BaseModel

from foundation.errors import Conflict, InvalidParameter
from storage.segments import ChainEnd, Draft, told_draft

_DIGITS_MOST = 18


class Numbered(NamedTuple):
    """An entry as a line of JSON with its newline, and its number, which counts from 1."""

    number: int
    line: str


class Ingested(BaseModel, frozen=True):
    """How many entries were stored and how many were there before, and the number of the last one."""

    accepted: int = 0
    duplicate: int = 0
    last: int = 0

    def __add__(self, other: Ingested) -> Ingested:
        return Ingested(
            accepted=self.accepted + other.accepted, duplicate=self.duplicate + other.duplicate, last=other.last
        )


@dataclass
class Intake:
    """What of one request is new at the end of the log as it is; asked anew wherever that is by now."""

    entries: Sequence[Numbered]
    taken: Ingested = field(default_factory=Ingested)
    beyond: int | None = None

    def drafts(self, end: ChainEnd) -> Sequence[Draft]:
        """The entries that are new, in order, up to a gap. Raises Conflict when it comes before all of them."""
        last = end.sequence
        found: list[Draft] = []
        duplicate, self.beyond = 0, None
        for entry in self.entries:
            if entry.number == last + 1:
                found.append(told_draft(entry.line, entry.number))
                last = entry.number
            elif entry.number <= last:
                duplicate += 1
            elif found:
                self.beyond = entry.number
                break
            else:
                raise _gap(entry.number, last)
        self.taken = Ingested(accepted=len(found), duplicate=duplicate, last=last)
        return found

    def outcome(self) -> Ingested:
        """What became of the request, once its entries are stored. Raises Conflict for what comes behind a gap."""
        if self.beyond is not None:
            raise _gap(self.beyond, self.taken.last)
        return self.taken


def as_lines(entries: Sequence[Numbered]) -> str:
    """Entries as one process tells them another: each its number, a space, and its line."""
    return "".join(f"{entry.number} {entry.line}" for entry in entries)


def from_lines(text: str) -> list[Numbered]:
    """The entries of such lines. Raises InvalidParameter."""
    found = []
    # At this newline alone: JSON may hold others.
    for each in text.split("\n")[:-1]:
        number, _, line = each.partition(" ")
        if not (number.isascii() and number.isdecimal() and len(number) <= _DIGITS_MOST):
            raise InvalidParameter("Each line begins with the number of its entry")
        found.append(Numbered(int(number), f"{line}\n"))
    return found


def _gap(number: int, last: int) -> Conflict:
    return Conflict(f"Entry {number} does not follow entry {last}; send on from {last + 1}.", last_accepted_seq=last)
