"""What every stream of a run is put together from: several sources as one, and the moment when its log is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager, suppress
from math import inf
from typing import Any, TypeVar

_HELD = 16
# The log of a run that was ended past its own steps is never closed: this long without a line is its end.
_LOG_PATIENCE_SECONDS = 5.0

T = TypeVar("T")
Put = Callable[[T], Awaitable[None]]
Source = Callable[[Put[T]], Coroutine[Any, Any, None]]


class LogEnd:
    """Knows when a followed log has no line to come. Whoever reads the log tells it of each line."""

    def __init__(self) -> None:
        self._over = asyncio.Event()
        self._last_line = time.monotonic()

    def begin_line(self) -> None:
        """A line has come, and is handed on: while the client is slow, the log is not silent."""
        self._last_line = inf

    def end_line(self) -> None:
        """The line was handed on."""
        self._last_line = time.monotonic()

    def set(self) -> None:
        """The log is closed, or nobody reads it."""
        self._over.set()

    async def wait(self) -> None:
        """Wait for the log's last line, of a run that has ended."""
        began = time.monotonic()
        while time.monotonic() - max(began, self._last_line) < _LOG_PATIENCE_SECONDS:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), _LOG_PATIENCE_SECONDS / 10)
                return


@asynccontextmanager
async def merged(main: Source[T], *beside: Source[T]) -> AsyncIterator[AsyncGenerator[T]]:
    """The events of several sources until the main one ends; few are held, so that a source waits for who reads."""
    held: asyncio.Queue[tuple[T] | None] = asyncio.Queue(_HELD)
    failures: list[BaseException] = []

    async def put(event: T) -> None:
        await held.put((event,))

    async def run() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                others = [group.create_task(source(put)) for source in beside]
                await main(put)
                for other in others:
                    other.cancel()
        except* Exception as group_of_errors:  # noqa: BLE001 -- raised again where the events are read
            failures.append(_first(group_of_errors))
        await held.put(None)

    async def events() -> AsyncGenerator[T]:
        while (event := await held.get()) is not None:
            yield event[0]
        if failures:
            raise failures[0]

    running = asyncio.create_task(run())
    try:
        async with aclosing(events()) as coming:
            yield coming
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    error: BaseException = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
