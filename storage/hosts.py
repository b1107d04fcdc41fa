"""What each VM host last said of its room, so that a server can tell what no host will ever give."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ValidationError

from storage.bucket import ObjectStore
from storage.layout import host_key, hosts_prefix

# Said every SAY_SECONDS; who has not for this long is taken to be away.
SAY_SECONDS = 10.0
STALE = timedelta(seconds=60)


class HostRoom(BaseModel):
    """Room of one host at ``at``: what its machines may have, and what none of them has now. Sizes in bytes."""

    host: str
    at: datetime
    cpus: int
    memory_bytes: int
    disk_bytes: int
    free_cpus: int
    free_memory_bytes: int
    free_disk_bytes: int


def say_room(store: ObjectStore, room: HostRoom) -> None:
    """Replace what the host said before."""
    store.put(host_key(room.host), room.model_dump_json().encode(), content_type="application/json")


def withdraw(store: ObjectStore, host: str) -> None:
    """The host takes no runs for now."""
    store.delete([host_key(host)])


def live_hosts(store: ObjectStore) -> list[HostRoom]:
    """What the hosts said that have spoken lately."""
    return _live(store.get(found.key) for found in store.list(hosts_prefix()))


def _live(bodies: Iterable[bytes | None]) -> list[HostRoom]:
    oldest = datetime.now(UTC) - STALE
    rooms = []
    for body in bodies:
        # One that cannot be read was written by another version; its host is as good as away.
        with suppress(ValidationError):
            if body and (room := HostRoom.model_validate_json(body)).at > oldest:
                rooms.append(room)
    return rooms
