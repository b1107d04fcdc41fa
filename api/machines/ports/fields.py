"""The fields of requests to a program in a machine, and of its answers, as a reverse proxy passes them on.

What a program in a machine answers is written by whoever has that machine. By path its answers come from the origin of
the API server itself, where a page of it would be one of ours, and its cookies everybody's: so they are sandboxed, and
take nothing of that origin with them. By host name each machine's port has an origin of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from foundation.http_fields import Fields, end_to_end

#: What a browser does with a document that comes by path: it has no origin, so that the API refuses what it asks.
SANDBOX = b"sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"

# What we say of the client ourselves, and what was said before us is not known to be true.
_FORWARDED = (b"x-forwarded-", b"forwarded", b"x-real-ip")
# Fields and cookies of our own: of tokens, some day.
_OURS = b"taskyard"
_OUR_COOKIE = re.compile(rb"\s*(?:__(?:host|secure)-)?taskyard", re.IGNORECASE)
# By path these are the API server's: whoever stands before it may have asked for them.
_OF_ORIGIN = frozenset({b"authorization", b"cookie"})
# The server that this runs in writes its own.
_WRITTEN_ANEW = frozenset({b"date", b"server"})
# What would change the browser's mind about more than this one answer: of every name below the domain, or of the host.
_OF_SITE = frozenset({b"clear-site-data", b"alt-svc"})
# And of the API server's origin, for answers that come by path.
_OF_HOST = frozenset(
    {
        *(b"set-cookie", b"strict-transport-security", b"public-key-pins", b"expect-ct", b"service-worker-allowed"),
        *(b"nel", b"report-to", b"reporting-endpoints", b"accept-ch", b"critical-ch", b"origin-agent-cluster"),
    }
)
_HTTP_PORT = 80
_CORS = b"access-control-"
_SOCKET = b"sec-websocket-"


@dataclass(frozen=True)
class Way:
    """How a request came. ``prefix`` is what of its path is ours: empty for one that came by host name."""

    port: int
    prefix: bytes
    client: str
    scheme: str
    host: bytes

    @property
    def by_path(self) -> bool:
        return bool(self.prefix)


def request_fields(fields: Fields, way: Way, *, upgrade: bool = False) -> Fields:
    """The fields that the program gets, without those that frame a body.

    By path its host is ``localhost:PORT``, by name the one that the client asked for.
    """
    passed = [(b"host", b"localhost:%d" % way.port if way.by_path else way.host)]
    for name, value in end_to_end(fields):
        lower = name.lower()
        if lower in {b"host", b"content-length"} or lower.startswith((*_FORWARDED, _OURS)):
            continue
        if way.by_path and lower in _OF_ORIGIN:
            continue
        if upgrade and lower.startswith(_SOCKET):
            continue
        if lower != b"cookie":
            passed.append((name, value))
        elif kept := _without_ours(value):
            passed.append((name, kept))
    passed += [
        (b"x-forwarded-for", way.client.encode("latin-1", "replace")),
        (b"x-forwarded-proto", _web(way.scheme)),
        (b"x-forwarded-host", way.host),
    ]
    if way.by_path:
        passed.append((b"x-forwarded-prefix", way.prefix))
    return passed


def answer_fields(fields: Fields, way: Way) -> Fields:
    """The fields of the answer that the client gets."""
    chunked = any(name.lower() == b"transfer-encoding" for name, _ in fields)
    dropped = _WRITTEN_ANEW | _OF_SITE
    if chunked:
        dropped |= {b"content-length"}
    if way.by_path:
        dropped |= _OF_HOST
    passed = []
    for name, value in end_to_end(fields):
        lower = name.lower()
        if lower in dropped or (way.by_path and lower.startswith(_CORS)):
            continue
        if lower == b"set-cookie":
            passed.append((name, _of_host_alone(value)))
        elif lower == b"location" and way.by_path:
            passed.append((name, _below_prefix(value, way)))
        else:
            passed.append((name, value))
    if way.by_path:
        passed.append((b"content-security-policy", SANDBOX))
    return passed


def _without_ours(cookies: bytes) -> bytes:
    return b";".join(each for each in cookies.split(b";") if not _OUR_COOKIE.match(each)).strip()


def _of_host_alone(cookie: bytes) -> bytes:
    """A cookie that goes back to its own host alone, and not to other machines or to whatever else is in the domain."""
    first, *attributes = cookie.split(b";")
    kept = [each for each in attributes if each.partition(b"=")[0].strip().lower() != b"domain"]
    return b";".join((first, *kept))


def _below_prefix(location: bytes, way: Way) -> bytes:
    """A redirect within the program, as one within its path; any other is left as it is."""
    port = rb"(?::80)?" if way.port == _HTTP_PORT else rb":%d" % way.port
    own = rb"http://(?:localhost|127\.0\.0\.1)%b(?=[/?#]|$)" % port
    path = re.sub(own, b"", location, count=1, flags=re.IGNORECASE)
    if path != location:
        return way.prefix + (path if path.startswith(b"/") else b"/" + path)
    return way.prefix + location if re.match(rb"/(?![/\\])", location) else location


def _web(scheme: str) -> bytes:
    return b"https" if scheme in {"https", "wss"} else b"http"
