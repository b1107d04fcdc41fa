"""Keeps the warm pool filled while the worker runs, and ends it with the worker."""

from __future__ import annotations

import asyncio

import structlog

from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.host import MachineHost

_LOOK_SECONDS = 2.0

log = structlog.get_logger("pool")


async def keep_pool(settings: Settings, host: MachineHost) -> None:
    """Look after the pool every other second, until cancelled; what fails is logged and tried again."""
    if settings.warm_pool == 0:
        return
    while True:
        try:
            await asyncio.to_thread(host.keep_pool, lambda line: log.debug("pool", what=line))
        except (TaskyardError, OSError) as error:
            log.warning("the pool could not be kept", error=str(error))
        await asyncio.sleep(_LOOK_SECONDS)
