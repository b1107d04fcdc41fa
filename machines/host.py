"""The machines of this host: reserve, start, enter, preserve, destroy. Every step may be repeated after a crash."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil

from foundation.errors import Conflict, GuestUnreachable, MachineError, MachineLost, MachineNotFound, TaskyardError
from foundation.settings import Settings
from machines import pool
from machines.boot import Boot
from machines.disks.attachment import attach_workspace
from machines.disks.disk_watch import DiskLook, is_stopped_by_disk, look_after_disks
from machines.entrance import Entrances
from machines.hypervisor import qemu
from machines.hypervisor.acceleration import usable_acceleration
from machines.images.store import Image, image_of
from machines.ledger import Capacity, NoRoom, host_capacity
from machines.paths import MachinePaths, machine_paths, volatile_file
from machines.pause import Pause
from machines.records import MachineRecord, RecordStore, Reservation, record_of
from machines.shape import made_of, new_shape
from machines.snapshots.snapshot import held_snapshot
from machines.ssh import GuestShell
from machines.sweeper import sweep
from machines.waiting import WaitingLine

__all__ = ["MachineHost", "MachineRecord", "NoRoom", "Reservation"]

_DESTROY_PATIENCE_SECONDS = 0.2


class MachineHost:
    """The machines of one home directory on this host. Synchronous and thread-safe; other processes may do the same."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._store = RecordStore(settings)
        self._line = WaitingLine()
        self._entrances = Entrances(self._store.read, self._paths, self.is_alive)

    def reserve(self, request: Reservation) -> MachineRecord:
        """Reserve room for a machine; the record there is when it was reserved before.

        Raises NoRoom when the host is full now, or older requests wait for the room that it has, and
        InsufficientResources when it would not do empty either.
        """
        self._store.directory(request.machine_id)  # refuses what is no machine id
        self._settings.make_home()
        with self._store.ledger_lock():
            for record in self._store.read_all():
                if record.id != request.machine_id:
                    continue
                if record.state == "destroying":
                    raise NoRoom(f"Machine {record.id} is still being destroyed; it can be made anew when it is gone")
                self._line.leave(request.machine_id)
                return record
            given_up = self._line.in_turn(
                request, lambda ahead: pool.admit_before_members(self._settings, self._store, request, ahead)
            )
            made = self._store.write(record_of(request))
        for member_id in given_up:
            self.destroy(member_id)
        return made

    def ensure_running(self, machine_id: str, image: Image, report: Callable[[str], None]) -> MachineRecord:
        """Have the reserved machine run and answer over SSH; twice gives one machine.

        A machine that was up before and whose process has ended starts again from its own disk. Raises
        MachineNotFound, MachineLost (it is being destroyed), MachineError (with the end of the serial console).
        """
        with self._store.lock(machine_id):
            record = self._living_record(machine_id)
            if record.booted_once and not made_of(record, image.digest):
                raise MachineError(
                    f"Machine {machine_id} was made from image {record.image_digest}, not from {image.digest}; "
                    "destroy it and make a new one"
                )
            process = self._process(record)
            shell = self._entrances.shell(machine_id)
            if record.state == "reserved" and process is not None and self._paths(machine_id).process_name.exists():
                self._stop(machine_id)  # a hand-over from the pool that was cut short
                process = None
            if record.state == "paused":
                return self._resumed(record, process)
            if process is not None and record.boot_seconds is not None and record.pid == process.pid:
                shell.run("true")
                return record
            if process is None and record.state == "reserved":
                served = self._from_pool(record, image, report)
                if served is not None:
                    return served
            boot = Boot(self._settings, self._store, self._paths(machine_id), image, shell, report)
            return boot.run(record, process)

    def prepare_shape(self, image: Image, cpus: int, memory_bytes: int, report: Callable[[str], None]) -> None:
        """Have the snapshot that machines of this shape are restored from. MachineError when it cannot be made."""
        if self._settings.use_snapshots:
            shape = new_shape(image, cpus, memory_bytes, usable_acceleration(self._settings, report))
            with held_snapshot(self._settings, shape, report):
                pass

    def attach_workspace(self, machine_id: str, image_path: Path) -> None:
        """Give the running machine the disk image, which becomes its own, and mount it at /workspace.

        Raises MachineLost when the machine does not run, MachineError when there is no such image.
        """
        with self._store.lock(machine_id):
            self._require_alive(machine_id)
            attach_workspace(self._paths(machine_id), self._entrances.shell(machine_id), image_path)

    def record(self, machine_id: str) -> MachineRecord:
        """The machine's record. Raises MachineNotFound."""
        return self._store.read(machine_id)

    def records(self) -> list[MachineRecord]:
        """The records of all machines of this host, oldest first."""
        return self._store.read_all()

    def room(self) -> tuple[Capacity, Capacity]:
        """What all machines of this host together may have, and what of it none of them has now.

        Members of the warm pool give way to any machine, and a paused machine has given up its room.
        """
        capacity = host_capacity(self._settings)
        free = capacity.without(each for each in self._store.read_all() if each.pooled_by is None)
        return capacity, free

    def look_after_disks(self, *, thoroughly: bool = True) -> DiskLook:
        """Let machines go on that QEMU stopped because the host's disk was full, once it has room; bound consoles.

        Unless ``thoroughly``, the machines are asked only while the disk is nearly full.
        """
        return look_after_disks(self._settings, self._store, thoroughly=thoroughly)

    def is_stopped_by_disk(self, machine_id: str) -> bool:
        """True while QEMU holds the machine because the host's disk is full; False for one that is gone."""
        return is_stopped_by_disk(self._paths(machine_id))

    def is_alive(self, machine_id: str) -> bool:
        """True while the machine's own QEMU process runs, whether its guest answers or not."""
        try:
            return self._process(self._store.read(machine_id)) is not None
        except MachineNotFound:
            return False

    def connect(self, machine_id: str) -> GuestShell:
        """The way into the guest, one for each machine and process. Raises MachineLost, GuestUnreachable."""
        self._require_alive(machine_id)
        shell = self._entrances.shell(machine_id)
        shell.open()
        return shell

    def ssh_command(self, machine_id: str) -> str:
        """The command with which a person on this host enters the machine as the user agent."""
        return shlex.join(self.ssh_arguments(machine_id))

    def ssh_arguments(self, machine_id: str) -> list[str]:
        """The same as an argument list. Raises MachineLost when the machine does not run."""
        self._require_alive(machine_id)
        return self._entrances.ssh_arguments(machine_id)

    def console(self, machine_id: str) -> Path:
        """The file with the guest's serial console. Raises MachineNotFound."""
        self._store.read(machine_id)
        return self._paths(machine_id).console

    def workspace(self, machine_id: str) -> Path:
        """The machine's workspace disk image: there from ``attach_workspace`` to ``destroy``, QEMU dead or alive."""
        return self._paths(machine_id).workspace

    def preserve(self, machine_id: str, until: datetime) -> None:
        """Keep the machine, as it is, until then; afterwards the sweeper destroys it. Raises MachineNotFound."""
        with self._store.lock(machine_id):
            record = self._living_record(machine_id)
            state = "paused_from" if record.state == "paused" else "state"
            self._store.write(record.model_copy(update={state: "preserved", "deadline": until}))

    def extend(self, machine_id: str, by: timedelta) -> datetime:
        """Keep a preserved machine for longer; its new deadline. A deadline that has passed counts from now.

        Raises MachineNotFound, MachineLost, Conflict for a machine that is not preserved.
        """
        with self._store.lock(machine_id):
            record = self._living_record(machine_id)
            if not record.preserved:
                raise Conflict(f"Machine {machine_id} is not a preserved one: it ends with its run")
            until = max(record.deadline, datetime.now(UTC)) + by
            self._store.write(record.model_copy(update={"deadline": until}))
            return until

    def keep_pool(self, report: Callable[[str], None], stopped: Callable[[], bool] = lambda: False) -> None:
        """Bring the warm pool to its size: members too many are destroyed, and those that lack are made, one by one.

        They end with this process: whoever sweeps next destroys them. One caller at a time; ``stopped`` is asked before
        each member.
        """
        records = self._store.read_all()
        for member in pool.superfluous(self._settings, records):
            self._destroy_unless_busy(member.id)
        for wanted in pool.shortage(self._settings, self._store.read_all()):
            for _ in range(wanted.count):
                reserved = None if stopped() else pool.reserve_member(self._settings, self._store, wanted)
                if reserved is None:
                    return
                try:
                    self.ensure_running(reserved.id, image_of(self._settings, wanted.image_digest), report)
                except TaskyardError as error:
                    report(f"the pool got no machine: {error.message}")
                    self.destroy(reserved.id)
                    return

    def drain_pool(self) -> None:
        """Destroy the members that this process keeps."""
        for member in pool.members(self._store.read_all()):
            if member.pooled_by == pool.keeper():
                self._destroy_unless_busy(member.id)

    def pause(self, machine_id: str, *, until: datetime | None = None) -> MachineRecord:
        """Save the machine's memory beside its disks and end its process; on a paused machine, nothing.

        Its room is free for others then. The sweeper leaves it alone ``until`` then, if that is said. Raises
        MachineNotFound, MachineLost, MachineError (the machine goes on).
        """
        with self._store.lock(machine_id):
            record = self._living_record(machine_id)
            self._entrances.forget(machine_id)
            return self._pause(machine_id).pause(self._kept(record, until), self._process(record))

    def resume(self, machine_id: str, *, until: datetime | None = None, since: datetime | None = None) -> MachineRecord:
        """Have a paused machine go on where it stood, with the time of now; on a running machine, nothing.

        Connections into it are gone, and its SSH port is another. ``until`` is as of ``pause``, ``since`` its place
        among those that wait for room. Members of the warm pool give way. Raises MachineNotFound, MachineLost, NoRoom
        (retry later), MachineError (the machine stays paused).
        """
        with self._store.lock(machine_id):
            record = self._kept(self._living_record(machine_id), until)
            return self._resumed(record, self._process(record), since)

    def kill(self, machine_id: str) -> None:
        """End the machine's process and nothing else: its disks and its record stay."""
        self._entrances.forget(machine_id)
        self._stop(machine_id)

    def destroy(self, machine_id: str) -> None:
        """End the machine and remove all that is of it; legal in every state, and when there is none."""
        self._entrances.forget(machine_id)
        with suppress(FileNotFoundError):
            self._paths(machine_id).ending.touch()
        while True:
            # Whoever is starting the machine holds its lock, and lets go when the process ends under it.
            self._stop(machine_id, qemu.kill)
            try:
                with self._store.lock(machine_id, patience=_DESTROY_PATIENCE_SECONDS) as held:
                    if held:
                        self._remove(machine_id)
                        return
            except MachineNotFound:
                self._remove_traces(machine_id)
                return

    def sweep(self) -> list[str]:
        """Repair what dead processes left, in both directions; gives a line for each thing done."""
        return sweep(self._settings, self._store, self._destroy_unless_busy)

    def _from_pool(self, record: MachineRecord, image: Image, report: Callable[[str], None]) -> MachineRecord | None:
        """The machine, served from the warm pool; None when that has nothing for it."""
        if record.pooled_by is not None or not self._settings.use_snapshots:
            return None
        handover = pool.Handover(self._settings, self._store, self._paths(record.id), image, self._entrances.shell)
        try:
            served = handover.take(record)
        except (MachineError, OSError, psutil.Error) as error:
            report(f"the machine from the pool is of no use ({error}); making another")
            self._entrances.forget(record.id)
            self._stop(record.id)
            self._store.write(record)
            return None
        if served is not None:
            report(f"machine {record.id} is taken from the warm pool")
            self._entrances.forget(self._paths(record.id).process_name.read_text())
        return served

    def _destroy_unless_busy(self, machine_id: str) -> bool:
        try:
            with self._store.lock(machine_id, patience=0) as held:
                if held:
                    self._entrances.forget(machine_id)
                    self._remove(machine_id)
                return held
        except MachineNotFound:
            self._remove_traces(machine_id)
            return True

    def _remove(self, machine_id: str) -> None:
        try:
            record = self._store.read(machine_id)
            self._store.write(record.model_copy(update={"state": "destroying"}))
        except MachineNotFound:
            pass  # a directory without a record: made by a reservation that did not get further
        self._remove_traces(machine_id)
        with self._store.ledger_lock():
            self._store.remove(machine_id)

    def _remove_traces(self, machine_id: str) -> None:
        """Remove what a machine has outside its directory, its process first."""
        self._stop(machine_id, qemu.kill)
        paths = self._paths(machine_id)
        for socket in (paths.qmp, paths.identity):
            socket.unlink(missing_ok=True)
        shutil.rmtree(self._settings.staging / machine_id, ignore_errors=True)
        volatile_file(self._settings, machine_id).unlink(missing_ok=True)

    def _stop(self, machine_id: str, end: Callable[[MachinePaths, psutil.Process], None] = qemu.stop) -> None:
        process = qemu.find_process(self._paths(machine_id))
        if process is not None:
            end(self._paths(machine_id), process)

    def _process(self, record: MachineRecord) -> psutil.Process | None:
        return qemu.find_process(self._paths(record.id), record.pid, record.process_start)

    def _require_alive(self, machine_id: str) -> MachineRecord:
        record = self._store.read(machine_id)
        if self._process(record) is None:
            if record.state == "paused":
                raise GuestUnreachable(f"Machine {machine_id} is paused; resume it first")
            raise MachineLost(f"The process of machine {machine_id} has ended; its serial console tells what happened")
        return record

    def _living_record(self, machine_id: str) -> MachineRecord:
        record = self._store.read(machine_id)
        if record.state == "destroying":
            raise MachineLost(f"Machine {machine_id} is being destroyed")
        return record

    def _kept(self, record: MachineRecord, until: datetime | None) -> MachineRecord:
        if until is None or until == record.deadline:
            return record
        return self._store.write(record.model_copy(update={"deadline": until}))

    def _resumed(
        self, record: MachineRecord, process: psutil.Process | None, since: datetime | None = None
    ) -> MachineRecord:
        given_up: list[str] = []

        def admit(wanted: Reservation) -> None:
            wanted = replace(wanted, since=since)
            given_up.extend(
                self._line.in_turn(
                    wanted, lambda ahead: pool.admit_before_members(self._settings, self._store, wanted, ahead)
                )
            )

        try:
            return self._pause(record.id).resume(record, process, admit)
        finally:
            for member_id in given_up:
                self.destroy(member_id)

    def _pause(self, machine_id: str) -> Pause:
        return Pause(self._settings, self._store, self._paths(machine_id))

    def _paths(self, machine_id: str) -> MachinePaths:
        self._store.directory(machine_id)  # refuses what is no machine id
        return machine_paths(self._settings, machine_id)
