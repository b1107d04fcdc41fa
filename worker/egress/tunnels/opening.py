"""What a guest begins a tunnel with: TLS to some server, a request of HTTP, or something else.

It is held back until that is known, however long it takes to come: a tunnel has no second beginning.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from worker.egress.tunnels.server_name import Malformed, client_hello, looks_like_tls

#: The first line of a request of HTTP, with the space before it.
_LINE_MOST = 16 * 1024
_SPACE = b" \t\r\n\v\f"
# What a method is made of; servers differ in what they accept of it, so all of it is one.
_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,200}"
_TEXT = rb"[^\x00-\x08\x0e-\x1f\n]*"
# Each is tried in a time that grows as the line does, and no faster: guests write them.
_REQUEST_LINE = re.compile(_METHOD + rb"[ \t\v\f]" + _TEXT)
_VERSION = re.compile(rb"HTTP/([0-9])", re.IGNORECASE)
_MAY_BECOME_REQUEST = re.compile(rb"(?:" + _METHOD + rb"(?:[ \t\v\f]" + _TEXT + rb")?)?")


class Kind(Enum):
    """What the first bytes are."""

    TLS = "tls"
    HTTP = "http"
    OTHER = "other"


@dataclass(frozen=True)
class Opening:
    """The kind of the first bytes, and the servers that a TLS client names."""

    kind: Kind
    names: tuple[str, ...] = ()


def opening(data: bytes) -> Opening | None:
    """What the first bytes of a client are; None when it takes more of them to tell.

    Raises Malformed for what is made to be taken for something else.
    """
    tls = looks_like_tls(data)
    if tls is None:
        return None
    if tls:
        hello = client_hello(data)
        return None if hello is None else Opening(Kind.TLS, hello.names)
    return _http_or_other(data)


def _http_or_other(data: bytes) -> Opening | None:
    """As ``opening``, for what is no TLS. Some servers skip the space before a request."""
    # One of them alone ends a line for some servers.
    line, *rest = re.split(rb"[\r\n]", data.lstrip(_SPACE), maxsplit=1)
    if not rest and _MAY_BECOME_REQUEST.fullmatch(line):
        if len(data) > _LINE_MOST:
            raise Malformed("its first line does not end")
        return None
    versions = _VERSION.findall(line) if _REQUEST_LINE.fullmatch(line) else []
    if not versions:
        return Opening(Kind.OTHER)
    if versions[-1] != b"1":
        raise Malformed("HTTP without TLS is carried in version 1 alone")
    return Opening(Kind.HTTP)
