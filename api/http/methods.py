"""Which methods a path takes, and the one that every path takes where it takes GET: HEAD."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")


def methods_of(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods of the path that is asked for, by all of its routes, in the order of the alphabet; none of no path.

    The framework names those of the first route only.
    """
    return [method for method in _METHODS if route_of(routes, scope, method) is not None]


def route_of(routes: Sequence[BaseRoute], scope: Scope, method: str) -> BaseRoute | None:
    """The route that would take a request for this path with this method."""
    asked = {**scope, "method": method}
    return next((route for route in routes if route.matches(asked)[0] is Match.FULL), None)


class HeadOfGet:
    """Answers HEAD with what GET begins with. Whoever writes the rest is told that its reader has gone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}

        async def send_head(message: Message) -> None:
            if message["type"] != "http.response.start":
                return
            # What stands around reads from its own scope which route there was.
            scope["route"] = asked.get("route")
            await send(message)
            # With that the answer is whole: a stream, which would have no end, hears of it as of a client's leaving.
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(asked, receive, send_head)
