"""Notifications before they have an id: how each kind is put together, and what is taken of what a guest says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]

_TITLE_CHARS = 200


@dataclass(frozen=True)
class Body:
    """One JSON-RPC message about a run: ``method`` and ``params``, to which the session's id is added.

    One with a ``request`` id is a request, as those are that clients know a prompt by. A ``raw`` one is no JSON-RPC
    message: the stream has it as it stands, and the log leaves it out.
    """

    method: str = ""
    params: Json = field(default_factory=dict)
    request: int | None = None
    raw: Json | None = None


def update(kind: str, /, **fields: Any) -> Body:
    """What the session tells of itself. Fields that are None are left out."""
    present = {name: value for name, value in fields.items() if value is not None}
    return Body("session/update", {"update": {"sessionUpdate": kind, **present}})


def extension(name: str, /, **params: Any) -> Body:
    """One of the protocol's extensions. Parameters that are None are left out."""
    return Body(f"_posthog/{name}", {key: value for key, value in params.items() if value is not None})


def console(level: str, message: str) -> Body:
    """A line for people: ``level`` is debug, info, warn or error."""
    return extension("console", level=level, message=message)


def text_block(text: str) -> Json:
    """Text as a block of content."""
    return {"type": "text", "text": text}


def text_of(value: Any) -> str | None:
    """A text; None for what is none."""
    return value if isinstance(value, str) else None


def object_of(value: Any) -> Json:
    """An object; an empty one for what is none."""
    return value if isinstance(value, dict) else {}


def objects_of(value: Any) -> list[Json]:
    """The objects of a list; none for what is no list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def one_line(text: str, most: int = _TITLE_CHARS) -> str:
    """The beginning of a text in one line."""
    line = " ".join(text[: 4 * most].split())
    return line if len(line) <= most else line[: most - 1] + "…"
