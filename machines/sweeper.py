"""The sweeper: what dead processes and hosts left of machines is put right, in both directions, and nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from foundation.errors import MachineError
from foundation.machine_ids import MACHINE_ID
from foundation.settings import Settings
from machines.disks.disk_watch import bound_console
from machines.hypervisor import qemu
from machines.paths import machine_paths, socket_owner
from machines.pool import keeper_lives
from machines.records import MachineRecord, RecordStore
from machines.snapshots.snapshot import sweep_snapshots


def sweep(settings: Settings, store: RecordStore, destroy: Callable[[str], bool]) -> list[str]:
    """Destroy machines past their deadline or half destroyed, and remove what belongs to no machine.

    ``destroy`` gives False when somebody works on the machine, which is then left alone, as is every machine whose
    deadline lies ahead: that a process has ended is for the machine's owner to judge. Gives a line for each thing
    done. When the inventory cannot be taken completely, nothing is done at all.
    """
    try:
        # Effects before records: a record is written before its machine has any effect, so an effect found here
        # whose record is missing below has lost it for good.
        effects = _effects(settings)
        records = store.read_all()
    except (MachineError, OSError) as error:
        return [f"nothing swept, the inventory is not complete: {error}"]
    done = []
    for record in records:
        reason = _reason_to_end(record)
        if reason and destroy(record.id):
            done.append(f"destroyed machine {record.id}: {reason}")
        elif not reason:
            bound_console(machine_paths(settings, record.id))
    known = {record.id for record in records}
    done += _remove_strays(settings, effects, known)
    done += [f"removed the directory of machine {name}, which has no record" for name in store.remove_remains()]
    return done + sweep_snapshots(settings)


def _reason_to_end(record: MachineRecord) -> str | None:
    if record.state == "destroying":
        return "its removal was begun and not finished"
    if record.pooled_by is not None and not keeper_lives(record):
        return "nobody keeps the pool that it belongs to"
    if record.deadline <= datetime.now(UTC):
        return "preserved until its deadline" if record.state == "preserved" else "past its deadline"
    return None


def _effects(settings: Settings) -> dict[str, list[str]]:
    """Machine ids that have a process, a socket or a staging directory, with what they have."""
    found: dict[str, list[str]] = {}
    for machine_id in qemu.processes_of(settings.machines.resolve()):
        found.setdefault(machine_id, []).append("process")
    for name in _names(settings.sockets):
        owner = socket_owner(name)
        if owner:
            found.setdefault(owner, []).append(f"socket {name}")
    for name in _names(settings.staging):
        if MACHINE_ID.fullmatch(name):
            found.setdefault(name, []).append("staging directory")
    return found


def _remove_strays(settings: Settings, effects: dict[str, list[str]], known: set[str]) -> list[str]:
    done = []
    for machine_id in sorted(effects.keys() - known):
        paths = machine_paths(settings, machine_id)
        process = qemu.find_process(paths)
        if process is not None:
            qemu.stop(paths, process)
        for socket in (paths.qmp, paths.identity):
            socket.unlink(missing_ok=True)
        shutil.rmtree(settings.staging / machine_id, ignore_errors=True)
        done.append(
            f"removed what was left of machine {machine_id}, which has no record: {', '.join(effects[machine_id])}"
        )
    return done


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except FileNotFoundError:
        return []
