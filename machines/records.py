"""Durable machine records: one JSON file for each machine, written before anything else of the machine exists."""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from foundation import locks
from foundation.durable import sync, write_durably
from foundation.errors import MachineError, MachineNotFound
from foundation.machine_ids import MACHINE_ID
from foundation.settings import Settings

RECORD_NAME = "machine.json"
LOCK_NAME = "lock"
_REMOVED_PREFIX = ".removed-"

MachineState = Literal["reserved", "starting", "running", "preserved", "paused", "destroying"]


@dataclass(frozen=True)
class Reservation:
    """Room asked for one machine. ``machine_id`` is of the form MACHINE_ID; ``deadline`` has a time zone.

    ``since`` is when the run was submitted that it is for, by Temporal's clock: its place among those that wait.
    """

    machine_id: str
    owner_workflow: str
    owner_run: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    deadline: AwareDatetime
    since: AwareDatetime | None = None


class MachineRecord(BaseModel):
    """What this host knows of one machine.

    ``deadline`` is when the sweeper may destroy it, whatever it does then. ``booted_once`` says that the root disk
    holds more than the image, ``holds_room`` that its CPUs and memory are taken. ``paused_from`` is the state that a
    paused machine goes back to, with its workspace disk if ``workspace_attached``. ``pooled_by`` is set for a member of
    the warm pool, which has no owner: the process that keeps it.

    What follows is of the present process: ``process_start`` is in clock ticks since the host's boot, ``boot_seconds``
    the time from QEMU's start until the guest could be used, null until then, and ``snapshot`` the key of the one that
    it was restored from, null when it was booted. ``epoch`` is a word by chance for the life of the guest's memory: new
    at each boot and restore and for its owner, kept by a pause.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str
    owner_workflow: str
    owner_run: str
    cpus: int
    memory_bytes: int
    disk_bytes: int
    state: MachineState = "reserved"
    created_at: AwareDatetime
    deadline: AwareDatetime
    image_digest: str | None = None
    booted_once: bool = False
    holds_room: bool = True
    pooled_by: str | None = None
    paused_from: MachineState | None = None
    workspace_attached: bool = False
    acceleration: Literal["kvm", "tcg"] | None = None
    far_memory: bool = False
    pid: int | None = None
    process_start: int | None = None
    ssh_port: int | None = None
    epoch: str | None = None
    snapshot: str | None = None
    boot_seconds: float | None = None

    @property
    def preserved(self) -> bool:
        """Whether it is kept for people to look into; its run has ended."""
        return "preserved" in {self.state, self.paused_from}


def new_epoch() -> str:
    """An epoch that no machine has had."""
    return secrets.token_hex(8)


def record_of(request: Reservation) -> MachineRecord:
    """The record of a machine for which room has just been reserved."""
    return MachineRecord(
        id=request.machine_id,
        owner_workflow=request.owner_workflow,
        owner_run=request.owner_run,
        cpus=request.cpus,
        memory_bytes=request.memory_bytes,
        disk_bytes=request.disk_bytes,
        created_at=datetime.now(UTC),
        deadline=request.deadline,
    )


class RecordStore:
    """The records below ``Settings.machines``, one directory for each machine, and their locks."""

    def __init__(self, settings: Settings) -> None:
        self._root = settings.machines.resolve()

    def directory(self, machine_id: str) -> Path:
        """Directory of all files of a machine. Raises MachineNotFound for what is no machine id."""
        if not MACHINE_ID.fullmatch(machine_id):
            raise MachineNotFound(f"'{machine_id}' is no machine id; `sandbox machine list` shows the machines here")
        return self._root / machine_id

    def read(self, machine_id: str) -> MachineRecord:
        """The machine's record. Raises MachineNotFound, or MachineError when the file cannot be read."""
        path = self.directory(machine_id) / RECORD_NAME
        try:
            return MachineRecord.model_validate_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise MachineNotFound(
                f"No machine {machine_id} is on this host; `sandbox machine list` shows those that are"
            ) from None
        except (OSError, ValidationError) as error:
            raise MachineError(f"The machine record {path} cannot be read ({error}); look at the file") from error

    def read_all(self) -> list[MachineRecord]:
        """Every record, oldest first. Raises MachineError when one cannot be read: a partial list is no list."""
        records = []
        for machine_id in self.directories():
            try:
                records.append(self.read(machine_id))
            except MachineNotFound:
                continue  # being made or being removed
        return sorted(records, key=lambda record: (record.created_at, record.id))

    def directories(self) -> list[str]:
        """Ids of the machine directories, with a record or without."""
        try:
            return sorted(path.name for path in self._root.iterdir() if MACHINE_ID.fullmatch(path.name))
        except FileNotFoundError:
            return []

    def write(self, record: MachineRecord) -> MachineRecord:
        """Write the record so that after a crash either the old or the new one is there, whole; gives it back."""
        directory = self.directory(record.id)
        if not directory.is_dir():
            directory.mkdir(parents=True, mode=0o700, exist_ok=True)
            sync(self._root)
        write_durably(directory / RECORD_NAME, json.dumps(record.model_dump(mode="json"), indent=1))
        return record

    def remove(self, machine_id: str) -> None:
        """Remove the machine's directory, its record last of all its content. Does nothing when there is none."""
        directory = self.directory(machine_id)
        if not directory.is_dir():
            return
        for path in sorted(directory.iterdir()):
            if path.name not in {RECORD_NAME, LOCK_NAME}:
                _remove_path(path)
        # The record and the lock go in one step, so that nobody takes the lock of a machine that has no record.
        aside = self._root / f"{_REMOVED_PREFIX}{machine_id}-{secrets.token_hex(4)}"
        directory.rename(aside)
        sync(self._root)
        _remove_path(aside)

    def remove_remains(self) -> list[str]:
        """Remove directories without a record, which cut-short reservations and removals leave; gives their ids."""
        # Reservations and removals hold the ledger, so none of them is under way now.
        with self.ledger_lock():
            for aside in self._root.glob(f"{_REMOVED_PREFIX}*"):
                _remove_path(aside)
            remains = [name for name in self.directories() if not (self._root / name / RECORD_NAME).exists()]
            for machine_id in remains:
                self.remove(machine_id)
        return remains

    @contextmanager
    def lock(self, machine_id: str, *, patience: float | None = None) -> Iterator[bool]:
        """Hold the machine for oneself, against other threads and processes; ends with the holder's process.

        Gives False, and does not hold it, when it stayed busy for ``patience`` seconds (None: wait for ever).
        Raises MachineNotFound when the machine has no directory.
        """
        with ExitStack() as stack:
            try:
                got = stack.enter_context(locks.held(self.directory(machine_id) / LOCK_NAME, patience=patience))
            except FileNotFoundError:
                raise MachineNotFound(f"No machine {machine_id} is on this host") from None
            yield got

    @contextmanager
    def ledger_lock(self) -> Iterator[None]:
        """Hold the host's ledger: only its holder makes or forgets reservations."""
        self._root.mkdir(parents=True, exist_ok=True)
        with locks.held(self._root / ".ledger.lock"):
            yield


def _remove_path(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
