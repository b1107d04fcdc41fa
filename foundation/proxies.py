"""The proxy that the environment names for a URL, read with care: what cannot be used is named in a sentence."""

from __future__ import annotations

import os
from urllib.parse import urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from foundation.errors import HostNotReady
from foundation.urls import is_local_name, without_credentials

_SCHEMES = {"http", "https"}


def proxy_for(url: str) -> str | None:
    """The URL of the proxy for requests to ``url``; None for none, as for this host itself and what NO_PROXY names.

    Raises HostNotReady, with the variable's name, when it holds no proxy that can be used.
    """
    target = urlsplit(url)
    if is_local_name(target.netloc.rpartition("@")[2]) or _is_excepted(target.hostname or ""):
        return None
    for name in (f"{target.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            value = os.environ.get(variable, "").strip()
            if value:
                return _usable(variable, value)
    return None


def _is_excepted(host: str) -> bool:
    names = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    return bool(proxy_bypass_environment(host, {"no": names}))


def _usable(variable: str, value: str) -> str:
    proxy = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0 and proxy.isprintable()
    except ValueError:
        usable = False
    if not usable or " " in proxy:
        shown = without_credentials(proxy)[:200]
        raise HostNotReady(
            f"The environment variable {variable} holds {shown!r}, which is no proxy that can be used: it has to be "
            "http://host:port or https://host:port. Correct or unset it, or name the server in NO_PROXY"
        )
    return proxy
