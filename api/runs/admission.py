"""Whether a manifest can ever be run: on a host, by what the live ones say, and with what it names beside itself."""

from __future__ import annotations

import asyncio
import time

from api.environments.core import Environments
from foundation.errors import BucketUnavailable
from storage.bucket import Bucket
from storage.hosts import HostRoom, live_hosts, require_host
from workflows.specs.wire import Manifest

_KNOWN_SECONDS = 5.0
# A server and the worker beside it are started at once: what is submitted meanwhile waits for the first host's room.
FIRST_SECONDS = 8.0
_FIRST_LOOK_SECONDS = 0.25


class Admission:
    """Refuses what no live host is large enough for, and what names sandbox environments that are not there for it.

    What fits a host that is full now is taken, and waits.
    """

    def __init__(self, bucket: Bucket, environments: Environments) -> None:
        self._bucket = bucket
        self._environments = environments
        self._rooms: list[HostRoom] = []
        self._known_until = 0.0
        self._first_until = time.monotonic() + FIRST_SECONDS

    async def check(self, manifest: Manifest, viewer: str | None = None) -> None:
        """Return when a host is large enough, or when none is known: the run then waits, and its hosts decide.

        ``viewer`` is who submits it, None for nobody who is known. Raises InsufficientResources with the requested
        figures and those of the largest hosts; InvalidManifest for an environment that is not there for the viewer.
        """
        await self._environments.check(manifest.secrets, viewer)
        vm = manifest.vm
        require_host(await self._hosts(), cpus=vm.cpus, memory=vm.memory, disk=vm.disk)

    async def _hosts(self) -> list[HostRoom]:
        """The live hosts; just after the start, the first of them is waited for a moment."""
        while not (rooms := await self._live()) and time.monotonic() < self._first_until:
            await asyncio.sleep(_FIRST_LOOK_SECONDS)
            self._known_until = 0.0
        return rooms

    async def _live(self) -> list[HostRoom]:
        if time.monotonic() >= self._known_until:
            try:
                self._rooms = await asyncio.to_thread(live_hosts, self._bucket)
            except BucketUnavailable:
                # Temporal alone decides whether a run is taken; without the bucket, its host will.
                self._rooms = []
            self._known_until = time.monotonic() + _KNOWN_SECONDS
        return self._rooms
