"""URLs as they may be shown, and the names in them."""

from __future__ import annotations

import re
from ipaddress import ip_address
from urllib.parse import urlsplit

_USER_PART = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """The text with the user part of each URL taken out, which may be a token; the plain user of an ssh URL stays."""
    return _USER_PART.sub(lambda match: match[0] if _plain_ssh_user(text, match) else "", text)


def is_local_name(host: str) -> bool:
    """True for localhost and for addresses, with or without a port: names that nobody else can make lead here."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _plain_ssh_user(text: str, match: re.Match[str]) -> bool:
    return text[: match.start()].endswith("ssh://") and not {":", "@"} & set(match[0][:-1])
