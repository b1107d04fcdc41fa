"""Settings of a stack of its own: an empty home and ports that nothing uses."""

from __future__ import annotations

import os
import random
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from foundation.settings import Settings

# Below the range from which the kernel takes ports for outgoing connections.
_FIRST, _LAST = 18000, 31000
# Of processes that test beside one another, each has a part of it: what is free for one may be another's soon.
_PART = (_LAST - _FIRST) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_MINE = _FIRST + _PART * int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))


def isolated_settings(home: Path, **fields: Any) -> Settings:
    """Settings on a home, with free ports for every part."""
    base = free_ports(16)
    ports = {
        "temporal_port": base,
        "temporal_ui_port": base + 1,
        "api_port": base + 2,
        "ws_port": base + 3,
        "s3_port": base + 4,
        "worker_metrics_port": base + 14,
    }
    return Settings(**{"home": home, **ports, **fields})


def free_ports(count: int) -> int:
    """The first of ``count`` consecutive loopback ports that are free."""
    for _ in range(200):
        base = random.randrange(_MINE, _MINE + _PART - count)
        with ExitStack() as held:
            try:
                for port in range(base, base + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {count} consecutive free ports between {_MINE} and {_MINE + _PART}")
