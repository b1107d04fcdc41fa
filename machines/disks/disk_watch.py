"""Machines on a host whose disk has run full: QEMU stops them at the write that failed, and here they are continued."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass, field

from foundation.errors import MachineError, MachineNotFound
from foundation.settings import Settings
from machines.hypervisor import qemu, qmp
from machines.paths import MachinePaths, machine_paths
from machines.records import MachineRecord, RecordStore

# With less than this they would fail at the same write again.
ROOM_TO_GO_ON = 256 * 2**20
_LOW = 2**30
CONSOLE_MAX = 4 * 2**20
_CONSOLE_KEPT = 2**20
_ANSWER_SECONDS = 2.0


@dataclass(frozen=True)
class DiskLook:
    """What one look found: ids of machines that a full disk has stopped, and of those that were continued."""

    stopped: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    free_bytes: int = 0


def look_after_disks(settings: Settings, store: RecordStore, *, thoroughly: bool) -> DiskLook:
    """Look at each machine that nobody else works on; those are looked at the next time.

    Unless ``thoroughly``, machines are asked only while the disk is nearly full.

    What a full disk has stopped stays stopped, with nothing lost, until there is room. Raises MachineError when the
    records cannot be read.
    """
    free = shutil.disk_usage(settings.home).free
    look = DiskLook(free_bytes=free)
    for record in store.read_all():
        paths = machine_paths(settings, record.id)
        bound_console(paths)
        if not thoroughly and free >= _LOW:
            continue
        if record.pid is None or record.boot_seconds is None or record.state in {"paused", "destroying"}:
            continue
        with suppress(MachineNotFound, MachineError), store.lock(record.id, patience=0) as held:
            if held and _runs(paths, record) and is_stopped_by_disk(paths):
                if free < ROOM_TO_GO_ON:
                    look.stopped.append(record.id)
                else:
                    qmp.execute(paths.qmp, "cont", limit=_ANSWER_SECONDS)
                    look.resumed.append(record.id)
    return look


def is_stopped_by_disk(paths: MachinePaths) -> bool:
    """Whether the machine's QEMU stands still because a write to the host's disk failed; False for one that is gone."""
    try:
        status = qmp.execute(paths.qmp, "query-status", limit=_ANSWER_SECONDS)
    except MachineError:
        return False
    return bool(status["status"] == "io-error")


def bound_console(paths: MachinePaths) -> None:
    """Keep the end of a serial console that a guest floods. QEMU appends, so the file may be cut under it."""
    try:
        with paths.console.open("r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size <= CONSOLE_MAX:
                return
            file.seek(size - _CONSOLE_KEPT)
            kept = file.read(_CONSOLE_KEPT)
            file.seek(0)
            file.truncate()
            file.write(kept)
    except OSError:
        # It is not there yet, or the disk is so full that its end is lost: cut it is all the same.
        return


def _runs(paths: MachinePaths, record: MachineRecord) -> bool:
    return qemu.find_process(paths, record.pid, record.process_start) is not None
