"""Tokens with which an API server comes to a host's service: each for one host, one thing there, one purpose, a minute.

A token holds when it expires and a mark (HMAC) that only those can make who have the key. What it is good for is not in
it: the host marks what it is asked for anew, and compares. So a token that was made for anything else is none.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from typing import Literal

from foundation.errors import Unauthorized

#: What is asked for: the machine itself, what runs in it, its files, its ports, a run's log.
Purpose = Literal["machine", "processes", "files", "ports", "log"]

LIFETIME_SECONDS = 60
# By how much the clocks of a server and a host may differ.
CLOCKS_APART_SECONDS = 30

_PREFIX = "Bearer "
_TOKEN = re.compile(r"(\d{1,12})\.([0-9a-f]{64})")


def make_token(key: bytes, *, host: str, subject: str, purpose: Purpose, now: float | None = None) -> str:
    """A token for the host with that name. ``subject`` is a machine's id, or the place of a run whose log is read."""
    expires = int(time.time() if now is None else now) + LIFETIME_SECONDS
    return f"{expires}.{_mark(key, host, subject, purpose, expires)}"


def authorization(token: str) -> str:
    """The value of the header ``Authorization`` with a token."""
    return _PREFIX + token


def check_authorization(
    key: bytes, value: str | None, *, host: str, subject: str, purpose: Purpose, now: float | None = None
) -> None:
    """Return when the header's value is a token for just this, which has not expired. Raises Unauthorized."""
    now = time.time() if now is None else now
    found = _TOKEN.fullmatch((value or "").removeprefix(_PREFIX))
    if found is None or not (value or "").startswith(_PREFIX):
        raise Unauthorized("This host's service is asked by Taskyard's servers, which bring a token")
    expires = int(found[1])
    if not hmac.compare_digest(found[2], _mark(key, host, subject, purpose, expires)):
        raise Unauthorized(
            f"The token is none of host {host} for this; servers and hosts need the same TASKYARD_HOST_KEY"
        )
    if not now - CLOCKS_APART_SECONDS <= expires <= now + LIFETIME_SECONDS + CLOCKS_APART_SECONDS:
        raise Unauthorized(f"The token has expired, or the clocks of host {host} and of the server are apart; set them")


def _mark(key: bytes, host: str, subject: str, purpose: str, expires: int) -> str:
    # Each part with its length before it: no two lists of parts are the same text.
    parts = (host, subject, purpose, str(expires))
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()
