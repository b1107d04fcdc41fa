"""The host's capacity ledger: what is free follows from the machine records, and is stored nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import psutil

from foundation.errors import InsufficientResources, TaskyardError
from foundation.settings import Settings
from foundation.units import format_size, parse_size
from machines.records import MachineRecord, Reservation

# Both disks of a machine are thin: what must be free at its start is room for what a usual run writes.
DISK_HEADROOM = 2 * 2**30
_CGROUP_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


class NoRoom(TaskyardError):
    """The host is full now; the sentence says of what, and the same request may fit later."""

    code: ClassVar[str] = "no_room"
    http_status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


@dataclass(frozen=True)
class Capacity:
    """What all machines of this host together may have. ``disk_*`` is the file system that holds the machines."""

    cpus: int
    memory_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int


def host_capacity(settings: Settings) -> Capacity:
    """What this host can give, by its hardware, its container's memory limit and the settings."""
    home = settings.home
    while not home.exists():
        home = home.parent
    disk = shutil.disk_usage(home)
    return Capacity(
        cpus=int(len(os.sched_getaffinity(0)) * settings.cpu_overcommit),
        memory_bytes=max(0, _host_memory() - parse_size(settings.memory_reserve)),
        disk_total_bytes=disk.total,
        disk_free_bytes=disk.free,
    )


def admit(capacity: Capacity, records: Sequence[MachineRecord], request: Reservation) -> None:
    """Return when the host has room for ``request`` beside ``records``.

    Raises InsufficientResources (details: requested, available) when it would not fit on the empty host either, and
    NoRoom when it may fit later.
    """
    _fits_at_all(capacity, request)
    records = [record for record in records if record.holds_room]
    cpus = capacity.cpus - sum(record.cpus for record in records)
    memory = capacity.memory_bytes - sum(record.memory_bytes for record in records)
    missing = []
    if request.cpus > cpus:
        missing.append(f"{request.cpus} CPUs ({max(0, cpus)} of {capacity.cpus} free)")
    if request.memory_bytes > memory:
        free = format_size(max(0, memory))
        missing.append(f"{format_size(request.memory_bytes)} of memory ({free} free)")
    headroom = min(DISK_HEADROOM, request.disk_bytes)
    if capacity.disk_free_bytes < headroom:
        missing.append(f"{format_size(headroom)} of free disk ({format_size(capacity.disk_free_bytes)} free)")
    if missing:
        raise NoRoom(
            f"No room for the machine now: it needs {' and '.join(missing)}; it waits until another machine ends",
            machine_id=request.machine_id,
            machines=len(records),
        )


def _fits_at_all(capacity: Capacity, request: Reservation) -> None:
    requested = {"cpus": request.cpus, "memory_bytes": request.memory_bytes, "disk_bytes": request.disk_bytes}
    available = {
        "cpus": capacity.cpus,
        "memory_bytes": capacity.memory_bytes,
        "disk_bytes": capacity.disk_total_bytes,
    }
    faults = []
    if request.cpus > capacity.cpus:
        faults.append(f"{request.cpus} CPUs are more than the {capacity.cpus} it hands out (vm.cpus)")
    if request.memory_bytes > capacity.memory_bytes:
        asked, most = format_size(request.memory_bytes), format_size(capacity.memory_bytes)
        faults.append(f"{asked} of memory are more than the {most} it hands out (vm.memory)")
    if request.disk_bytes > capacity.disk_total_bytes:
        asked, most = format_size(request.disk_bytes), format_size(capacity.disk_total_bytes)
        faults.append(f"a disk of {asked} is larger than its own of {most} (vm.disk)")
    if faults:
        raise InsufficientResources(
            f"This host can never give what the manifest asks for: {'; '.join(faults)}; ask for less",
            requested=requested,
            available=available,
        )


def _host_memory() -> int:
    total = psutil.virtual_memory().total
    try:
        limit = _CGROUP_MEMORY_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
