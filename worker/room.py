"""Writes into the bucket, for the servers, how much room this host has, where it is, and which machines it keeps."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import structlog

from activities.machine.preservation import say_preserved
from foundation.errors import TaskyardError
from machines.host import MachineHost
from storage.bucket import Bucket
from storage.hosts import SAY_SECONDS, HostRoom, ServiceAddress, say_room, withdraw

log = structlog.get_logger("room")


@asynccontextmanager
async def published_room(
    name: str, host: MachineHost, bucket: Bucket, service: ServiceAddress | None = None
) -> AsyncIterator[None]:
    """Write this host's room and its service's address every few seconds while the block runs, and remove both then."""
    publishing = asyncio.create_task(_publish_forever(name, host, bucket, service))
    try:
        yield
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
        # A bucket that is away already forgets this host by itself.
        with suppress(TaskyardError):
            await asyncio.to_thread(withdraw, bucket, name)


async def _publish_forever(name: str, host: MachineHost, bucket: Bucket, service: ServiceAddress | None) -> None:
    kept = 1  # what an earlier worker has written is not known
    while True:
        try:
            await asyncio.to_thread(_publish, name, host, bucket, service)
            if kept or any(record.preserved for record in await asyncio.to_thread(host.records)):
                kept = await asyncio.to_thread(say_preserved, name, host, bucket)
        except (TaskyardError, OSError) as error:
            log.warning("this host's room could not be written", error=str(error))
        await asyncio.sleep(SAY_SECONDS)


def _publish(name: str, host: MachineHost, bucket: Bucket, service: ServiceAddress | None) -> None:
    capacity, free = host.room()
    room = HostRoom(
        host=name,
        at=datetime.now(UTC),
        cpus=capacity.cpus,
        memory_bytes=capacity.guest_memory_bytes,
        disk_bytes=capacity.disk_total_bytes,
        free_cpus=free.cpus,
        free_memory_bytes=free.guest_memory_bytes,
        free_disk_bytes=free.disk_free_bytes,
        service=service,
    )
    say_room(bucket, room)
