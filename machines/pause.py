"""Pausing a machine: its memory becomes a file and its process ends; resuming it: another process goes on with both."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import psutil

from foundation.durable import PRIVATE, on_their_way, sync
from foundation.errors import MachineError, MachineLost, TaskyardError
from foundation.settings import Settings
from machines.hypervisor import qemu
from machines.hypervisor.hardware import Start, qemu_arguments
from machines.hypervisor.qmp import Monitor
from machines.identity import Introduction, clock_message
from machines.images.store import image_of
from machines.paths import MachinePaths
from machines.records import MachineRecord, RecordStore, Reservation
from machines.shape import shape_again
from machines.snapshots.saved_state import load, save

_CLOCK_LIMIT_SECONDS = 30.0


@dataclass
class Pause:
    """One caller's pausing or resuming of one machine; the caller holds the machine's lock throughout."""

    settings: Settings
    store: RecordStore
    paths: MachinePaths

    def pause(self, record: MachineRecord, process: psutil.Process | None) -> MachineRecord:
        """The record of the paused machine. Raises MachineLost, or MachineError and lets the guest go on."""
        if record.state != "paused":
            if process is None:
                raise MachineLost(f"The process of machine {record.id} has ended; there is nothing to pause")
            if record.boot_seconds is None:
                raise MachineError(f"Machine {record.id} is still starting; pause it when it is up")
            record = self._save(record, process)
        # Also what an earlier caller has left running after it had saved the memory: its guest stands still.
        if process is not None:
            qemu.stop(self.paths, process)
        return record

    def resume(
        self, record: MachineRecord, process: psutil.Process | None, admit: Callable[[Reservation], None]
    ) -> MachineRecord:
        """The record of the machine, which runs. Raises MachineLost, NoRoom, or MachineError and leaves it paused.

        ``admit`` is called under the host's ledger, and raises NoRoom unless there is room for the machine.
        """
        if record.state != "paused":
            return self._go_on(record, process)
        if process is not None:
            qemu.stop(self.paths, process)  # stands still too: whoever lets it go on writes so first
        if not self.paths.memory.exists():
            raise MachineLost(f"The saved memory of machine {record.id} is gone; destroy it")
        record = self._take_room(record, admit)
        try:
            return self._load(record)
        except (TaskyardError, OSError, psutil.Error) as error:
            leftover = qemu.find_process(self.paths)
            if leftover is not None:
                qemu.stop(self.paths, leftover)
            self.store.write(record.model_copy(update={"holds_room": False}))
            output = qemu.tail(self.paths.output)
            raise MachineError(f"Machine {record.id} could not be resumed: {error}\n{output}".strip()) from error

    def _save(self, record: MachineRecord, process: psutil.Process) -> MachineRecord:
        draft = self.paths.memory.with_name(f".{self.paths.memory.name}.draft")
        with Monitor(self.paths.qmp) as monitor:
            workspace = qemu.has_workspace(monitor)
            files = [draft, self.paths.overlay, *([self.paths.workspace] if workspace else [])]
            try:
                draft.touch(PRIVATE)
                # Half of the time is the disk's: it has its part while the rest is still being saved.
                with on_their_way(*files):
                    save(monitor, draft, mapped_memory=False, look=_living(process))
                # From here on the machine is nothing but files, and its record says that it can go on.
                for file in files:
                    sync(file)
            except (MachineError, OSError):
                draft.unlink(missing_ok=True)
                monitor.execute("cont")
                raise
        draft.replace(self.paths.memory)
        return self.store.write(
            record.model_copy(
                update={
                    "state": "paused",
                    "paused_from": record.state,
                    "workspace_attached": workspace,
                    "holds_room": False,
                    "pid": None,
                    "process_start": None,
                    "ssh_port": None,
                }
            )
        )

    def _load(self, record: MachineRecord) -> MachineRecord:
        if record.image_digest is None or record.acceleration is None:
            raise MachineError(f"The record of machine {record.id} does not say what it was made of")
        image = image_of(self.settings, record.image_digest)
        shape = shape_again(record, image, record.acceleration)
        since = time.time()
        start = Start(incoming=True, workspace=record.workspace_attached)
        pid = qemu.start(self.paths, qemu_arguments(self.paths, shape, start))
        living = _living(psutil.Process(pid))
        with Monitor(self.paths.qmp, waiting=living) as monitor, Introduction(self.paths.identity) as guest:
            load(monitor, self.paths.memory, mapped_memory=False, look=living)
            running = {
                "state": record.paused_from or "running",
                "paused_from": None,
                "pid": pid,
                "process_start": qemu.start_ticks(pid),
                "ssh_port": qemu.forwarded_port(monitor),
                "boot_seconds": round(time.time() - since, 2),
            }
            # Written first: from here on the disks differ from what the saved memory knows of them.
            record = self.store.write(record.model_copy(update=running))
            self.paths.memory.unlink()
            monitor.execute("cont")
            _set_clock(guest, living)
        return record

    def _go_on(self, record: MachineRecord, process: psutil.Process | None) -> MachineRecord:
        """Of a machine that is not paused: let it go on where a caller ended in the middle of either."""
        if process is None:
            raise MachineLost(f"The process of machine {record.id} has ended; there is nothing to resume")
        with Monitor(self.paths.qmp) as monitor:
            if not monitor.execute("query-status")["running"] and record.boot_seconds is not None:
                monitor.execute("cont")
                with Introduction(self.paths.identity) as guest:
                    _set_clock(guest, _living(process))
        return record

    def _take_room(self, record: MachineRecord, admit: Callable[[Reservation], None]) -> MachineRecord:
        wanted = Reservation(
            machine_id=record.id,
            owner_workflow=record.owner_workflow,
            owner_run=record.owner_run,
            cpus=record.cpus,
            memory_bytes=record.memory_bytes,
            disk_bytes=0,
            deadline=record.deadline,
        )
        with self.store.ledger_lock():
            if record.holds_room:  # of a resumption that was cut short: it is not to be in its own way
                record = self.store.write(record.model_copy(update={"holds_room": False}))
            admit(wanted)
            return self.store.write(record.model_copy(update={"holds_room": True}))


def _living(process: psutil.Process) -> Callable[[], None]:
    def look() -> None:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            raise MachineError("QEMU ended on the way")

    return look


def _set_clock(guest: Introduction, living: Callable[[], None]) -> None:
    """Give the guest the time. One that does not take it, because its user has ended the service, is as it is."""
    with suppress(MachineError):
        guest.send(clock_message())
        guest.wait(living, _CLOCK_LIMIT_SECONDS)
