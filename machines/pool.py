"""The warm pool: machines restored ahead of time, each with keys of its own and no owner, for whoever comes next.

A member is a machine like any other, with a record and room in the ledger, which it gives up when a reservation needs
it. It is handed over once: its process, disk, keys and open connection become the new machine's, and only the name in
the guest changes. Its process keeps the name that it was started with; a file in the new machine's directory tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import psutil

from foundation.errors import InsufficientResources, MachineError, MachineNotFound
from foundation.machine_ids import new_machine_id
from foundation.settings import Settings
from foundation.units import parse_size
from machines.hypervisor import qemu
from machines.hypervisor.qmp import Monitor
from machines.identity import CLIENT_KEY, HOST_KEY, Introduction, make_keys, name_message
from machines.images.store import Image, current_digests
from machines.ledger import NoRoom, admit, host_capacity
from machines.paths import CONSOLE, OUTPUT, OVERLAY, MachinePaths, machine_paths
from machines.records import MachineRecord, RecordStore, Reservation, new_epoch
from machines.shape import recorded, same_size, serves
from machines.snapshots.snapshot import Snapshot, list_snapshots
from machines.ssh import GuestShell

_LIFETIME = timedelta(days=1)
_MOVED = (OVERLAY, CONSOLE, OUTPUT, CLIENT_KEY, f"{CLIENT_KEY}.pub", HOST_KEY, f"{HOST_KEY}.pub")


@dataclass(frozen=True)
class Wanted:
    """Members that the pool is short of: so many of one image and size."""

    image_digest: str
    cpus: int
    memory_bytes: int
    count: int


def members(records: Sequence[MachineRecord]) -> list[MachineRecord]:
    """Those that belong to the pool and to nobody else."""
    return [record for record in records if record.pooled_by is not None]


def keeper() -> str:
    """The present process as one that keeps members: its id, and its start, as another process may get that id."""
    own = psutil.Process().pid
    return f"{own} {qemu.start_ticks(own)}"


def keeper_lives(record: MachineRecord) -> bool:
    """True while the process that made the member runs."""
    pid, _, started = (record.pooled_by or "").partition(" ")
    try:
        return qemu.start_ticks(int(pid)) == int(started)
    except (OSError, ValueError):
        return False


def shortage(settings: Settings, records: Sequence[MachineRecord]) -> list[Wanted]:
    """What is to be made so that each shape that has a snapshot of a present image has its members."""
    if settings.warm_pool == 0 or under_pressure(settings):
        return []
    current = current_digests()
    shapes: list[Snapshot] = []
    for each in list_snapshots(settings):
        # Two snapshots may be of one shape here, such as those of an older QEMU and of the present one.
        if each.image_digest in current and not any(serves(known, each.image_digest, each) for known in shapes):
            shapes.append(each)
    found = []
    for shape in shapes:
        there = sum(serves(member, shape.image_digest, shape) for member in members(records))
        if there < settings.warm_pool:
            lacking = settings.warm_pool - there
            found.append(Wanted(shape.image_digest, shape.cpus, shape.memory_bytes, lacking))
    return found


def superfluous(settings: Settings, records: Sequence[MachineRecord]) -> list[MachineRecord]:
    """Members to be destroyed: of older images, without room, or all of them when the host's memory runs short."""
    if settings.warm_pool == 0 or under_pressure(settings):
        return members(records)
    current = current_digests()
    return [
        each
        for each in members(records)
        if not each.holds_room or (each.image_digest is not None and each.image_digest not in current)
    ]


def under_pressure(settings: Settings) -> bool:
    """True when less memory is available on the host than it keeps for itself."""
    return psutil.virtual_memory().available < parse_size(settings.memory_reserve)


def reserve_member(settings: Settings, store: RecordStore, wanted: Wanted) -> MachineRecord | None:
    """A record for a new member; None when there is no room for one."""
    deadline = datetime.now(UTC) + _LIFETIME
    request = Reservation(
        machine_id=new_machine_id(),
        owner_workflow="",
        owner_run="",
        cpus=wanted.cpus,
        memory_bytes=wanted.memory_bytes,
        disk_bytes=0,
        deadline=deadline,
    )
    with store.ledger_lock():
        try:
            admit(host_capacity(settings), store.read_all(), request)
        except (NoRoom, InsufficientResources):
            return None
        return store.write(
            MachineRecord(
                id=request.machine_id,
                owner_workflow="",
                owner_run="",
                cpus=wanted.cpus,
                memory_bytes=wanted.memory_bytes,
                disk_bytes=0,
                created_at=datetime.now(UTC),
                deadline=deadline,
                image_digest=wanted.image_digest,
                pooled_by=keeper(),
            )
        )


