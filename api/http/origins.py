"""Which web pages may use the service: a browser sends requests for any page, and says where the page comes from."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from foundation.errors import OriginRefused
from foundation.settings import Settings
from foundation.urls import is_local_name


class OwnOrigins:
    """Refuses each HTTP request that ``check_origin`` refuses, whatever it asks for; WebSockets do so by themselves.

    ``answer`` makes the refusal's answer.
    """

    def __init__(
        self, app: ASGIApp, settings: Settings, answer: Callable[[Request, Exception], Awaitable[Response]]
    ) -> None:
        self._app = app
        self._settings = settings
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            try:
                check_origin(request, self._settings)
            except OriginRefused as error:
                answer = await self._answer(request, error)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


def check_origin(connection: HTTPConnection, settings: Settings) -> None:
    """Let through clients that are no browser, the service's own pages, and the origins allowed.

    A page whose own name was made to lead here may read without saying where it comes from: so a service that listens
    on loopback is asked for by names that nobody else can give. Raises OriginRefused.
    """
    origin, host = connection.headers.get("origin"), connection.headers.get("host", "")
    if origin in settings.allowed_origins:
        return
    if origin is not None and (_netloc(origin) != host or not is_local_name(host)):
        raise _refused(f"Web pages of {origin[:200]}", origin)
    allowed = {_netloc(each) for each in settings.allowed_origins}
    if is_local_name(settings.api_host) and host and not is_local_name(host) and host not in allowed:
        raise _refused(f"Requests for the name {host[:200]}", f"http://{host}")


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for one that has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _refused(what: str, origin: str) -> OriginRefused:
    return OriginRefused(
        f"{what} may not use this service; TASKYARD_ALLOWED_ORIGINS says which origins may.", origin=origin[:200]
    )
