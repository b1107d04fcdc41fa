"""The environment of programs that are started: what each of them needs, and no key or secret of this process."""

from __future__ import annotations

import os
from collections.abc import Iterable

_EVERYWHERE = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
# For programs that fetch something from elsewhere: the way there, and whom to trust on it.
NETWORK = (
    *(name for proxy in ("http_proxy", "https_proxy", "all_proxy", "no_proxy") for name in (proxy, proxy.upper())),
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "NODE_EXTRA_CA_CERTS",
)


def child_environment(also: Iterable[str] = (), **fixed: str) -> dict[str, str]:
    """What a program may see of this process's environment: a few harmless names, those in ``also``, and ``fixed``."""
    return {name: os.environ[name] for name in (*_EVERYWHERE, *also) if name in os.environ} | fixed
