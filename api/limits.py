"""The most that a request's body may hold, told by the error body of all others."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_TOO_LARGE = 413


class BodyLimit:
    """Stops reading a body that is too large; the refusal comes from where the body is read.

    The framework's own limit answers in plain text whatever the application says.
    """

    def __init__(self, app: ASGIApp, most_bytes: int) -> None:
        self._app = app
        self._most = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        declared = Headers(scope=scope).get("content-length", "")
        taken = int(declared) if declared.isdecimal() and int(declared) > self._most else 0

        async def limited() -> Message:
            nonlocal taken
            if taken <= self._most:
                message = await receive()
                taken += len(message.get("body", b""))
                if taken <= self._most:
                    return message
            raise HTTPException(_TOO_LARGE)

        await self._app(scope, limited, send)
