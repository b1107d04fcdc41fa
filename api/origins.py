"""Which web pages may use the service: a browser sends requests for any page, and says where the page comes from."""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from foundation.errors import OriginRefused
from foundation.settings import Settings


async def own_origin(connection: HTTPConnection) -> None:
    """A dependency that lets through clients that are no browser, the service's own pages, and the origins allowed.

    Raises OriginRefused.
    """
    origin = connection.headers.get("origin")
    settings: Settings = connection.app.state.settings
    if origin is None or origin in settings.allowed_origins or _is_own(origin, connection.headers.get("host", "")):
        return
    raise OriginRefused(
        f"Web pages of {origin[:200]} may not use this service; TASKYARD_ALLOWED_ORIGINS says which may.", origin=origin
    )


def _is_own(origin: str, host: str) -> bool:
    """True for the service's own page under a name that nobody else can make lead here."""
    try:
        parts = urlsplit(origin)
        name = parts.hostname or ""
    except ValueError:
        return False
    return parts.netloc == host and (name == "localhost" or _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
