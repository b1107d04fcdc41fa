"""Bringing one machine up: from its record to a guest that answers over SSH. Begun again, it goes on or starts over."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil

from foundation.errors import GuestUnreachable, MachineError
from foundation.settings import Settings
from foundation.units import format_seconds, format_size
from machines import qemu
from machines.acceleration import usable_acceleration
from machines.identity import identity_line, introduce, make_keys
from machines.image import Image
from machines.qemu import MachinePaths
from machines.records import MachineRecord, RecordStore
from machines.ssh import GuestShell

BOOT_LIMIT_SECONDS = 300.0
_REPORT_SECONDS = 5.0
_QMP_POLL_SECONDS = 0.05
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
        found = process is not None
        if process is None:
            record, process = self._start(record)
        try:
            record = self._reach(record, process, found=found)
        except (MachineError, OSError, psutil.Error) as error:
            self.shell.close()
            qemu.stop(self.paths, process)
            raise self._explained(error) from error
        return record

    def _start(self, record: MachineRecord) -> tuple[MachineRecord, psutil.Process]:
        acceleration = usable_acceleration(self.settings, self.report)
        # A root disk that never came up may be half made or half booted: it is made anew.
        fresh = not (record.booted_once and self.paths.overlay.exists())
        record = self.store.write(
            record.model_copy(
                update={
                    "state": "starting" if fresh else record.state,
                    "image_digest": self.image.digest,
                    "acceleration": acceleration,
                    "pid": None,
                    "process_start": None,
                    "ssh_port": None,
                    "boot_seconds": None,
                    "booted_once": not fresh,
                }
            )
        )
        make_keys(self.paths.directory, record.id)
        if fresh:
            qemu.make_overlay(self.paths, self.image, record.disk_bytes)
        size = f"{record.cpus} CPUs, {format_size(record.memory_bytes)} of memory"
        self.report(f"starting machine {record.id} ({size}, {acceleration})")
        pid = qemu.start(self.paths, qemu.qemu_arguments(self.paths, record, self.image, acceleration))
        try:
            process, started = psutil.Process(pid), qemu.start_ticks(pid)
        except (psutil.NoSuchProcess, OSError):
            raise self._explained(MachineError("QEMU ended at once")) from None
        return self.store.write(record.model_copy(update={"pid": pid, "process_start": started})), process

    def _reach(self, record: MachineRecord, process: psutil.Process, *, found: bool) -> MachineRecord:
        watch = _Watch(self.paths, process, self.report)
        port = self._forwarded_port(watch)
        started = {"ssh_port": port, "pid": process.pid, "process_start": qemu.start_ticks(process.pid)}
        record = self.store.write(record.model_copy(update=started))

        def already_known() -> bool:
            watch.look()
            # An earlier caller may have introduced the guest and ended before it wrote so.
            return found and watch.every(_GLANCE_SECONDS) and self.shell.answers(_GLANCE_SECONDS)

        introduce(
            self.paths.identity,
            lambda: identity_line(self.paths.directory, record.id),
            lambda: qemu.guest_is_listening(self.paths),
            already_known,
        )
        while not self.shell.answers(_SSH_LIMIT_SECONDS):
            watch.look()
        booted = round(time.time() - process.create_time(), 2)
        self.report(f"machine {record.id} is up after {format_seconds(booted)}")
        state = "running" if record.state == "starting" else record.state
        return self.store.write(record.model_copy(update={"state": state, "boot_seconds": booted, "booted_once": True}))

    def _forwarded_port(self, watch: _Watch) -> int:
        while True:
            try:
                return qemu.forwarded_port(self.paths)
            except MachineError:
                watch.look()
                time.sleep(_QMP_POLL_SECONDS)

    def _explained(self, error: Exception) -> MachineError:
        shown = qemu.tail(self.paths.output)
        console = qemu.tail(self.paths.console)
        sentence = str(error)
        if shown:
            sentence += f"\nQEMU said:\n{shown}"
        if console:
            sentence += f"\nthe serial console ends with:\n{console}"
        # Whatever the fault, another attempt may go better: it starts over.
        return MachineError(sentence)


class _Watch:
    """Looks after a booting machine: says how long it has taken, and gives up when it is dead or too slow."""

    def __init__(self, paths: MachinePaths, process: psutil.Process, report: Callable[[str], None]) -> None:
        self._paths = paths
        self._process = process
        self._report = report
        self._begun = self._reported = self._glanced = time.monotonic()

    def look(self) -> None:
        """Raise MachineError when QEMU has ended, GuestUnreachable when the guest has had its time."""
        now = time.monotonic()
        if not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE:
            raise MachineError("QEMU ended while the guest was booting")
        if now - self._begun > BOOT_LIMIT_SECONDS:
            raise GuestUnreachable(f"The guest did not come up within {BOOT_LIMIT_SECONDS:g} s")
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(f"guest is booting ({format_seconds(now - self._begun)})")

    def every(self, seconds: float) -> bool:
        """True when it was not true within the last ``seconds``."""
        now = time.monotonic()
        if now - self._glanced < seconds:
            return False
        self._glanced = now
        return True
