"""What each VM host last wrote of itself: its room, so that a server can refuse what none has, and where to find it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ValidationError

from foundation.errors import InsufficientResources
from foundation.units import parse_size
from storage.bucket import ObjectStore
from storage.layout import host_key, hosts_prefix

# Written every SAY_SECONDS; a host that has not for this long counts as away.
SAY_SECONDS = 10.0
STALE = timedelta(seconds=60)


class ServiceAddress(BaseModel):
    """Where a host's service is: for processes of its home the path of a socket, for others host:port, if it listens.

    ``since`` is when it began to serve; ``certificate`` (PEM) is the one with which it answers over TLS.
    """

    since: datetime
    socket: str
    address: str | None = None
    certificate: str | None = None


class HostRoom(BaseModel):
    """Room of one host at ``at``: what its machines may have, and what none of them has now. Sizes in bytes.

    Hosts of earlier versions have no ``service``.
    """

    host: str
    at: datetime
    cpus: int
    memory_bytes: int
    disk_bytes: int
    free_cpus: int
    free_memory_bytes: int
    free_disk_bytes: int
    service: ServiceAddress | None = None


def say_room(store: ObjectStore, room: HostRoom) -> None:
    """Write the host's room over its last one."""
    store.put(host_key(room.host), room.model_dump_json().encode(), content_type="application/json")


def withdraw(store: ObjectStore, host: str) -> None:
    """The host takes no runs for now."""
    store.delete([host_key(host)])


def live_hosts(store: ObjectStore) -> list[HostRoom]:
    """The rooms of hosts that have written theirs lately."""
    return _live(store.get(found.key) for found in store.list(hosts_prefix()))


def live_host(store: ObjectStore, name: str) -> HostRoom | None:
    """What the host of that name has written lately; None when it has not, or has withdrawn."""
    return next(iter(_live([store.get(host_key(name))])), None)


def require_host(rooms: Sequence[HostRoom], *, cpus: int, memory: str, disk: str) -> None:
    """Return when a host is large enough for a machine, full or not, or when none is known.

    Raises InsufficientResources with the requested figures and those of the largest hosts.
    """
    memory_bytes, disk_bytes = parse_size(memory), parse_size(disk)
    if not rooms or any(
        cpus <= room.cpus and memory_bytes <= room.memory_bytes and disk_bytes <= room.disk_bytes for room in rooms
    ):
        return
    most = {
        "cpus": max(room.cpus for room in rooms),
        "memory": max(room.memory_bytes for room in rooms),
        "disk": max(room.disk_bytes for room in rooms),
    }
    raise InsufficientResources(
        f"No host can give {cpus} CPUs, {memory} of memory and a disk of {disk} to one machine; the largest "
        f"figures of the {len(rooms)} live host(s) are {most['cpus']} CPUs, {_written(most['memory'])} and "
        f"{_written(most['disk'])}. Ask for less in vm.",
        requested_cpus=cpus,
        available_cpus=most["cpus"],
        requested_memory=memory,
        available_memory=_written(most["memory"]),
        requested_disk=disk,
        available_disk=_written(most["disk"]),
        hosts=len(rooms),
    )


def _written(size: int) -> str:
    """A size as manifests write it, rounded down."""
    return f"{size // 2**20}M" if size % 2**30 and size < 10 * 2**30 else f"{size // 2**30}G"


def _live(bodies: Iterable[bytes | None]) -> list[HostRoom]:
    oldest = datetime.now(UTC) - STALE
    rooms = []
    for body in bodies:
        # One that cannot be read was written by another version; its host is as good as away.
        with suppress(ValidationError):
            if body and (room := HostRoom.model_validate_json(body)).at > oldest:
                rooms.append(room)
    return rooms
