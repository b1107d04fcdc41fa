"""Runs as they are watched: one poller for each watched run of this process, whoever watches it and how many do.

Who is slow misses what came in between and gets the newest; so a watcher costs no memory however slow it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from foundation.errors import EngineUnavailable, TaskyardError
from workflows.runs.messages import MachineFigures

Status = TypeVar("Status")

POLL_SECONDS = 1.0


class Looks(Protocol[Status]):
    """Who looks at runs."""

    async def look(self, task_id: str, before: Status | None, /) -> tuple[Status, MachineFigures | None, bool]:
        """A run as it stands, and whether all is over; ``before`` is the status of the last look."""
        ...


@dataclass(frozen=True)
class Look(Generic[Status]):
    """A run at one moment. ``ended`` when nothing about it can change any more."""

    status: Status
    machine: MachineFigures | None
    ended: bool


class RunWatches(Generic[Status]):
    """The watched runs of one process by id: polled from the first watcher on, until the last has left."""

    def __init__(self, looks: Looks[Status], *, poll_seconds: float = POLL_SECONDS) -> None:
        self._looks = looks
        self._poll_seconds = poll_seconds
        self._watches: dict[str, _Watch[Status]] = {}

    async def watch(self, task_id: str) -> AsyncGenerator[Look[Status]]:
        """The run as it is now and whenever it has changed, up to its end.

        Temporal is waited for when it is away. Close it (``contextlib.aclosing``) when leaving early. Raises
        TaskNotFound.
        """
        watch = self._watches.get(task_id)
        if watch is None:
            watch = self._watches[task_id] = _Watch(self._looks, task_id, self._poll_seconds)
        watch.watchers += 1
        try:
            seen = 0
            while True:
                seen, look = await watch.newer_than(seen)
                yield look
                if look.ended:
                    return
        finally:
            watch.watchers -= 1
            if not watch.watchers:
                del self._watches[task_id]
                await watch.stop()


class _Watch(Generic[Status]):
    def __init__(self, looks: Looks[Status], task_id: str, poll_seconds: float) -> None:
        self.watchers = 0
        self._looks = looks
        self._task_id = task_id
        self._poll_seconds = poll_seconds
        self._look: Look[Status] | None = None
        self._number = 0
        self._failure: TaskyardError | None = None
        self._news = asyncio.Condition()
        self._poller = asyncio.create_task(self._poll(), name=f"watch-{task_id}")

    async def newer_than(self, number: int) -> tuple[int, Look[Status]]:
        async with self._news:
            await self._news.wait_for(lambda: self._failure or self._number > number)
            if self._look is None or self._number <= number:
                raise self._failure or AssertionError("woken without news")
            return self._number, self._look

    async def stop(self) -> None:
        self._poller.cancel()
        await asyncio.gather(self._poller, return_exceptions=True)

    async def _poll(self) -> None:
        while self._look is None or not self._look.ended:
            try:
                look = await self._looks.look(self._task_id, self._look.status if self._look else None)
            except EngineUnavailable:
                pass
            except TaskyardError as error:
                async with self._news:
                    self._failure = error
                    self._news.notify_all()
                return
            else:
                if self._look != (found := Look(*look)):
                    async with self._news:
                        self._look, self._number = found, self._number + 1
                        self._news.notify_all()
            await asyncio.sleep(self._poll_seconds)
