"""What clients tell of a run, wherever it is executed: the record of that, and how a change is merged into it.

A record stands in memo and history whole, so each part of it is bounded, and by the time a change is sent it has been
checked for what JSON cannot hold.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from foundation.errors import PayloadTooLarge
from foundation.units import format_size
from workflows.messages import Message, Name, Sentence
from workflows.told.states import LocalState

#: Of the output, and of the state, as JSON.
OUTPUT_BYTES = STATE_BYTES = 64 * 1024
#: Nesting of both.
DEPTH_MOST = 64


class Told(Message):
    """What was told of a run so far. ``output`` is any JSON, ``state`` a mapping that means nothing here.

    ``environment`` and ``mode`` are the client's words for where and how the run is executed. ``changed_at`` is when
    something was told last.
    """

    stage: Name | None = None
    branch: Name | None = None
    output: Any = None
    state: dict[str, Any] = {}
    error_message: Sentence | None = None
    environment: Name | None = None
    mode: Name | None = None
    changed_at: datetime | None = None


class Change(Message):
    """Payload of the update ``tell``. A field that is null says nothing; those of ``cleared`` become null, or empty.

    ``enter`` is the state that the run is to come into. Objects are put to what is there, key by key, once
    ``remove_keys`` are gone from ``state``; with ``replace_output`` an output takes the place of the one before.
    """

    enter: LocalState | None = None
    stage: Name | None = None
    branch: Name | None = None
    output: Any = None
    state: dict[str, Any] | None = None
    error_message: Sentence | None = None
    environment: Name | None = None
    mode: Name | None = None
    cleared: list[str] = []
    remove_keys: list[str] = []
    replace_output: bool = False

    @property
    def fields(self) -> list[str]:
        """The names of the fields of the record that it says something of, in their order."""
        named = {name for name in _FIELDS if getattr(self, name) is not None} | set(self.cleared)
        if self.remove_keys:
            named.add("state")
        return [name for name in _FIELDS if name in named]


class Standing(Message):
    """Answer to a change. Not ``changed``: the run has ended, or was told nothing new."""

    changed: bool


_FIELDS = tuple(name for name in Told.model_fields if name != "changed_at")


def merge(told: Told, change: Change) -> Told:
    """The record with a change. Raises PayloadTooLarge for an output or a state that would grow beyond its limit."""
    news: dict[str, Any] = dict.fromkeys(change.fields)
    for name in change.fields:
        if name not in change.cleared:
            news[name] = getattr(change, name)
    if "output" in news:
        both = isinstance(told.output, dict) and isinstance(news["output"], dict) and not change.replace_output
        news["output"] = told.output | news["output"] if both else news["output"]
        _check("output", news["output"], OUTPUT_BYTES)
    if "state" in news:
        removed = set(told.state) if "state" in change.cleared else set(change.remove_keys)
        kept = {key: value for key, value in told.state.items() if key not in removed}
        news["state"] = kept | (change.state or {})
        _check("state", news["state"], STATE_BYTES)
    return told.model_copy(update=news)


def _check(field: str, value: Any, most: int) -> None:
    size = len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode(errors="replace"))
    if size > most:
        raise PayloadTooLarge(
            f"'{field}' would take {size} bytes as JSON; {format_size(most)} are the most: upload an artifact instead.",
            field=field,
        )
