"""Routes for what clients tell of a run: ``append_log``, ``set_output``, ``event_stream`` and tokens for streams."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Request, Response

from api.deps import ServicesOf
from api.http.access import Grant, TokenReader
from api.http.tokens import TokenKeys, looks_like_one
from api.posthog.errors import told_as_view
from api.posthog.forms import read_object
from api.posthog.lookup import GrantOf, RunOf, opened_by_token
from api.posthog.models import run_object
from api.posthog.paths import RUN
from api.posthog.tokens import STREAM
from api.posthog.users import user
from api.runs.log import timestamp
from api.told.entries import BATCH_BYTES, ENTRY_BYTES, json_line
from foundation.errors import (
    Conflict,
    InvalidBody,
    InvalidParameter,
    PayloadTooLarge,
    TaskyardError,
    Unauthorized,
)
from foundation.faults import Fault
from foundation.units import format_size
from storage.live.numbered import Numbered

#: What the second token of ``stream_token`` opens of its run; the first one opens its stream.
INGEST = "ingest"
TOKEN_SECONDS = 24 * 3600

#: What one request of ``event_stream`` takes.
INGEST_BYTES = 5 * 2**20
INGEST_EVENTS = 1000

_AUDIENCES = {STREAM: "posthog:run_stream", INGEST: "posthog:sandbox_event_ingest"}
# Agents send a message whole beside its pieces: the log keeps the whole.
_PIECE = "agent_message_chunk"
_COMPLETE = "_posthog/stream_complete"
_NUMBER_MOST = 2**53
# How agents begin a line.
_HEAD = re.compile(rb'\s*\{\s*"seq"\s*:\s*([0-9]{1,16})\s*,')

router = APIRouter(prefix=RUN, tags=["runs"])


@router.post("/append_log", summary="Append entries to a run's log")
async def append_log(run: RunOf, request: Request, response: Response, services: ServicesOf) -> dict[str, Any]:
    """Append entries, any JSON objects, and give the run. One that has ended takes none, and stays as it is."""
    body = await request.body()
    entries = await to_thread.run_sync(_entries, body)
    began = time.monotonic()
    if entries:
        await services.told.append(run.id, entries, run.run)
    response.headers["Server-Timing"] = f"s3_append;dur={(time.monotonic() - began) * 1000:.1f}"
    return run_object(request, run)


@router.patch(
    "/set_output", summary="Set a run's output", dependencies=[Depends(told_as_view(InvalidParameter, PayloadTooLarge))]
)
async def set_output(run: RunOf, request: Request, services: ServicesOf) -> dict[str, Any]:
    """Set the output in place of the one before. Where the task has a schema, an output that fits completes the run."""
    told = await read_object(request)
    now = await services.told.set_output(run.id, told.get("output", {}), run.parent.output_schema)
    return run_object(request, replace(run, run=now))


@router.post(
    "/event_stream",
    summary="Send numbered events as they arise",
    dependencies=[opened_by_token(INGEST), Depends(told_as_view(InvalidBody, InvalidParameter, PayloadTooLarge))],
)
async def event_stream(run: RunOf, request: Request, services: ServicesOf) -> dict[str, int]:
    """Take lines of ``{"seq", "event"}``, each once: what is known is left out, and a gap is refused (409).

    They are stored as they come, before the request has ended. Without any, the last number is told. In the place of an
    event that no log can hold, the log says so: it would be sent again and again, and none behind it would be taken.
    """
    taken = await services.told.ingest(run.id, [], run.run)
    try:
        async for lines in _batches(request):
            entries, final = await to_thread.run_sync(_numbered, lines)
            if entries:
                taken += await services.told.ingest(run.id, entries)
            if final is not None and final > taken.last:
                raise Conflict(f"Events up to {final} are missing; send on from {taken.last + 1}.")
    except TaskyardError as error:
        # What was stored of the request stays: the client goes on behind it.
        error.details.setdefault("last_accepted_seq", taken.last)
        raise
    return {"accepted": taken.accepted, "duplicate": taken.duplicate, "last_accepted_seq": taken.last}


@router.get("/stream_token", summary="Tokens for the run's stream, and for sending its events")
async def stream_token(run: RunOf, grant: GrantOf, services: ServicesOf) -> dict[str, str | None]:
    """A token that opens the stream of this run for 24 hours, and one for ``event_stream``; neither opens more."""
    claims = {
        "run_id": run.id,
        "task_id": run.parent.id,
        "team_id": int(run.parent.project),
        "distinct_id": user(grant.holder)["distinct_id"],
    }

    def sign(purpose: str) -> str:
        return services.tokens.sign(_AUDIENCES[purpose], claims, TOKEN_SECONDS)

    token, ingest = await to_thread.run_sync(lambda: (sign(STREAM), sign(INGEST)))
    return {"token": token, "stream_base_url": None, "event_ingest_token": ingest}


def stream_reader(keys: TokenKeys) -> TokenReader:
    """Tells what a token of a stream opens. It raises HostNotReady when this server cannot tell."""

    def read(text: str) -> Grant | None:
        if not looks_like_one(text):
            return None
        for purpose, audience in _AUDIENCES.items():
            with suppress(Unauthorized):
                claims = keys.check(audience, text)
                run, holder = claims.get("run_id"), claims.get("distinct_id")
                if isinstance(run, str) and isinstance(holder, str):
                    return Grant(holder, run, frozenset({purpose}))
        return None

    return read


# --- bodies


def _entries(body: bytes) -> list[dict[str, Any]]:
    """The entries of an ``append_log``, without pieces of messages. Raises InvalidBody, PayloadTooLarge."""
    if len(body) > BATCH_BYTES:
        raise PayloadTooLarge(f"The body has more than {format_size(BATCH_BYTES)}; send the entries in parts.")
    data = _json(body) if body.strip() else {}
    if not isinstance(data, dict):
        raise _invalid("", "Invalid data. Expected a dictionary.", "invalid")
    if "entries" not in data:
        raise _invalid("entries", "This field is required.", "missing")
    entries = data["entries"]
    if not isinstance(entries, list):
        raise _invalid("entries", f'Expected a list of items but got type "{type(entries).__name__}".', "not_a_list")
    if not entries:
        raise _invalid("entries", "At least one log entry is required", "empty")
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise _invalid(f"entries[{number}]", "Expected a dictionary of items.", "not_a_dict")
    return [entry for entry in entries if not _is_piece(entry)]


def _is_piece(entry: dict[str, Any]) -> bool:
    found: Any = entry
    for key in ("notification", "params", "update", "sessionUpdate"):
        found = found.get(key) if isinstance(found, dict) else None
    return _PIECE in (found, entry.get("type"))


async def _batches(request: Request) -> AsyncIterator[list[bytes]]:
    """The whole lines of a body as they come. Raises PayloadTooLarge beyond the limits of one request."""
    rest = b""
    size = events = 0
    async for piece in request.stream():
        size += len(piece)
        *lines, rest = (rest + piece).split(b"\n")
        lines = [line for line in lines if line.strip()]
        events += len(lines)
        _check_limits(size, events, rest)
        if lines:
            yield lines
    if rest.strip():
        _check_limits(size, events + 1, rest)
        yield [rest]


def _check_limits(size: int, events: int, rest: bytes) -> None:
    if size > INGEST_BYTES or events > INGEST_EVENTS:
        raise PayloadTooLarge(
            f"One request takes {INGEST_EVENTS} events and {format_size(INGEST_BYTES)}; go on with another."
        )
    if len(rest) > ENTRY_BYTES:
        raise PayloadTooLarge(f"One event takes at most {format_size(ENTRY_BYTES)}.")


def _numbered(lines: list[bytes]) -> tuple[list[Numbered], int | None]:
    """The events of some lines, and the number of the last one of all if that is told."""
    found: list[Numbered] = []
    final: int | None = None
    for line in lines:
        try:
            data = json.loads(line)
        except RecursionError as error:
            # Its number stands first, as agents write it.
            if (head := _HEAD.match(line)) is None:
                raise _unreadable(error) from None
            found.append(_left_out(int(head[1]), "it is nested too deep to be read."))
            continue
        except ValueError as error:
            raise _unreadable(error) from None
        if not isinstance(data, dict):
            raise _invalid("", "Each line is a JSON object.", "invalid")
        if data.get("type") == _COMPLETE:
            final = _number(data.get("final_seq"), "final_seq", least=0)
        elif not isinstance(data.get("event"), dict):
            raise _invalid("event", "Expected a dictionary of items.", "not_a_dict")
        else:
            number = _number(data.get("seq"), "seq")
            try:
                found.append(Numbered(number, json_line(data["event"], "it") + "\n"))
            except InvalidParameter as error:
                found.append(_left_out(number, error.message))
    return found, final


def _left_out(number: int, reason: str) -> Numbered:
    """What the log has in the place of an event that it cannot hold."""
    params = {"level": "warn", "message": f"Event {number} was left out: {reason}"}
    note = {"jsonrpc": "2.0", "method": "_posthog/console", "params": params}
    line = {"type": "notification", "timestamp": timestamp(datetime.now(UTC)), "notification": note}
    return Numbered(_number(number, "seq"), json_line(line, "note") + "\n")


def _number(value: Any, field: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _NUMBER_MOST:
        raise _invalid(field, "A valid integer is required.", "invalid")
    return value


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(error) from None


def _unreadable(error: ValueError | RecursionError) -> InvalidBody:
    reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is no JSON of this depth and encoding"
    return _invalid("", f"JSON parse error - {reason}", "parse_error")


def _invalid(field: str, message: str, rule: str) -> InvalidBody:
    return InvalidBody.of([Fault(field, message, rule)])
