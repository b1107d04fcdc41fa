"""The host's capacity ledger: what is free follows from the machine records, and is stored nowhere else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

import psutil

from foundation.errors import InsufficientResources, TaskyardError
from foundation.settings import Settings
from foundation.units import format_size, parse_size
from machines.hypervisor.acceleration import expected_acceleration
from machines.hypervisor.hardware import TRANSLATION_BYTES
from machines.paths import CONSOLE, OVERLAY
from machines.records import MachineRecord, Reservation, record_of

# Both disks of a machine are thin. Each machine is promised so much of the host's disk, or as much as its disk is large
# if that is less: what it has not taken of that is nobody else's. What it writes beyond comes from what is left free.
DISK_HEADROOM = 2 * 2**30
# What a QEMU takes beside its guest's memory, and an emulating one its translations too.
_DEVICES_BYTES = 128 * 2**20
_CGROUP_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")


class NoRoom(TaskyardError):
    """The host is full now; the sentence says of what, and the same request may fit later."""

    code: ClassVar[str] = "no_room"
    http_status: ClassVar[int] = 503
    retryable: ClassVar[bool] = True


@dataclass(frozen=True)
class Capacity:
    """What all machines of this host together may have. ``disk_*`` is the file system that holds the machines.

    ``overhead_bytes`` is what each machine takes of ``memory_bytes`` beside its guest's memory, and ``written`` what
    each has written so far to its root disk and its console, in bytes by machine id.
    """

    cpus: int
    memory_bytes: int
    disk_total_bytes: int
    disk_free_bytes: int
    overhead_bytes: int = 0
    written: Mapping[str, int] = field(default_factory=dict)

    @property
    def guest_memory_bytes(self) -> int:
        """The memory of the largest guest that there is room for."""
        return max(0, self.memory_bytes - self.overhead_bytes)

    def without(self, records: Iterable[MachineRecord]) -> Capacity:
        """What these machines leave of it: nothing of it is less than 0."""
        holding = [record for record in records if record.holds_room]
        memory = self.memory_bytes - sum(record.memory_bytes + self.overhead_bytes for record in holding)
        promised = sum(
            max(0, min(DISK_HEADROOM, record.disk_bytes) - self.written.get(record.id, 0)) for record in holding
        )
        return replace(
            self,
            cpus=max(0, self.cpus - sum(record.cpus for record in holding)),
            memory_bytes=max(0, memory),
            disk_free_bytes=max(0, self.disk_free_bytes - promised),
        )


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
        overhead_bytes=_overhead(settings),
        written=_written(settings),
    )


def admit(
    capacity: Capacity, records: Sequence[MachineRecord], request: Reservation, ahead: Sequence[Reservation] = ()
) -> None:
    """Return when the host has room for ``request`` beside ``records``, and for those ``ahead`` of it too.

    Raises InsufficientResources (details: requested, available) when it would not fit on the empty host either, and
    NoRoom (details: older, how many are ahead) when it may fit later. Who waits for what only people free, the room of
    preserved machines, is ahead of nobody.
    """
    _fits_at_all(capacity, request)
    details = {
        "machine_id": request.machine_id,
        "machines": sum(record.holds_room for record in records),
        "older": len(ahead),
    }
    free = capacity.without(records)
    if missing := _missing(capacity, free, request):
        raise NoRoom(
            f"No room for the machine now: it needs {' and '.join(missing)}; it waits until another machine ends"
            + (f", and {_runs(ahead)} submitted before it" if ahead else ""),
            **details,
        )
    preserved = capacity.without(record for record in records if record.preserved) if ahead else capacity
    for older in ahead:
        if _missing(capacity, preserved, older):
            continue
        free = free.without([record_of(older)])
        if _missing(capacity, free, request):
            raise NoRoom(
                f"No room for the machine now: {_runs(ahead)} submitted before it and come first",
                **details,
            )


def _runs(ahead: Sequence[Reservation]) -> str:
    return "1 run waits that was" if len(ahead) == 1 else f"{len(ahead)} runs wait that were"


def _missing(capacity: Capacity, free: Capacity, request: Reservation) -> list[str]:
    """What the request needs more than is free of it, in words."""
    missing = []
    if request.cpus > free.cpus:
        missing.append(f"{request.cpus} CPUs ({free.cpus} of {capacity.cpus} free)")
    if request.memory_bytes > free.guest_memory_bytes:
        left = format_size(free.guest_memory_bytes)
        missing.append(f"{format_size(request.memory_bytes)} of memory ({left} free)")
    headroom = min(DISK_HEADROOM, request.disk_bytes)
    if free.disk_free_bytes < headroom:
        left = format_size(free.disk_free_bytes)
        missing.append(f"{format_size(headroom)} of free disk ({left} free, beside what is promised to machines)")
    return missing


def _fits_at_all(capacity: Capacity, request: Reservation) -> None:
    requested = {"cpus": request.cpus, "memory_bytes": request.memory_bytes, "disk_bytes": request.disk_bytes}
    available = {
        "cpus": capacity.cpus,
        "memory_bytes": capacity.guest_memory_bytes,
        "disk_bytes": capacity.disk_total_bytes,
    }
    faults = []
    if request.cpus > capacity.cpus:
        faults.append(f"{request.cpus} CPUs are more than the {capacity.cpus} it hands out (vm.cpus)")
    if request.memory_bytes > capacity.guest_memory_bytes:
        size, most = format_size(request.memory_bytes), format_size(capacity.guest_memory_bytes)
        faults.append(f"{size} of memory are more than the {most} it hands out (vm.memory)")
    if request.disk_bytes > capacity.disk_total_bytes:
        size, most = format_size(request.disk_bytes), format_size(capacity.disk_total_bytes)
        faults.append(f"a disk of {size} is larger than its own of {most} (vm.disk)")
    if faults:
        raise InsufficientResources(
            f"This host can never give what the manifest asks for: {'; '.join(faults)}; ask for less",
            requested=requested,
            available=available,
        )


def _overhead(settings: Settings) -> int:
    return _DEVICES_BYTES + (TRANSLATION_BYTES if expected_acceleration(settings) == "tcg" else 0)


def _written(settings: Settings) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in (OVERLAY, CONSOLE):
        for path in settings.machines.glob(f"*/{name}"):
            with suppress(FileNotFoundError):
                found[path.parent.name] = found.get(path.parent.name, 0) + path.stat().st_blocks * 512
    return found


def _host_memory() -> int:
    total = psutil.virtual_memory().total
    try:
        limit = _CGROUP_MEMORY_LIMIT.read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
