"""The part of a stored object that a Range header asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re

_RANGE = re.compile(r"^bytes=(\d*)-(\d*)$")


class NotSatisfiable(Exception):
    """The range begins beyond the object's end."""


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Offset and length of the one range asked for; None for the whole.

    A header that is malformed or asks for several ranges is ignored, as the RFC allows. Raises NotSatisfiable.
    """
    match = _RANGE.match((header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    first, last = match[1], match[2]
    if not first:
        length = min(int(last), size)
        if not length:
            raise NotSatisfiable
        return size - length, length
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise NotSatisfiable
    return start, end - start + 1
