"""The host's machines without guests: reservations, process identity, removal and sweeping, on real QEMU processes."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from temporalio.client import Client

from foundation.errors import InsufficientResources, MachineError, MachineLost, MachineNotFound
from foundation.settings import Settings
from machines.host import MachineHost, NoRoom, Reservation
from machines.hypervisor import qemu
from machines.hypervisor.acceleration import QEMU
from machines.hypervisor.hardware import Start, qemu_arguments
from machines.images.store import Image
from machines.ledger import host_capacity
from machines.paths import machine_paths
from machines.pool import Wanted, reserve_member
from machines.records import RecordStore, record_of
from machines.shape import Shape, new_shape, recorded, shape_again
from worker.sweeper import sweep

GIB = 2**30
ONE, TWO = "vm-0000000000000001", "vm-0000000000000002"


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(home=tmp_path)
    yield settings
    for process in qemu.processes_of(settings.machines.resolve()).values():
        process.kill()
        process.wait(10)


@pytest.fixture
def host(settings: Settings) -> MachineHost:
    return MachineHost(settings)


def asked(machine_id: str, cpus: int = 1, hours: float = 1) -> Reservation:
    deadline = datetime.now(UTC) + timedelta(hours=hours)
    return Reservation(machine_id, "task-x", "run-x", cpus, GIB // 4, GIB, deadline)


def start(settings: Settings, machine_id: str, *, ignoring: bool = False) -> int:
    """Start a QEMU without hardware that carries the machine's name, as a caller does that dies right afterwards."""
    paths = machine_paths(settings, machine_id)
    paths.directory.mkdir(parents=True, exist_ok=True)
    monitor = [] if ignoring else ["-qmp", f"unix:{paths.qmp.name},server=on,wait=off"]
    arguments = [QEMU, "-name", machine_id, "-pidfile", str(paths.pid_file), "-machine", "none", "-nodefaults"]
    return qemu.start(paths, [*arguments, "-display", "none", "-S", *monitor])


def left(settings: Settings) -> list[str]:
    roots = [settings.machines, settings.sockets, settings.staging]
    names = [path.name for root in roots if root.exists() for path in root.iterdir()]
    return sorted([*names, *qemu.processes_of(settings.machines.resolve())])


def test_a_reservation_is_made_once(host: MachineHost) -> None:
    first = host.reserve(asked(ONE))
    assert host.reserve(asked(ONE, cpus=9999)) == first
    assert host.records() == [first]
    assert first.state == "reserved"
    assert not host.is_alive(ONE)


def test_many_callers_never_hand_out_more_than_there_is(settings: Settings, host: MachineHost) -> None:
    room = host_capacity(settings).cpus // 2

    def reserve(number: int) -> bool:
        try:
            host.reserve(asked(f"vm-{number:016x}", cpus=2))
        except NoRoom:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(reserve, range(room + 5))) == room
    host.destroy(host.records()[0].id)
    assert reserve(99)


def test_room_that_is_freed_goes_to_whoever_was_submitted_first(settings: Settings, host: MachineHost) -> None:
    room = host_capacity(settings).cpus
    full, early, late = (
        replace(asked(f"vm-{number:016x}", cpus=room), since=datetime.now(UTC) + timedelta(hours=number))
        for number in range(3)
    )
    host.reserve(full)
    for waiting in (early, late):
        with pytest.raises(NoRoom):
            host.reserve(waiting)
    host.destroy(full.machine_id)
    for later in (late, asked("vm-00000000000000ff")):
        with pytest.raises(NoRoom, match="come first"):
            host.reserve(later)
    host.reserve(early)
    host.destroy(early.machine_id)
    host.reserve(late)


def test_what_never_fits_leaves_nothing(settings: Settings, host: MachineHost) -> None:
    with pytest.raises(InsufficientResources):
        host.reserve(asked(ONE, cpus=9999))
    assert left(settings) == [".ledger.lock"]


