"""How large a request's body may be, and that it has no encoding; refused with the error body of all others."""

from __future__ import annotations

import re

from starlette._utils import get_route_path
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOO_LARGE = 413
_NOT_READ = 415
# No route reads the body of these; the server throws it away piece by piece.
_BODILESS = frozenset({"GET", "HEAD"})


class BodyLimit:
    """Stops reading a body that is too large; the refusal comes from where the body is read.

    The framework's own limit answers in plain text whatever the application says. What passes through to a machine, at
    the paths that are ``streamed``, is held nowhere: its end is who limits it.
    """

    def __init__(self, app: ASGIApp, most_bytes: int, streamed: re.Pattern[str] | None = None) -> None:
        self._app = app
        self._most = most_bytes
        self._streamed = streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        streamed = self._streamed is not None and self._streamed.fullmatch(get_route_path(scope))
        if scope["type"] != "http" or scope["method"] in _BODILESS or streamed:
            # A stream that answers a GET only looks out for its client's leaving: a refusal would cut it off.
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        declared = headers.get("content-length", "").strip().lstrip("0")
        digits = declared if declared.isdecimal() else ""
        beyond = len(digits) > len(str(self._most)) or int(digits or 0) > self._most
        received = self._most + 1 if beyond else 0
        encoding = headers.get("content-encoding", "identity").strip().lower()

        async def limited() -> Message:
            nonlocal received
            if encoding not in {"", "identity"}:
                raise HTTPException(_NOT_READ, f"A body is not read as '{encoding[:40]}'; send it without an encoding.")
            if received <= self._most:
                message = await receive()
                received += len(message.get("body", b""))
                if received <= self._most:
                    return message
            raise HTTPException(_TOO_LARGE)

        await self._app(scope, limited, send)
