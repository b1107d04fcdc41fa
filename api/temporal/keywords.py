"""Texts as a keyword among the search attributes holds them, in each of Temporal's visibility stores."""

from __future__ import annotations

import json
import re
from urllib.parse import quote

# What an SQL visibility store holds in one keyword.
_MAX_KEYWORD = 255
MAX_LABEL_TOKEN = _MAX_KEYWORD
# What Temporal takes of one search attribute by default (2 KiB), with room for what it adds.
MAX_LABELS_BYTES = 1900

# Characters that end or split a keyword in one of the visibility stores, or a string in their query language.
_UNSAFE = re.compile(r"[\"'\\%♡\x00-\x1f\x7f]")


def label_token(key: str, value: str) -> str:
    """A label as the search attribute holds it: ``key=value``, with what the stores cannot hold percent-encoded."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), f"{key}={value}")


def keyword(text: str) -> str:
    """As much of the text as one keyword holds."""
    text = text[:_MAX_KEYWORD]
    while len(json.dumps(text)) > MAX_LABELS_BYTES:
        text = text[:-1]
    return text
