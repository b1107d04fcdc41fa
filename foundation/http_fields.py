"""Fields of HTTP messages that pass through: which are about one connection alone, and end with it."""

from __future__ import annotations

Fields = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"http2-settings"),
    }
)
# What a field named by Connection must not take away with it: who is asked, and where the body ends.
_KEPT = frozenset({b"host", b"content-length"})


def end_to_end(fields: Fields) -> Fields:
    """The fields that are not about one connection alone."""
    named = {
        each.strip().lower() for name, value in fields if name.lower() == b"connection" for each in value.split(b",")
    }
    dropped = _HOP_BY_HOP | (named - _KEPT)
    return [(name, value) for name, value in fields if name.lower() not in dropped]
