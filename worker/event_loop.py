"""The event loop of a worker's process."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import uvloop


def run_on_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run to its end, on the loop that guests' tunnels are served on.

    Of what the proxy does for a small message, Python's own loop is the greater part.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
