"""Settings of a stack of its own: an empty home and ports that nothing uses."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from foundation.settings import Settings

# Below the range from which the kernel takes ports for outgoing connections.
_FIRST, _LAST = 18000, 31000


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
        base = random.randrange(_FIRST, _LAST - count)
        with ExitStack() as held:
            try:
                for port in range(base, base + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise RuntimeError(f"no {count} consecutive free ports between {_FIRST} and {_LAST}")
