"""A host's disk that was full: machines go on when it has room, and those that stand for another reason stay."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import MachineError
from foundation.settings import Settings
from machines.disks import disk_watch
from machines.disks.disk_watch import CONSOLE_MAX, ROOM_TO_GO_ON, look_after_disks
from machines.host import MachineHost
from machines.hypervisor import qemu, qmp
from machines.paths import machine_paths
from machines.records import MachineRecord, RecordStore
from storage.layout import TASKS
from storage.runlog import read_entries
from tests.stand_ins.memory_bucket import MemoryBucket
from worker import disk_watch as watching
from worker.metrics import WorkerMetrics

NOW = datetime(2026, 1, 2, tzinfo=UTC)
STATUSES = ("io-error", "running", "paused", "shutdown", "internal-error", "postmigrate", "guest-panicked", None)
STATES = ("reserved", "starting", "running", "preserved", "paused", "destroying")


class Host:
    """Machines whose QEMU says what the test wants."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = Settings(home=home)
        self.store = RecordStore(self.settings)
        self.status: dict[str, str | None] = {}
        self.free = 0
        self.asked: list[str] = []
        monkeypatch.setattr(qmp, "execute", self._execute)
        monkeypatch.setattr(qemu, "find_process", lambda paths, *_: self.status[paths.machine_id] and object())
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=self.free))

    def machine(self, number: int, status: str | None, state: str = "running", owner: str = "w") -> str:
        machine_id = f"vm-{number:016x}"
        record = MachineRecord(
            id=machine_id,
            owner_workflow=owner,
            owner_run="r",
            cpus=1,
            memory_bytes=1,
            disk_bytes=1,
            created_at=NOW,
            deadline=NOW,
        )
        self.store.write(record.model_copy(update={"state": state, "pid": 1, "process_start": 1, "boot_seconds": 1.0}))
        self.status[machine_id] = status
        return machine_id

    def look(self, *, thoroughly: bool = True) -> disk_watch.DiskLook:
        return look_after_disks(self.settings, self.store, thoroughly=thoroughly)

    def _execute(self, socket: Path, command: str, **_: object) -> object:
        machine_id = socket.stem
        self.asked.append(machine_id)
        status = self.status[machine_id]
        if status is None:
            raise MachineError("it has ended")
        if command == "cont":
            assert status == "io-error"
            self.status[machine_id] = "running"
        return {"status": status, "running": status == "running"}


@pytest.fixture
def host(tmp_path, monkeypatch):
    return Host(tmp_path, monkeypatch)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    machines=st.lists(st.tuples(st.sampled_from(STATUSES), st.sampled_from(STATES)), min_size=1, max_size=6),
    free=st.lists(st.sampled_from([0, ROOM_TO_GO_ON - 1, ROOM_TO_GO_ON, 2**40]), min_size=1, max_size=4),
)
def test_what_a_full_disk_stopped_goes_on_with_the_first_room_and_nothing_else_does(host, machines, free):
    for record in host.store.read_all():
        host.store.remove(record.id)
    ids = [host.machine(number, status, state) for number, (status, state) in enumerate(machines)]
    standing = {
        each
        for each, (status, state) in zip(ids, machines, strict=True)
        if status == "io-error" and state not in {"paused", "destroying"}
    }
    for room in free:
        host.free = room
        look = host.look()
        assert set(look.stopped if room < ROOM_TO_GO_ON else look.resumed) == standing
        assert (look.resumed if room < ROOM_TO_GO_ON else look.stopped) == []
        standing = standing if room < ROOM_TO_GO_ON else set()


def test_machine_that_somebody_works_on_is_left_to_him(host):
    busy, idle = host.machine(1, "io-error"), host.machine(2, "io-error")
    host.free = 2**40
    with host.store.lock(busy):
        assert host.look().resumed == [idle]
    assert host.look().resumed == [busy]


def test_machines_of_a_host_with_room_are_asked_now_and_then_only(host):
    host.machine(1, "running")
    host.free = 2**40
    host.look(thoroughly=False)
    assert host.asked == []
    host.free = ROOM_TO_GO_ON
    host.look(thoroughly=False)
    assert host.asked != []


@pytest.mark.parametrize("size", [0, 1, CONSOLE_MAX, CONSOLE_MAX + 1, 5 * CONSOLE_MAX])
def test_console_is_bounded_and_keeps_its_end(host, size):
    console = machine_paths(host.settings, host.machine(1, "running")).console
    console.write_bytes(b"x" * max(0, size - 3) + b"end"[: min(3, size)])
    host.look()
    assert console.stat().st_size <= CONSOLE_MAX
    assert console.read_bytes().endswith(b"end"[: min(3, size)])


async def test_runs_hear_once_that_their_machine_stands_still_and_that_it_goes_on(host, monkeypatch):
    bucket = MemoryBucket()
    host.machine(1, "io-error", owner="task-one")
    host.machine(2, "running", owner="task-two")
    rooms = iter([0, 0, 2**40, 2**40])
    looked = MachineHost(host.settings)

    async def sleep(_: float) -> None:
        host.free = next(rooms, None)
        if host.free is None:
            raise asyncio.CancelledError

    monkeypatch.setattr(watching.asyncio, "sleep", sleep)
    metrics = WorkerMetrics()
    with pytest.raises(asyncio.CancelledError):
        await watching.watch_disks(host.settings, looked, metrics, bucket)
    told = [json.loads(entry.data)["message"] for entry in read_entries(bucket, TASKS.place("one"))]
    assert ["stands still" in message for message in told] == [True, False]
    assert "goes on now" in told[1]
    assert list(read_entries(bucket, TASKS.place("two"))) == []
    assert metrics.registry.get_sample_value("taskyard_host_machines_stopped") == 0
