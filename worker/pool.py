"""Keeps the warm pool filled while the worker runs, and ends it with the worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psutil
import structlog

from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.host import MachineHost

_LOOK_SECONDS = 2.0

log = structlog.get_logger("pool")


@asynccontextmanager
async def kept_pool(settings: Settings, host: MachineHost) -> AsyncIterator[None]:
    """Look after the pool every other second while the block runs, and leave no member of it at the end."""
    if settings.warm_pool == 0:
        yield
        return
    stopping = asyncio.Event()
    keeping = asyncio.create_task(_keep(host, stopping))
    try:
        yield
    finally:
        stopping.set()
        # A member that is being made is waited for: nobody would end it otherwise.
        await keeping
        await asyncio.to_thread(host.drain_pool)


async def _keep(host: MachineHost, stopping: asyncio.Event) -> None:
    """What fails is logged and tried again."""
    while not stopping.is_set():
        try:
            await asyncio.to_thread(host.keep_pool, lambda line: log.debug("pool", what=line), stopping.is_set)
        except (TaskyardError, OSError, ValueError, psutil.Error) as error:
            log.warning("the pool could not be kept", error=str(error))
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _LOOK_SECONDS)
