"""What is wrong with a thing that a user wrote: every fault with its place, written without what is secret."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from foundation.urls import without_credentials

# Faults in one refusal, characters of each, and how many of them its sentence names.
MOST_FAULTS = 100
_LONGEST_FIELD = 300
_LONGEST_KEY = 80
_LONGEST_MESSAGE = 600
_IN_SENTENCE = 20
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, as ``metadata.labels.team`` or ``secrets[0].name``, what, and a word for it."""

    field: str
    message: str
    validation: str


def below(field: str, key: str | int) -> str:
    """The place of a key or an index in what stands at ``field``; a long one is cut, as it is only to be shown."""
    if len(field) > _LONGEST_FIELD:
        return field
    if isinstance(key, int):
        return f"{field}[{key}]"
    return f"{field}.{key[:_LONGEST_KEY]}" if field else key[:_LONGEST_KEY]


def as_details(faults: Sequence[Fault]) -> list[dict[str, str]]:
    """The first faults as JSON-ready data, printable and without credentials."""
    details = [
        {
            "field": _plain(fault.field, _LONGEST_FIELD + _LONGEST_KEY),
            "message": _plain(fault.message, _LONGEST_MESSAGE),
            "validation": fault.validation,
        }
        for fault in faults[:MOST_FAULTS]
    ]
    if len(faults) > MOST_FAULTS:
        details.append({"field": "", "message": "and more faults, which are not told", "validation": "more"})
    return details


def sentence(details: Sequence[dict[str, str]]) -> str:
    """The faults in one line."""
    parts = [f"{fault['field']}: {fault['message']}" if fault["field"] else fault["message"] for fault in details]
    more = f"; and {len(parts) - _IN_SENTENCE} more, all of them in details.errors" if len(parts) > _IN_SENTENCE else ""
    return "; ".join(parts[:_IN_SENTENCE]) + more


def _plain(text: str, most: int) -> str:
    text = _UNPRINTABLE.sub("?", text[: 2 * most])
    text = without_credentials(text)
    return text if len(text) <= most else text[:most] + "…"