def test_members_of_the_pool_give_up_their_room_only_when_that_is_enough(settings: Settings, host: MachineHost) -> None:
    room, store = host_capacity(settings).cpus, RecordStore(settings)
    member = reserve_member(settings, store, Wanted("digest", 1, GIB // 4, 1))
    assert member is not None
    host.reserve(asked(ONE, cpus=room - 1))
    assert host.room()[1].cpus == 1

    # Beside the machine there is no room for this one, whatever the pool gives up.
    with pytest.raises(NoRoom):
        host.reserve(asked(TWO, cpus=2))
    assert store.read(member.id) == member
    with store.lock(member.id), pytest.raises(NoRoom):
        host.reserve(asked(TWO))  # somebody is at work on the member

    host.reserve(asked(TWO))
    assert store.read(member.id) == member.model_copy(update={"holds_room": False})


async def test_a_machine_without_an_owner_does_not_keep_the_sweeper_from_the_rest(
    settings: Settings, host: MachineHost
) -> None:
    """As a hand-over from the pool leaves it that was cut short."""
    store = RecordStore(settings)
    member = reserve_member(settings, store, Wanted("digest", 1, GIB // 4, 1))
    assert member is not None
    store.write(member.model_copy(update={"pooled_by": None, "state": "destroying"}))
    assert len(await sweep(host, cast("Client", None))) == 1
    assert left(settings) == [".ledger.lock"]


def test_a_process_is_known_by_its_arguments_wherever_its_id_came_from(settings: Settings, tmp_path: Path) -> None:
    pid = start(settings, ONE)
    paths = machine_paths(settings, ONE)
    ticks = qemu.start_ticks(pid)
    for found in (
        qemu.find_process(paths, pid, ticks),
        qemu.find_process(paths, os.getpid(), ticks),
        qemu.find_process(paths, pid, ticks - 1),
        qemu.find_process(paths),
    ):
        assert found is not None
        assert found.pid == pid
    assert qemu.find_process(machine_paths(settings, TWO), pid, ticks) is None
    other_home = machine_paths(Settings(home=tmp_path / "other"), ONE)
    assert qemu.find_process(other_home, pid, ticks) is None


def test_a_second_qemu_of_a_machine_does_not_start(settings: Settings) -> None:
    first = start(settings, ONE)
    paths = machine_paths(settings, ONE)
    while not paths.pid_file.exists():
        assert psutil.pid_exists(first)
    second = start(settings, ONE)
    psutil.Process(second).wait(10)
    found = qemu.find_process(paths)
    assert found is not None
    assert found.pid == first


@pytest.mark.parametrize("ignoring", [False, True])
def test_a_machine_is_killed_and_destroyed_in_every_state(
    settings: Settings, host: MachineHost, *, ignoring: bool
) -> None:
    host.reserve(asked(ONE))
    start(settings, ONE, ignoring=ignoring)
    assert host.is_alive(ONE)
    host.kill(ONE)
    host.kill(ONE)
    assert not host.is_alive(ONE)
    with pytest.raises(MachineLost):
        host.connect(ONE)
    assert host.record(ONE).state == "reserved"

    start(settings, ONE, ignoring=ignoring)
    (settings.staging / ONE).mkdir(parents=True)
    host.destroy(ONE)
    host.destroy(ONE)
    assert left(settings) == [".ledger.lock"]
    with pytest.raises(MachineNotFound):
        host.record(ONE)


def test_a_machine_whose_removal_was_cut_short_is_not_used_again(settings: Settings, host: MachineHost) -> None:
    record = host.reserve(asked(ONE))
    RecordStore(settings).write(record.model_copy(update={"state": "destroying"}))
    with pytest.raises(NoRoom, match="still being destroyed"):
        host.reserve(asked(ONE))
    with pytest.raises(MachineLost):
        host.ensure_running(ONE, cast("Image", SimpleNamespace(digest="x")), lambda _: None)
    with pytest.raises(MachineLost):
        host.preserve(ONE, datetime.now(UTC))
    assert host.sweep() == [f"destroyed machine {ONE}: its removal was begun and not finished"]
    assert left(settings) == [".ledger.lock"]


def test_the_sweeper_ends_what_is_past_its_deadline_and_keeps_the_rest(settings: Settings, host: MachineHost) -> None:
    host.reserve(asked(ONE))
    start(settings, ONE)
    host.reserve(asked(TWO))
    assert host.sweep() == []
    host.preserve(ONE, datetime.now(UTC) + timedelta(hours=1))
    assert host.sweep() == []
    assert host.is_alive(ONE)
    host.preserve(ONE, datetime.now(UTC))
    assert host.sweep() == [f"destroyed machine {ONE}: preserved until its deadline"]
    host.reserve(asked(ONE, hours=-1))
    assert host.sweep() == [f"destroyed machine {ONE}: past its deadline"]
    assert [record.id for record in host.records()] == [TWO]


def test_the_sweeper_leaves_alone_what_somebody_works_on(settings: Settings, host: MachineHost) -> None:
    host.reserve(asked(ONE, hours=-1))
    with RecordStore(settings).lock(ONE):
        assert host.sweep() == []
    assert len(host.sweep()) == 1


def test_the_sweeper_removes_what_has_no_record_by_exact_name_only(settings: Settings, host: MachineHost) -> None:
    start(settings, ONE)
    (settings.staging / TWO).mkdir(parents=True)
    (settings.sockets / f"{TWO}.identity").touch()
    strangers = [settings.sockets / "gateway.sock", settings.staging / "vm-1", settings.machines / "notes"]
    for stranger in strangers:
        stranger.touch()
    lines = host.sweep()
    assert [line for line in lines if ONE in line and "process" in line]
    assert [line for line in lines if TWO in line and "staging directory" in line]
    assert left(settings) == [".ledger.lock", "gateway.sock", "notes", "vm-1"]
    assert host.sweep() == []


def test_the_sweeper_does_nothing_on_an_incomplete_inventory(settings: Settings, host: MachineHost) -> None:
    host.reserve(asked(ONE, hours=-1))
    host.reserve(asked(TWO))
    (settings.machines / TWO / "machine.json").write_text("{")
    start(settings, "vm-0000000000000003")
    assert ["nothing swept" in line for line in host.sweep()] == [True]
    assert qemu.processes_of(settings.machines.resolve()).keys() == {"vm-0000000000000003"}
    assert host.record(ONE)


def test_a_flooded_console_keeps_its_end(host: MachineHost) -> None:
    host.reserve(asked(ONE))
    console = host.console(ONE)
    console.write_bytes(b"x" * (17 * 2**20) + b"the end")
    host.sweep()
    assert console.stat().st_size == 2**20
    assert console.read_bytes().endswith(b"the end")


def image(directory: Path) -> Image:
    with (directory / "base.raw").open("wb") as file:
        file.truncate(64 * 2**20)
    return Image("p", "d", directory, {}, 0, 64 * 2**20, datetime.now(UTC), 0.0, "root=/dev/vda")


def test_the_root_disk_is_thin_and_as_large_as_asked(settings: Settings, tmp_path: Path) -> None:
    paths = machine_paths(settings, ONE)
    paths.directory.mkdir(parents=True)
    for asked_for, given in ((GIB, GIB), (1, 64 * 2**20)):
        qemu.make_overlay(paths, image(tmp_path), asked_for)
        shown = subprocess.run(["qemu-img", "info", paths.overlay], capture_output=True, text=True, check=True).stdout
        assert f"({given} bytes)" in shown
        assert str(tmp_path / "base.raw") in shown
        assert paths.overlay.stat().st_size < 2**20


def test_a_qemu_that_does_not_start_says_why(
    settings: Settings, host: MachineHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.reserve(asked(ONE))
    monkeypatch.setattr("machines.boot.usable_acceleration", lambda *_: "tcg")
    with pytest.raises(MachineError, match=r"QEMU said:\n.*could not open kernel"):
        host.ensure_running(ONE, image(tmp_path), lambda _: None)
    assert host.record(ONE).boot_seconds is None
    assert qemu.processes_of(settings.machines.resolve()) == {}


def test_memory_is_in_parts_of_which_one_is_a_snapshots_unless_an_earlier_version_made_it(settings: Settings) -> None:
    def parts(shape: Shape) -> dict[str, str]:
        start = Start(memory=Path("/kept"), incoming=True)
        arguments = qemu_arguments(machine_paths(settings, ONE), shape, start)
        objects = [value for option, value in itertools.pairwise(arguments) if option == "-object"]
        return {part.split(",")[1]: part.split(",")[0] for part in objects}

    shape = new_shape(image(settings.home), 2, GIB, "kvm")
    assert parts(shape) == {"id=memory": "memory-backend-file", "id=far": "memory-backend-ram"}
    assert parts(new_shape(image(settings.home), 2, GIB // 2, "kvm")) == {"id=memory": "memory-backend-file"}
    record = record_of(replace(asked(ONE), memory_bytes=GIB)).model_copy(update={"acceleration": "kvm"})
    assert parts(shape_again(record, shape.image, "kvm")) == {"id=memory": "memory-backend-file"}
    assert shape_again(record.model_copy(update=recorded(shape)), shape.image, "kvm") == replace(
        shape, cpus=record.cpus
    )


def test_the_arguments_name_the_machine_and_close_its_network(settings: Settings) -> None:
    shape = Shape(image(settings.home), 2, GIB // 4, "kvm")
    arguments: Any = qemu_arguments(machine_paths(settings, ONE), shape)
    pairs = dict(itertools.pairwise(arguments))
    assert pairs["-name"] == ONE
    assert (pairs["-accel"], pairs["-cpu"], pairs["-smp"], pairs["-m"]) == ("kvm", "host", "2", "256M")
    emulated: Any = qemu_arguments(machine_paths(settings, ONE), replace(shape, acceleration="tcg"))
    # An emulated guest that believes in them copies its memory byte by byte.
    assert "-erms" in dict(itertools.pairwise(emulated))["-cpu"]
    assert "restrict=on" in pairs["-netdev"]
    assert pairs["-sandbox"].startswith("on,")
    assert shutil.which(QEMU)
