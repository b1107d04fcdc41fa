"""Whether any host could ever run a manifest, by what the live hosts say of themselves."""

from __future__ import annotations

import asyncio
import time

from foundation.errors import BucketUnavailable, InsufficientResources
from foundation.units import parse_size
from storage.bucket import Bucket
from storage.hosts import HostRoom, live_hosts
from workflows.wire import Manifest

_KNOWN_SECONDS = 5.0


class Admission:
    """Refuses what no live host is large enough for. What fits a host that is full now is taken, and waits."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._rooms: list[HostRoom] = []
        self._known_until = 0.0

    async def check(self, manifest: Manifest) -> None:
        """Return when a host is large enough, or when none is known: a run then waits for one to come.

        Raises InsufficientResources with the requested figures and those of the largest hosts.
        """
        rooms = await self._live()
        vm = manifest.vm
        cpus, memory, disk = vm.cpus, parse_size(vm.memory), parse_size(vm.disk)
        if not rooms or any(
            cpus <= room.cpus and memory <= room.memory_bytes and disk <= room.disk_bytes for room in rooms
        ):
            return
        most = {
            "cpus": max(room.cpus for room in rooms),
            "memory": max(room.memory_bytes for room in rooms),
            "disk": max(room.disk_bytes for room in rooms),
        }
        raise InsufficientResources(
            f"No host can give {cpus} CPUs, {vm.memory} of memory and a disk of {vm.disk} to one machine; the largest "
            f"figures of the {len(rooms)} live host(s) are {most['cpus']} CPUs, {_written(most['memory'])} and "
            f"{_written(most['disk'])}. Ask for less in vm.",
            requested_cpus=cpus,
            available_cpus=most["cpus"],
            requested_memory=vm.memory,
            available_memory=_written(most["memory"]),
            requested_disk=vm.disk,
            available_disk=_written(most["disk"]),
            hosts=len(rooms),
        )

    async def _live(self) -> list[HostRoom]:
        if time.monotonic() >= self._known_until:
            try:
                self._rooms = await asyncio.to_thread(live_hosts, self._bucket)
            except BucketUnavailable:
                # Temporal alone decides whether a run is taken; without the bucket, its host will.
                self._rooms = []
            self._known_until = time.monotonic() + _KNOWN_SECONDS
        return self._rooms


def _written(size: int) -> str:
    """A size as manifests write it, rounded down."""
    return f"{size // 2**20}M" if size % 2**30 and size < 10 * 2**30 else f"{size // 2**30}G"
