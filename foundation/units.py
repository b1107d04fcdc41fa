"""Sizes and durations as manifests and settings write them."""

from __future__ import annotations

import re

_SIZE = re.compile(r"\s*([0-9]{1,12})\s*([KMGT])(?:i?B?)?\s*")
_DURATION = re.compile(r"\s*([0-9]{1,9})\s*([hms])\s*")
_SIZE_FACTOR = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_DURATION_FACTOR = {"h": 3600, "m": 60, "s": 1}

# Of a text that is none.
_SHOWN = 40

MAX_DURATION_SECONDS = 168 * 3600


def parse_size(text: str) -> int:
    """Bytes of a size such as ``512M`` or ``8G`` (powers of 1024). Raises ValueError with a sentence."""
    match = _SIZE.fullmatch(text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"'{text[:_SHOWN]}' is not a size; write a whole number and a unit, such as 512M or 8G")
    return int(match[1]) * _SIZE_FACTOR[match[2]]


def parse_duration(text: str) -> int:
    """Seconds of a duration: a whole number and one of h, m, s; 1s to 168h (Task Orchestration contract, 1.3).

    Raises ValueError with a sentence.
    """
    match = _DURATION.fullmatch(text)
    if not match:
        raise ValueError(f"'{text[:_SHOWN]}' is not a duration; write a whole number and h, m or s, such as 30m or 24h")
    seconds = int(match[1]) * _DURATION_FACTOR[match[2]]
    if not 1 <= seconds <= MAX_DURATION_SECONDS:
        raise ValueError(f"'{text}' is out of range; a duration lies between 1s and 168h")
    return seconds


def format_size(count: float) -> str:
    """A count of bytes as people read it, such as ``1.5 GiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def format_seconds(seconds: float) -> str:
    """A length of time as people read it, such as ``0.8s``, ``12s`` or ``3m 05s``."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    if seconds < 60:
        return f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {rest:02d}s"
