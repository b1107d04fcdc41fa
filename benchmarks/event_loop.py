"""The event loop of a case: a signal ends the case's own coroutine, which then ends in order what it has opened."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(case: Coroutine[Any, Any, T]) -> T:
    """``asyncio.run`` for the main thread. SIGINT, SIGTERM and SIGHUP cancel the case, and count once it has ended.

    A signal handler that raises would break off the loop itself, which then cancels all its tasks alike: those of a
    worker too, whose steps nobody tells to end any more, while their threads are waited for without limit. Here only
    the case is cancelled, so it shuts its worker down as ever. Further signals do not break that off.
    """
    caught: list[signal.Signals] = []

    async def cancelled_by_signals() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()

        def cancel(number: signal.Signals) -> None:
            if not caught and task is not None:
                task.cancel()
            caught.append(number)

        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, cancel, number)
        return await case

    before = {number: signal.getsignal(number) for number in _STOP_SIGNALS}
    try:
        return asyncio.run(cancelled_by_signals())
    finally:
        # The loop's end has put the default handlers in the place of those that were there.
        for number, handler in before.items():
            signal.signal(number, handler)
        if caught:
            signal.raise_signal(caught[0])
