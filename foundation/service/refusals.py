"""Errors as they go over the wire: bodies of answers and frames of WebSockets, and the errors again that these mean."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from foundation.errors import ForeignServer, TaskyardError, error_of

#: Of a WebSocket that ended well, and of one that a fault of the server's ended.
NORMAL = 1000
FAILED = 1011
# Codes of one's own begin here: an error's is its HTTP status beyond it.
_OWN_CODES = 4000
_REASON_BYTES = 120
_SHOWN = 200


def as_body(error: TaskyardError) -> dict[str, Any]:
    """``{"error": code, "message", "details"}``; without details when there are none."""
    body: dict[str, Any] = {"error": error.code, "message": error.message}
    return body | {"details": error.details} if error.details else body


def as_frame(error: TaskyardError) -> str:
    """The last text frame of a WebSocket that an error ends: ``{"error": {"error", "message", "details"}}``."""
    return json.dumps({"error": as_body(error)})


def close_code(error: TaskyardError) -> int:
    """The code with which a WebSocket is closed after that frame: 4000 and the error's HTTP status."""
    return FAILED if error.http_status == HTTPStatus.INTERNAL_SERVER_ERROR else _OWN_CODES + error.http_status


def close_reason(error: TaskyardError) -> str:
    """The beginning of the error's sentence, as much as fits into a close frame."""
    return error.message.encode()[:_REASON_BYTES].decode(errors="ignore")


def error_from(body: Any, status: int | None = None) -> TaskyardError:
    """The error that a body means, given as JSON text or as what it holds; ForeignServer for what is none of ours."""
    if isinstance(body, bytes | str):
        try:
            body = json.loads(body)
        except ValueError:
            body = None
    code, message, details = _parts(body)
    known = error_of(code) if code else None
    if known is None or message is None:
        told = f"status {status}" if status else "an error"
        return ForeignServer(
            f"The host's service answered {told} that no Taskyard of this version knows: {code[:_SHOWN]}"
        )
    return known(message, **details)


def _parts(body: Any) -> tuple[str, str | None, dict[str, Any]]:
    if not isinstance(body, dict):
        return "", None, {}
    code, message, details = body.get("error"), body.get("message"), body.get("details")
    # A fact of that name would be taken for the sentence itself.
    facts = {key: fact for key, fact in details.items() if key != "message"} if isinstance(details, dict) else {}
    return code if isinstance(code, str) else "", message if isinstance(message, str) else None, facts
