"""Bringing one machine up: from its record to a guest that answers over SSH. Begun again, it goes on or starts over."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from foundation.errors import GuestUnreachable, MachineError, TaskyardError
from foundation.settings import Settings
from foundation.units import format_seconds, format_size
from machines.hypervisor import qemu, qmp
from machines.hypervisor.acceleration import usable_acceleration
from machines.hypervisor.hardware import BOOT, Start, qemu_arguments
from machines.hypervisor.qmp import Monitor
from machines.identity import Introduction, identity_message, make_keys
from machines.images.store import Image
from machines.paths import MachinePaths
from machines.records import MachineRecord, RecordStore, new_epoch
from machines.shape import Shape, recorded, shape_of
from machines.snapshots.saved_state import load
from machines.snapshots.snapshot import Snapshot, discard_snapshot, held_snapshot
from machines.ssh import GuestShell

BOOT_LIMIT_SECONDS = 300.0
_REPORT_SECONDS = 5.0
_SSH_LIMIT_SECONDS = 10.0
_GLANCE_SECONDS = 3.0


@dataclass
class Boot:
    """One caller's attempt at one machine; the caller holds the machine's lock throughout."""

    settings: Settings
    store: RecordStore
    paths: MachinePaths
    image: Image
    shell: GuestShell
    report: Callable[[str], None]

    def run(self, record: MachineRecord, process: psutil.Process | None) -> MachineRecord:
        """The record of the running machine. ``process`` is its QEMU, when an earlier caller has started it.

        Raises MachineError, with the end of the serial console, when QEMU ends on the way or the guest does not come
        up. After a fault no process is left, and the next attempt starts over.
        """
        if process is not None and self._half_restored(record):
            qemu.stop(self.paths, process)
            process = None
        if process is not None:
            since = process.create_time()
            return self._guarded(process, since, lambda watch: self._reach(record, watch, found=True))
        shape = shape_of(record, self.image, usable_acceleration(self.settings, self.report))
        # A root disk that never came up may be half made or half booted: it is made anew.
        fresh = not (record.booted_once and self.paths.overlay.exists())
        if fresh and self.settings.use_snapshots:
            restored = self._restored(record, shape)
            if restored is not None:
                return restored
        return self._boot(record, shape, fresh=fresh)

    def _half_restored(self, record: MachineRecord) -> bool:
        """True for a QEMU whose guest does not run: its starter ended before it let the guest go on."""
        if record.snapshot is None or record.boot_seconds is not None:
            return False
        try:
            return not qmp.execute(self.paths.qmp, "query-status")["running"]
        except MachineError:
            return True

    def _restored(self, record: MachineRecord, shape: Shape) -> MachineRecord | None:
        """The machine, restored from the snapshot of its shape; None when that does not go."""
        snapshot = None
        try:
            with held_snapshot(self.settings, shape, self.report) as snapshot:
                return self._restore(record, shape, snapshot)
        except (TaskyardError, OSError, ValueError, psutil.Error, subprocess.SubprocessError) as error:
            if self.paths.ending.exists():
                raise
            self.report(f"{str(error).splitlines()[0]}; the machine boots without a snapshot")
        if snapshot is not None:
            # Whatever it was, the next machine is not to meet it again.
            discard_snapshot(self.settings, snapshot.key)
        return None

    def _restore(self, record: MachineRecord, shape: Shape, snapshot: Snapshot) -> MachineRecord:
        record = self._begin(record, shape, fresh=True, snapshot=snapshot.key)
        shutil.copyfile(snapshot.disk, self.paths.overlay)
        self.report(f"restoring machine {record.id} ({_described(shape)})")
        since = time.time()
        record, process = self._start(record, shape, Start(memory=snapshot.memory, incoming=True))

        def reach(watch: _Watch) -> MachineRecord:
            with Monitor(self.paths.qmp, waiting=watch.look) as monitor, Introduction(self.paths.identity) as guest:
                load(monitor, snapshot.state, mapped_memory=True, look=watch.look)
                port = qemu.forwarded_port(monitor)
                monitor.execute("cont")
                guest.send(identity_message(self.paths.directory, record.id, record.disk_bytes))
                # Written while the guest is at work.
                reached = self.store.write(record.model_copy(update={"ssh_port": port}))
                guest.wait(watch.look)
                return self._enter(reached, monitor, watch)

        return self._guarded(process, since, reach)

    def _boot(self, record: MachineRecord, shape: Shape, *, fresh: bool) -> MachineRecord:
        record = self._begin(record, shape, fresh=fresh, snapshot=None)
        if fresh:
            qemu.make_overlay(self.paths, self.image, record.disk_bytes)
        self.report(f"starting machine {record.id} ({_described(shape)})")
        since = time.time()
        record, process = self._start(record, shape, BOOT)
        return self._guarded(process, since, lambda watch: self._reach(record, watch, found=False))

    def _begin(self, record: MachineRecord, shape: Shape, *, fresh: bool, snapshot: str | None) -> MachineRecord:
        record = self.store.write(
            record.model_copy(
                update={
                    "state": "starting" if fresh else record.state,
                    **recorded(shape),
                    "pid": None,
                    "process_start": None,
                    "ssh_port": None,
                    "epoch": new_epoch(),
                    "snapshot": snapshot,
                    "boot_seconds": None,
                    "booted_once": not fresh,
                }
            )
        )
        make_keys(self.paths.directory, record.id)
        return record

    def _start(self, record: MachineRecord, shape: Shape, start: Start) -> tuple[MachineRecord, psutil.Process]:
        pid = qemu.start(self.paths, qemu_arguments(self.paths, shape, start))
        try:
            process, started = psutil.Process(pid), qemu.start_ticks(pid)
        except (psutil.NoSuchProcess, OSError):
            raise self._explained(MachineError("QEMU ended at once")) from None
        return self.store.write(record.model_copy(update={"pid": pid, "process_start": started})), process

    def _guarded(
        self, process: psutil.Process, since: float, reach: Callable[[_Watch], MachineRecord]
    ) -> MachineRecord:
        try:
            return reach(_Watch(process, since, self.report))
        except (MachineError, OSError, psutil.Error) as error:
            self.shell.close()
            qemu.stop(self.paths, process)
            raise self._explained(error) from error

    def _reach(self, record: MachineRecord, watch: _Watch, *, found: bool) -> MachineRecord:
        def already_known() -> bool:
            watch.look()
            # An earlier caller may have introduced the guest and ended before it wrote so.
            return found and watch.every(_GLANCE_SECONDS) and self.shell.answers(_GLANCE_SECONDS)

        with Monitor(self.paths.qmp, waiting=watch.look) as monitor, Introduction(self.paths.identity) as guest:
            pid = watch.process.pid
            started = {"ssh_port": qemu.forwarded_port(monitor), "pid": pid, "process_start": qemu.start_ticks(pid)}
            record = self.store.write(record.model_copy(update=started))
            guest.introduce(
                lambda: identity_message(self.paths.directory, record.id, record.disk_bytes),
                lambda: qemu.guest_is_listening(monitor),
                already_known,
            )
            return self._enter(record, monitor, watch)

    def _enter(self, record: MachineRecord, monitor: Monitor, watch: _Watch) -> MachineRecord:
        while not self.shell.answers(_SSH_LIMIT_SECONDS):
            watch.look()
        # A snapshot's disk is as small as the image. Only now, for it is work for the guest to hear of it.
        qemu.grow_root(monitor, record.disk_bytes)
        seconds = round(time.time() - watch.since, 2)
        self.report(f"machine {record.id} is up after {format_seconds(seconds)}")
        state = "running" if record.state == "starting" else record.state
        return self.store.write(
            record.model_copy(update={"state": state, "boot_seconds": seconds, "booted_once": True})
        )

    def _explained(self, error: Exception) -> MachineError:
        output = qemu.tail(self.paths.output)
        console = qemu.tail(self.paths.console)
        sentence = str(error)
        if output:
            sentence += f"\nQEMU said:\n{output}"
        if console:
            sentence += f"\nthe serial console ends with:\n{console}"
        # Whatever the fault, another attempt may go better: it starts over.
        return MachineError(sentence)


def _described(shape: Shape) -> str:
    return f"{shape.cpus} CPUs, {format_size(shape.memory_bytes)} of memory, {shape.acceleration}"


class _Watch:
    """Looks after a booting machine: says how long it has taken, and gives up when it is dead or too slow."""

    def __init__(self, process: psutil.Process, since: float, report: Callable[[str], None]) -> None:
        """``since`` is the unix time at which the process was started."""
        self.process = process
        self.since = since
        self._report = report
        self._begun = self._reported = self._glanced = time.monotonic()

    def look(self) -> bool:
        """False; raise MachineError when QEMU has ended, GuestUnreachable when the guest has had its time."""
        now = time.monotonic()
        if not self.process.is_running() or self.process.status() == psutil.STATUS_ZOMBIE:
            raise MachineError("QEMU ended while the guest was booting")
        if now - self._begun > BOOT_LIMIT_SECONDS:
            raise GuestUnreachable(f"The guest did not come up within {BOOT_LIMIT_SECONDS:g} s")
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(f"guest is booting ({format_seconds(now - self._begun)})")
        return False

    def every(self, seconds: float) -> bool:
        """True when it was not true within the last ``seconds``."""
        now = time.monotonic()
        if now - self._glanced < seconds:
            return False
        self._glanced = now
        return True
