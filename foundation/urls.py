"""Credentials in URLs, in every spelling: whether a text holds some, and the text without; and names of hosts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

REDACTED = "[redacted]"

# Tokens that their issuers made to be recognised, wherever they stand.
TOKEN = re.compile(
    r"(?<![A-Za-z0-9])(?:gh[opsur]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|gl(?:pat|dt|rt|cbt|ptt|ft|imt|agent|soat|ffct)-[\w.-]{8,}|xox[a-z]-[\w-]{10,}"
    r"|sk-(?:ant|proj|live|test|or|svcacct)-[\w-]{16,}|sk-[A-Za-z0-9]{20,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{30,}"
    r"|npm_[A-Za-z0-9]{20,}|pypi-AgE[\w-]{20,}|hf_[A-Za-z0-9]{20,}|ATATT[\w=-]{20,}"
    r"|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)

# With these any user part is a credential: a token is often the name alone. With others a plain name is none.
_USER_IS_SECRET = frozenset({"http", "https", "ws", "wss"})
_AT = re.compile("@|%(?:25)*40")
# Browsers, and many a library, take a backslash for a slash, and one of them for two.
_AUTHORITY = re.compile(
    r"((?:[a-z][a-z0-9+.-]{0,30}:)?//|(?:https?|wss?):[/\\]{1,4})([^\s/?#\\][^\s/?#]*)", re.IGNORECASE
)
# A password in which a slash or a question mark stands as it is: what follows the colon is no port.
_BROKEN = re.compile(
    r"((?:[a-z][a-z0-9+.-]{0,30}:)?//)[^\s/?#@:\[]{0,200}:(?!\d*[/?#])[^\s/?#@'\"]{0,200}[/?#][^\s@]{0,200}@",
    re.IGNORECASE,
)
# A URL that is itself the value of a parameter.
_NESTED = re.compile(r"((?:https?|wss?)%(?:25)*3a(?:%(?:25)*2f){2})[^\s&/?#]*(?:@|%(?:25)*40)", re.IGNORECASE)
# A number before a slash is a port, and what follows ``@`` may be the digest of a container image.
_SCP = re.compile(
    r"(?<![^\s'\"(<\[=,])([\w.+-]{1,100})(?::(?!//|\d+/)|%(?:25)*3a)[^\s@]{1,200}@(?!sha\d+:)(?=[\w.-]+:)",
    re.IGNORECASE,
)
# Some hosts take a token as a part of the path, after the name that stands for the user.
_SEGMENT = re.compile(
    r"((?<!/)/(?:x-[\w-]{0,40}(?:token|oauth)[\w-]{0,40}|oauth2?|gitlab-ci-token|private[_-]token|access[_-]token)"
    r"(?::|=|%3a|%3d))([^\s/?#&]+)",
    re.IGNORECASE,
)
# A value may hold what begins a parameter, but not a whole one: that is the next.
_PARAMETER = re.compile(r"([?&#;])([^\s=&#;?]{1,200})=((?:[^\s&?#;]|[?#;](?![^\s=&#;?]{1,200}=))+)")
_TELLING = re.compile(
    r".*(?:token(?!s|iz)|secret|passw|passphrase|api_?key|access_?key|credential|signature|jwt|bearer|cookie).*"
    r"|pwd|pass|auth|oauth|.*authorization|sig|key|session|sessionid"
)
_REFERENCE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_REFERRED = "\ue000"
_DECODINGS = 3


def has_credentials(text: str) -> bool:
    """Whether a URL in the text holds credentials: a user part, a password, a token as parameter or in its path.

    So does text that holds, wherever it stands, a token that its issuer made to be recognised.

    A reference (``${NAME}``) in their place is none.
    """
    return any(_holds_some(level) for level in _decoded(_REFERENCE.sub(_REFERRED, text)))


def without_credentials(text: str) -> str:
    """The text with the credentials of each URL taken out; the plain user of an ssh URL stays."""
    if _AT.search(text):
        text = _BROKEN.sub(r"\1", text)
        text = _AUTHORITY.sub(lambda match: match[1] + (_host(match[2]) if _has_user(match) else match[2]), text)
        text = _NESTED.sub(r"\1", text)
        text = _SCP.sub(r"\1@", text)
    text = _PARAMETER.sub(_without_value, text)
    text = _SEGMENT.sub(lambda match: match[0] if _REFERENCE.fullmatch(match[2]) else match[1] + REDACTED, text)
    return TOKEN.sub(REDACTED, text)


@lru_cache
def is_telling(name: str) -> bool:
    """Whether what is called so (a parameter, header or variable) is a secret more often than not."""
    for level in _decoded(name):
        name = level
    return _TELLING.fullmatch(re.sub(r"[^a-z0-9]", "", name.lower())) is not None


def is_local_name(host: str) -> bool:
    """True for localhost and for addresses, with or without a port: names that nobody else can make lead here."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        ip_address(name)
    except ValueError:
        return name == "localhost"
    return True


def _holds_some(text: str) -> bool:
    return (
        (
            _AT.search(text) is not None
            and (
                _BROKEN.search(text) is not None
                or _SCP.search(text) is not None
                or any(_has_user(match) for match in _AUTHORITY.finditer(text))
            )
        )
        or any(_is_secret(match) for match in _PARAMETER.finditer(text))
        or any(match[2] != _REFERRED for match in _SEGMENT.finditer(text))
        or TOKEN.search(text) is not None
    )


def _has_user(match: re.Match[str]) -> bool:
    """Whether the authority of a URL has a user part that is a credential."""
    *_, decoded = _decoded(match[2])
    user, at, _ = decoded.rpartition("@")
    name, colon, password = user.partition(":")
    if not at or TOKEN.search(user):
        return bool(at)
    if password == _REFERRED or (name == _REFERRED and password in {"", "x-oauth-basic"}):
        return False
    return bool(colon) or match[1].rstrip(":/\\").lower().rpartition("+")[2] in _USER_IS_SECRET


def _host(authority: str) -> str:
    *_, decoded = _decoded(authority)
    return decoded.rpartition("@")[2]


def _is_secret(parameter: re.Match[str]) -> bool:
    return is_telling(parameter[2]) and parameter[3] != _REFERRED


def _without_value(parameter: re.Match[str]) -> str:
    if not is_telling(parameter[2]) or _REFERENCE.fullmatch(parameter[3]) or parameter[3].startswith(REDACTED):
        return parameter[0]
    ending = parameter[3][len(parameter[3].rstrip("'\"`)]}>,.:;")) :]
    return f"{parameter[1]}{parameter[2]}={REDACTED}{ending}"


def _decoded(text: str) -> Iterator[str]:
    """The text, and what it is when its percent-encodings are read, once and again."""
    yield text
    for _ in range(_DECODINGS):
        before, text = text, unquote(text)
        if text == before:
            return
        yield text
