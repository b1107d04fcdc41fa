"""The part of a stored object that a Range header asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re

from foundation.errors import RangeNotSatisfiable

_RANGE = re.compile(r"^bytes=([0-9]*)-([0-9]*)$")
_DIGITS = 19


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Offset and length of the one range asked for; None for the whole.

    A header that is malformed or asks for several ranges is ignored, as the RFC allows. Raises RangeNotSatisfiable.
    """
    match = _RANGE.match((header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    # Beyond all sizes one figure is as good as another, and thousands of digits are no number to Python.
    first, last = (digits.lstrip("0")[:_DIGITS] or digits[:1] for digits in match.groups())
    if not first:
        length = min(int(last), size)
        if not length:
            raise _beyond(size)
        return size - length, length
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if last and int(last) < start:
        return None
    if start >= size:
        raise _beyond(size)
    return start, end - start + 1


def _beyond(size: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(f"The range begins beyond the end; there are {size} bytes.", size_bytes=size)
