"""Bodies of guests' requests, read within limits, and refusals in the form of the model API."""

from __future__ import annotations

from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

MAX_BODY_BYTES = 32 * 2**20
SOON = {"retry-after": "1"}

_LENGTH_DIGITS = 20
_CLIENT_GONE = 499  # nobody is left to read it


class BodyTooLarge(Exception):
    """One body is larger than any may be."""


class TooManyBodies(Exception):
    """The bodies of one machine are larger together than they may be."""


async def read_body(request: Request, hold: Callable[[int], None]) -> bytes:
    """The body; ``hold`` is told of each piece of it. Raises BodyTooLarge, ClientDisconnect, what ``hold`` raises."""
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal() and len(length) < _LENGTH_DIGITS and int(length) <= MAX_BODY_BYTES):
        raise BodyTooLarge
    body = bytearray()
    async for chunk in request.stream():
        hold(len(chunk))
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge
    return bytes(body)


def refusal(fault: Exception) -> Response:
    """The answer to a request that did not come whole."""
    if isinstance(fault, ClientDisconnect):
        return Response(status_code=_CLIENT_GONE)
    if isinstance(fault, TimeoutError):
        return error(408, "timeout_error", "The body did not come in time.", {"connection": "close"})
    if isinstance(fault, BodyTooLarge):
        return error(413, "request_too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return error(429, "rate_limit_error", "This machine sends too much at once; it may try again.", SOON)


def error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """An error of the model API."""
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status, headers)
