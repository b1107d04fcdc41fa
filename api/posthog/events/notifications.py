"""The pure translation: an entry of a run's log as the notifications that clients of this dialect read.

An entry with the id 7 is notification ``7``, or ``7-1``, ``7-2`` and so on when it tells several things. Log and
stream give the same notification under the same id, and a stream goes on strictly behind the id that a client names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

from api.posthog.events.agent import agent_line
from api.posthog.events.bodies import Body, Json, console, object_of, text_of
from api.posthog.events.run import run_event
from api.runs.log import timestamp
from foundation.errors import InvalidParameter
from storage.segments import LogEntry

#: A longer entry takes a moment to be translated, which is no work for an event loop.
LONG_CHARS = 256 * 1024

# A longer line is not translated, nor one of more values: each costs the server many times what it costs the guest.
_LINE_CHARS_MOST = 4 * 1024 * 1024
_VALUES_MOST = 100_000
# Of entries that are short, the newest are remembered: many follow the same run.
_REMEMBERED = 512
_REMEMBERED_CHARS = 16 * 1024
_CONSOLE_CHARS = 16 * 1024
# No log has so many entries: it is a time in milliseconds.
_NO_ENTRY = 10**12
_EVENT_ID = re.compile(r"(?P<entry>[0-9]{1,20})(?:-(?P<part>[0-9]{1,20}))?(?:\.[0-9]{1,15})?")


@dataclass(frozen=True)
class RunName:
    """The run that notifications are about, and the task that it is of.

    The log of a ``local`` one is what its client tells: what Taskyard notes beside is not shown in it.
    """

    run_id: str
    task_id: str
    local: bool = False


@dataclass(frozen=True)
class Notification:
    """One line of the log as this dialect has it, and one event of its stream.

    ``text`` is its JSON, of which ``kind`` is the event type and ``at`` the time, None where it names none. One that is
    not ``logged`` is told to followers alone.
    """

    event_id: str
    kind: str
    at: datetime | None
    text: str
    logged: bool = True


class Position(NamedTuple):
    """Where a client stands: behind notification ``part`` of the entry ``entry``, or behind all of them."""

    entry: int = 0
    part: float = inf

    @property
    def after_entry(self) -> int:
        """The last entry of which the client has everything."""
        return self.entry if self.part == inf else self.entry - 1

    @property
    def event_id(self) -> str:
        """The id that names it."""
        return str(self.entry) if self.part == inf else f"{self.entry}-{self.part:.0f}"


def parse_event_id(text: str, named: str = "Last-Event-ID") -> Position:
    """The position that an id of an event names. Raises InvalidParameter.

    An id of another server's stream (a time in milliseconds and a number) names none here: the client gets everything.
    """
    match = _EVENT_ID.fullmatch(text)
    if match is None:
        raise InvalidParameter(
            f"{named} is an id that the stream has given, such as 12 or 12-2; leave it out to begin."
        )
    if int(match["entry"]) >= _NO_ENTRY or int(match["part"] or 1) == 0:
        return BEGINNING
    return Position(int(match["entry"]), int(match["part"]) if match["part"] else inf)


#: Where a client stands that has nothing yet.
BEGINNING = Position()


def notifications(entry: LogEntry, run: RunName, after: Position = BEGINNING) -> list[Notification]:
    """What an entry tells a client that stands at ``after``; nothing for an entry that has nothing to say to it."""
    if len(entry.data) <= _REMEMBERED_CHARS:
        told = _remembered(entry.id, entry.ts, entry.stream, entry.data, run)
    else:
        told = _translated(entry.id, entry.ts, entry.stream, entry.data, run)
    if entry.id != after.entry:
        return list(told)
    return [each for number, each in enumerate(told, 1) if number > after.part]


def _translated(entry_id: int, at: datetime, stream: str, data: str, run: RunName) -> tuple[Notification, ...]:
    try:
        if stream == "told":
            return _told(entry_id, data)
        bodies = list(_bodies(entry_id, stream, data, run))
        return tuple(_numbered(entry_id, at, bodies, run))
    except (ValueError, RecursionError):
        # Numbers that JSON cannot say, and nesting that nothing can read.
        return tuple(_numbered(entry_id, at, [_unread(data)], run))


_remembered = lru_cache(maxsize=_REMEMBERED)(_translated)


def _bodies(entry_id: int, stream: str, data: str, run: RunName) -> Iterator[Body]:
    if stream == "event":
        if run.local:
            return
        yield from run_event(object_of(json.loads(data)), entry_id, run.run_id, run.task_id)
        return
    line = data.strip()
    if len(line) > _LINE_CHARS_MOST or line.count(",") + line.count("[") > _VALUES_MOST:
        yield _unread(data)
    elif stream == "stdout" and line.startswith("{") and (read := _object(line)) is not None:
        yield from agent_line(read, run.run_id)
    elif line:
        shown = line if len(line) <= _CONSOLE_CHARS else line[: _CONSOLE_CHARS - 1] + "…"
        yield console("info" if stream == "stdout" else "warn", shown)


def _object(line: str) -> Json | None:
    """The object that a line is; None for one that is none, as programs of a guest may write."""
    try:
        read = json.loads(line, parse_constant=_refused)
    except json.JSONDecodeError:
        return None
    return read if isinstance(read, dict) else None


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def _unread(data: str) -> Body:
    return console("warn", f"A line of {len(data)} characters is not shown here; the run's own log has it.")


def _numbered(entry_id: int, at: datetime, bodies: list[Body], run: RunName) -> Iterator[Notification]:
    time = timestamp(at)
    # As it is written, which clients give back to ask for what comes after.
    at = datetime.fromisoformat(time)
    for number, body in enumerate(bodies, 1):
        event_id = str(entry_id) if len(bodies) == 1 else f"{entry_id}-{number}"
        if body.raw is not None:
            yield Notification(event_id, "", at, _json(body.raw), logged=False)
            continue
        message: Json = {"jsonrpc": "2.0"} if body.request is None else {"jsonrpc": "2.0", "id": body.request}
        message |= {"method": body.method, "params": {"sessionId": run.run_id, **body.params}}
        line = {"type": "notification", "timestamp": time, "event_id": event_id, "notification": message}
        yield Notification(event_id, _kind(line), at, _json(line))


def _told(entry_id: int, data: str) -> tuple[Notification, ...]:
    """What a client has told of its own run stays as it said it, under an id of its own or that of the log."""
    line = json.loads(data, parse_constant=_refused)
    if not isinstance(line, dict):
        return ()
    event_id = str(entry_id)
    if not isinstance(line.get("event_id"), str):
        line["event_id"] = event_id
    kind = _kind(line)
    # Agents that send events as they arise send a message whole beside its pieces: the log keeps the whole.
    logged = kind != "agent_message_chunk"
    return (Notification(event_id, kind, _time(line.get("timestamp")), _json(line), logged=logged),)


def _kind(line: Json) -> str:
    """The type of a line's event: of an update of the session its kind, of anything else the method."""
    message = object_of(line.get("notification"))
    method = text_of(message.get("method")) or ""
    if method != "session/update":
        return method
    return text_of(object_of(object_of(message.get("params")).get("update")).get("sessionUpdate")) or ""


def _time(value: Any) -> datetime | None:
    try:
        at = datetime.fromisoformat(value) if isinstance(value, str) else None
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _json(data: Json) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)
