"""Which web pages may use the service: a browser sends requests for any page, and says where the page comes from."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from foundation.errors import OriginRefused
from foundation.settings import Settings
from foundation.urls import is_local_name


async def own_origin(connection: HTTPConnection) -> None:
    """A dependency that lets through clients that are no browser, the service's own pages, and the origins allowed.

    A page whose own name was made to lead here may read without saying where it comes from: so a service that listens
    on loopback is asked for by names that nobody else can give. Raises OriginRefused.
    """
    settings: Settings = connection.app.state.settings
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
