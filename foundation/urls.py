"""URLs as they may be shown."""

from __future__ import annotations

import re

_USER_PART = re.compile(r"(?<=://)[^/\s]*@")


def without_credentials(text: str) -> str:
    """The text with the user part of each URL taken out, which may be a token; the plain user of an ssh URL stays."""
    return _USER_PART.sub(lambda match: match[0] if _plain_ssh_user(text, match) else "", text)


def _plain_ssh_user(text: str, match: re.Match[str]) -> bool:
    return text[: match.start()].endswith("ssh://") and not {":", "@"} & set(match[0][:-1])
