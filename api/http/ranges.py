"""The part of a stored object that a Range header asks for (RFC 9110, section 14)."""

from __future__ import annotations

import re

from foundation.errors import RangeNotSatisfiable

_RANGE = re.compile(r"^bytes=([0-9]*)-([0-9]*)$")
_DIGITS = 18


def asked_range(header: str | None) -> tuple[int | None, int | None] | None:
    """First and last byte of the one range asked for, as it is written; None for the whole.

    Without a first, the last is how many of the last bytes are wanted. A header that is malformed or asks for several
    ranges is ignored, as the RFC allows.
    """
    match = _RANGE.match((header or "").replace(" ", ""))
    if match is None or match[0] == "bytes=-":
        return None
    # Beyond all sizes one figure is as good as another, and thousands of digits are no number to Python.
    first, last = (int(digits.lstrip("0")[:_DIGITS] or "0") if digits else None for digits in match.groups())
    return None if first is not None and last is not None and last < first else (first, last)


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Offset and length of the one range asked for; None for the whole. Raises RangeNotSatisfiable."""
    asked = asked_range(header)
    if asked is None:
        return None
    first, last = asked
    if first is None:
        length = min(last or 0, size)
        if not length:
            raise _beyond(size)
        return size - length, length
    if first >= size:
        raise _beyond(size)
    end = size - 1 if last is None else min(last, size - 1)
    return first, end - first + 1


def _beyond(size: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(f"The range begins beyond the end; there are {size} bytes.", size_bytes=size)
