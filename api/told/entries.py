"""JSON that clients send to be kept: what the log, the memo and every reader of them can hold, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from foundation.errors import InvalidParameter, PayloadTooLarge
from foundation.units import format_size
from workflows.told.record import DEPTH_MOST

#: Of one entry of a log, as a line.
ENTRY_BYTES = 1024 * 1024
#: Of all entries of one request.
BATCH_BYTES = 8 * 1024 * 1024


def json_line(value: Any, field: str, most: int = ENTRY_BYTES) -> str:
    """A value as one line of JSON without its newline. Raises InvalidParameter, PayloadTooLarge; both name ``field``.

    Half characters (lone surrogates), which no text holds, become question marks.
    """
    check_depth(value, field)
    try:
        line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidParameter(f"{field} is no JSON: it holds a number or a value that JSON does not have.") from error
    encoded = line.encode(errors="replace")
    if len(encoded) > most:
        raise PayloadTooLarge(f"{field} takes {len(encoded)} bytes; {format_size(most)} are the most.", field=field)
    return encoded.decode()


def checked(value: Any, field: str, most: int) -> Any:
    """A value as JSON gives it back that every process can read."""
    return json.loads(json_line(value, field, most))


def lines(entries: Sequence[Any], field: str = "entries") -> list[str]:
    """Entries of a log as lines of JSON with their newlines. Raises InvalidParameter, PayloadTooLarge."""
    written = [json_line(entry, f"{field}[{number}]") + "\n" for number, entry in enumerate(entries)]
    if sum(map(len, written)) > BATCH_BYTES:
        raise PayloadTooLarge(f"{field} are more than {format_size(BATCH_BYTES)} together; send them in parts.")
    return written


def check_depth(value: Any, field: str) -> None:
    """Raise InvalidParameter for a value that is nested so deep that some reader would refuse it."""
    level: list[Any] = [value]
    for _ in range(DEPTH_MOST + 1):
        level = [
            inner
            for each in level
            if isinstance(each, dict | list)
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return
    raise InvalidParameter(f"{field} is nested deeper than {DEPTH_MOST} levels.", field=field)