def admit_before_members(
    settings: Settings, store: RecordStore, request: Reservation, ahead: Sequence[Reservation] = ()
) -> list[str]:
    """Admit a request beside everything but the pool, whose members give up the room that it takes.

    The caller holds the ledger. Gives the ids of members to be destroyed; one that the request may be served with
    loses its room and stays. Raises as ``admit`` does, and then no member has given up anything. One that somebody is
    busy with keeps its room.
    """
    capacity, records = host_capacity(settings), store.read_all()
    # First those that the request could not be served with.
    givers = sorted(members(records), key=lambda each: same_size(each, request))
    with ExitStack() as locks:
        given_up: list[MachineRecord] = []
        while True:
            try:
                admit(capacity, records, request, ahead)
                break
            except NoRoom:
                while givers and not _is_free(store, givers[0].id, locks):
                    givers.pop(0)
                if not givers:
                    raise
                giver = store.read(givers.pop(0).id).model_copy(update={"holds_room": False})
                given_up.append(giver)
                records = [giver if each.id == giver.id else each for each in records]
        for giver in given_up:
            store.write(giver)
    roomless = [each for each in members(records) if not each.holds_room]
    kept = next((each.id for each in roomless if same_size(each, request)), None)
    return [each.id for each in roomless if each.id != kept]


def _is_free(store: RecordStore, member_id: str, locks: ExitStack) -> bool:
    """Whether nobody else is at work on the member, until the locks are let go."""
    try:
        return locks.enter_context(store.lock(member_id, patience=0))
    except MachineNotFound:
        return False


@dataclass
class Handover:
    """One machine's attempt to be served from the pool; the caller holds its lock throughout."""

    settings: Settings
    store: RecordStore
    paths: MachinePaths
    image: Image
    shell_of: Callable[[str], GuestShell]

    def take(self, record: MachineRecord) -> MachineRecord | None:
        """The record of the machine, which runs; None when no member fits. Raises MachineError: boot it instead."""
        for member in members(self.store.read_all()):
            if member.state != "running" or not serves(member, self.image.digest, record):
                continue
            with suppress(MachineNotFound), self.store.lock(member.id, patience=0) as held:
                if held and (claimed := self._claim(member.id)) is not None:
                    return self._take_over(record, claimed)
        return None

    def _claim(self, member_id: str) -> MachineRecord | None:
        """Take the member out of the pool for good; None when somebody else was first or it has ended."""
        with self.store.ledger_lock():
            member = self.store.read(member_id)
            if member.pooled_by is None or member.state != "running":
                return None
            paths = machine_paths(self.settings, member_id)
            if qemu.find_process(paths, member.pid, member.process_start) is None:
                return None
            # Whatever happens now, nobody else gets it: a member that is claimed and not handed over is destroyed.
            return self.store.write(member.model_copy(update={"pooled_by": None, "state": "destroying"}))

    def _take_over(self, record: MachineRecord, member: MachineRecord) -> MachineRecord:
        theirs = machine_paths(self.settings, member.id)
        # From here on the process is this machine's, and ends with it.
        self.paths.process_name.write_text(member.id)
        for name in _MOVED:
            with suppress(FileNotFoundError):
                (theirs.directory / name).replace(self.paths.directory / name)
        for ours, other in ((self.paths.qmp, theirs.qmp), (self.paths.identity, theirs.identity)):
            other.replace(ours)
        make_keys(self.paths.directory, record.id)
        record = self.store.write(
            record.model_copy(
                update={
                    "state": "starting",
                    "epoch": new_epoch(),
                    **{field: getattr(member, field) for field in ("pid", "process_start", "ssh_port", "snapshot")},
                    **recorded(member),
                }
            )
        )
        with self.store.ledger_lock():
            self.store.remove(member.id)
        shell = self.shell_of(record.id)
        shell.take_over(self.shell_of(member.id))
        with Monitor(self.paths.qmp) as monitor, Introduction(self.paths.identity) as guest:
            guest.send(name_message(record.id, record.disk_bytes))
            guest.wait(lambda: self._still(record))
            qemu.grow_root(monitor, record.disk_bytes)
        shell.open()
        up = {"state": "running", "boot_seconds": member.boot_seconds, "booted_once": True}
        return self.store.write(record.model_copy(update=up))

    def _still(self, record: MachineRecord) -> None:
        if qemu.find_process(self.paths, record.pid, record.process_start) is None:
            raise MachineError("The process of the machine from the pool has ended")
