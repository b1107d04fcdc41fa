"""What single values of a manifest may hold, whichever field they stand in: sizes, durations, lines, numbers, rules."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from foundation.units import parse_duration, parse_size
from workflows.specs.hosts import host_rule

MAX_ENTRY = 1000

_LABEL_KEY = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
# Line ends of all kinds, what moves the cursor or colours a terminal, and what turns the direction of writing around.
_NO_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def _size(text: str) -> str:
    parse_size(text)
    return text


def _duration(text: str) -> str:
    parse_duration(text)
    return text


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


def at_most(most: int) -> AfterValidator:
    """Holds a text to so many characters."""

    def check(text: str) -> str:
        if len(text) > most:
            raise ValueError(f"is too long: {len(text)} characters; {most} are the most")
        return text

    return AfterValidator(check)


def one_line(text: str) -> str:
    """The text, if it is one line that a terminal shows as it is; else a ValueError."""
    if found := _NO_LINE.search(text):
        raise ValueError(f"must be one line without control characters; it holds U+{ord(found[0]):04X}")
    return text


def _no_boolean(value: Any) -> Any:
    """``true`` is no number, though Python takes it for 1."""
    if isinstance(value, bool):
        raise ValueError("must be a whole number, and is true or false")  # noqa: TRY004 -- pydantic's own
    return value


def _host_rule(text: str) -> str:
    host_rule(text)
    return text


def _label_key(text: str) -> str:
    if not _LABEL_KEY.fullmatch(text):
        raise ValueError(
            "a label's key may hold letters, digits, '.', '_', '-' and '/', begins and ends with a letter or digit, "
            "63 characters at most"
        )
    return text


Size = Annotated[str, AfterValidator(_size)]
Duration = Annotated[str, AfterValidator(_duration)]
Words = Annotated[str, AfterValidator(_not_blank)]
Line = Annotated[Words, AfterValidator(one_line)]
Entry = Annotated[Line, at_most(MAX_ENTRY)]
Number = Annotated[int, Field(ge=1), BeforeValidator(_no_boolean)]
HostText = Annotated[str, AfterValidator(_host_rule)]
LabelKey = Annotated[str, AfterValidator(_label_key)]
LabelValue = Annotated[str, AfterValidator(one_line)]
