"""A host's service over machines that are mere records, and a server's connections to it: real sockets between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from starlette.routing import BaseRoute

from api.machines.hosts import Find, Hosts, MachineReference
from foundation.errors import GuestUnreachable, MachineNotFound
from foundation.settings import Settings
from machines.host import MachineHost
from machines.records import MachineRecord
from storage.hosts import HostRoom, ServiceAddress, say_room
from tests.stand_ins.memory_bucket import MemoryBucket
from worker.service.application import ROUTES
from worker.service.server import HostService

MACHINE = "vm-0000000000000001"
EPOCH = "e1"


class RecordedMachines:
    """Takes the place of ``MachineHost``: what the records say is so."""

    def __init__(self) -> None:
        self.known: dict[str, MachineRecord] = {}
        self.dead: set[str] = set()
        self.mute: set[str] = set()
        self.shells: dict[str, Any] = {}

    def add(self, machine_id: str = MACHINE, **fields: Any) -> MachineRecord:
        now = datetime.now(UTC)
        facts: dict[str, Any] = {
            "id": machine_id, "owner_workflow": "task-one", "owner_run": "r", "cpus": 1, "memory_bytes": 1,
            "disk_bytes": 1, "state": "running", "created_at": now,
            "deadline": now + timedelta(hours=1), "epoch": EPOCH,
        }  # fmt: skip
        record = MachineRecord.model_validate(facts | fields)
        self.known[machine_id] = record
        return record

    def record(self, machine_id: str) -> MachineRecord:
        if machine_id not in self.known:
            raise MachineNotFound(f"No machine {machine_id} is on this host")
        return self.known[machine_id]

    def records(self) -> list[MachineRecord]:
        return list(self.known.values())

    def is_alive(self, machine_id: str) -> bool:
        return machine_id in self.known and machine_id not in self.dead

    def connect(self, machine_id: str) -> Any:
        if machine_id in self.mute:
            raise GuestUnreachable("The guest does not answer over SSH; the machine runs, so it may answer later")
        return self.shells.get(machine_id, SimpleNamespace(id=machine_id))


@dataclass
class HostSite:
    """The service, what it is of, and the server's end of it."""

    settings: Settings
    machines: RecordedMachines
    bucket: MemoryBucket
    routes: Sequence[BaseRoute]
    hosts: Hosts
    service: HostService | None = None
    looks: list[bool] = field(default_factory=list)

    async def start(self) -> None:
        bucket = cast("Any", self.bucket)
        self.service = HostService(self.settings, cast("MachineHost", self.machines), bucket, self.routes)
        await self.service.start()
        say_room(self.bucket, self.room())

    async def stop(self) -> None:
        if self.service is not None:
            await self.service.stop()
        self.service = None

    @property
    def address(self) -> ServiceAddress:
        assert self.service
        return self.service.address

    def room(self, **fields: Any) -> HostRoom:
        figures = ("cpus", "memory_bytes", "disk_bytes", "free_cpus", "free_memory_bytes", "free_disk_bytes")
        said: dict[str, Any] = {"host": self.settings.host_name, "at": datetime.now(UTC), **dict.fromkeys(figures, 1)}
        service = self.service.address if self.service else None
        return HostRoom.model_validate(said | {"service": service} | fields)

    def found(self, *references: MachineReference) -> Find:
        """Finds each of these in turn, the last one ever after."""
        left = list(references or [self.reference()])

        async def find(anew: bool) -> MachineReference:
            self.looks.append(anew)
            return left.pop(0) if len(left) > 1 else left[0]

        return find

    def reference(self, **fields: Any) -> MachineReference:
        return MachineReference(**({"host": self.settings.host_name, "id": MACHINE, "epoch": EPOCH} | fields))


@asynccontextmanager
async def host_site(settings: Settings, routes: Sequence[BaseRoute] = (), **server: Any) -> AsyncIterator[HostSite]:
    """The service with further routes, started. ``server`` has other settings of the server, if it is elsewhere."""
    bucket = MemoryBucket()
    hosts = Hosts(Settings(**server) if server else settings, cast("Any", bucket))
    site = HostSite(settings, RecordedMachines(), bucket, (*ROUTES, *routes), hosts)
    site.machines.add()
    await site.start()
    try:
        yield site
    finally:
        await hosts.close()
        await site.stop()
