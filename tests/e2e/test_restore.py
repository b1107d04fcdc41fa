"""Machines restored from a snapshot: each its own, whole, quick to be had, and nothing of them left afterwards.

Above 400 lines: one snapshot, which takes a boot to make, serves all that is tried with it.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import psutil
import pytest

from foundation.errors import GuestUnreachable, MachineNotFound
from foundation.settings import Settings
from machines.disks.workspace import build_workspace
from machines.host import MachineHost, Reservation
from machines.hypervisor.qemu import processes_of
from machines.identity import HOST_KEY
from machines.images.store import Image, find_image
from machines.records import RecordStore
from machines.snapshots.snapshot import _signature, list_snapshots

GIB = 2**30
CPUS, MEMORY, DISK = 2, GIB, 6 * GIB

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def image() -> Image:
    return find_image(Settings(), "agentic-dev")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), image_dir=Settings().images, cpu_overcommit=16)


@pytest.fixture
def host(settings: Settings) -> Iterator[MachineHost]:
    """A host whose snapshots the tests share; of its machines nothing may be left."""
    host = MachineHost(settings)
    try:
        yield host
    finally:
        for record in host.records():
            host.destroy(record.id)
    assert processes_of(settings.machines.resolve()) == {}
    assert [path.name for path in settings.machines.iterdir()] == [".ledger.lock"]
    assert [path.name for path in settings.sockets.iterdir()] == []
    assert [path.name for path in settings.snapshots.iterdir() if path.name.startswith((".build", ".removed"))] == []


def reserve(host: MachineHost) -> str:
    machine_id = f"vm-{secrets.token_hex(8)}"
    deadline = datetime.now(UTC) + timedelta(hours=1)
    host.reserve(Reservation(machine_id, "task-x", "run-x", CPUS, MEMORY, DISK, deadline))
    return machine_id


def make(host: MachineHost, image: Image, report: Callable[[str], object] = lambda _: None) -> str:
    machine_id = reserve(host)
    host.ensure_running(machine_id, image, report)
    return machine_id


def has_grown(host: MachineHost, machine_id: str) -> bool:
    return int(said(host, machine_id, "df --output=size -B1 / | tail -1")) > 0.9 * DISK


def said(host: MachineHost, machine_id: str, command: str) -> str:
    return host.connect(machine_id).run(command).stdout.decode().strip()


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


# What is identifying or random in a guest, a line for each.
_TRAITS = """
hostname
cat /etc/machine-id
cat /proc/sys/kernel/random/boot_id
cut -d' ' -f2 </run/sshd/ssh_host_key.seen
cat /run/sshd/authorized_keys
head -c 16 /dev/urandom | od -An -tx1
cat /proc/sys/kernel/random/uuid
mktemp -u
awk '/stack/ {print $1}' /proc/self/maps
perl -e 'print rand, "\\n"'
python3 -c 'import random, ssl; print(random.random(), ssl.RAND_bytes(8).hex())'
"""


def traits(host: MachineHost, machine_id: str) -> list[str]:
    derive = "ssh-keygen -yf /run/sshd/ssh_host_key >/run/sshd/ssh_host_key.seen; "
    return said(host, machine_id, derive + _TRAITS.strip().replace("\n", "; ")).splitlines()


def test_two_clones_share_nothing_that_identifies_them_and_nothing_random(
    host: MachineHost, settings: Settings, image: Image
) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: make(host, image), range(2))
    records = host.record(one), host.record(two)
    assert records[0].snapshot == records[1].snapshot
    assert [snapshot.key for snapshot in list_snapshots(settings)] == [records[0].snapshot]
    first, second = traits(host, one), traits(host, two)
    assert len(first) == len(second) == _TRAITS.strip().count("\n") + 1
    assert [pair for pair in zip(first, second, strict=True) if pair[0] == pair[1]] == []
    for machine_id in (one, two):
        assert said(host, machine_id, "hostname") == machine_id
        assert abs(float(said(host, machine_id, "date +%s.%N")) - time.time()) < 2
        assert said(host, machine_id, "nproc") == str(CPUS)
        until(partial(has_grown, host, machine_id))
        assert said(host, machine_id, "su agent -c 'sudo whoami'") == "root"
        assert said(host, machine_id, "systemctl --failed --no-legend") == ""
    # Time passes in a clone as it does outside.
    begun, there = time.monotonic(), float(said(host, one, "cut -d' ' -f1 /proc/uptime"))
    said(host, one, "sleep 2")
    took = time.monotonic() - begun
    assert 2 <= float(said(host, one, "cut -d' ' -f1 /proc/uptime")) - there < took + 1
    # What one writes, to memory or disk, the other does not see.
    said(host, one, "echo mine >/root/mine; echo mine >/run/mine; sync")
    assert said(host, two, "ls /root/mine /run/mine 2>/dev/null || echo none") == "none"


def test_no_snapshot_holds_what_came_after_it(host: MachineHost, settings: Settings, image: Image) -> None:
    machine_id = make(host, image)
    key = (settings.machines / machine_id / f"{HOST_KEY}.pub").read_bytes().split()[1]
    canary = secrets.token_hex(16)
    said(host, machine_id, f"echo {canary} >/root/canary; sync")
    for snapshot in list_snapshots(settings):
        for path in (snapshot.memory, snapshot.state, snapshot.disk):
            content = path.read_bytes()
            assert [part for part in (key, canary.encode(), machine_id.encode()) if part in content] == []


def test_a_damaged_snapshot_is_never_restored(host: MachineHost, settings: Settings, image: Image) -> None:
    make(host, image)
    snapshot = list_snapshots(settings)[0]
    os.truncate(snapshot.state, snapshot.state.stat().st_size // 2)
    lines: list[str] = []
    machine_id = make(host, image, lines.append)
    assert [line for line in lines if "no snapshot of this shape" in line]
    assert host.record(machine_id).snapshot == snapshot.key
    assert list_snapshots(settings)[0].made_at > snapshot.made_at
    assert said(host, machine_id, "hostname") == machine_id


def test_a_machine_boots_when_its_snapshot_cannot_be_restored(
    host: MachineHost, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(host, image)
    snapshot = list_snapshots(settings)[0]
    # Whole by its digests, and yet no state that QEMU takes.
    monkeypatch.setattr("machines.snapshots.snapshot._checked", _signature)
    snapshot.state.write_bytes(b"no state")
    lines: list[str] = []
    machine_id = make(host, image, lines.append)
    assert [line for line in lines if "the machine boots without a snapshot" in line]
    assert host.record(machine_id).snapshot is None
    assert said(host, machine_id, "hostname") == machine_id
    assert list_snapshots(settings) == []


def test_a_caller_killed_in_the_middle_of_a_restore_is_continued(
    host: MachineHost, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(host, image)

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    for place in ("machines.boot.load", "machines.boot.identity_message", "machines.boot.Boot._enter"):
        machine_id = reserve(host)
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(Killed):
                MachineHost(settings).ensure_running(machine_id, image, lambda _: None)
        assert host.is_alive(machine_id)
        record = MachineHost(settings).ensure_running(machine_id, image, lambda _: None)
        assert (record.state, record.snapshot is not None) == ("running", True)
        assert said(host, machine_id, "hostname") == machine_id
        until(partial(has_grown, host, machine_id))
        host.destroy(machine_id)


def test_a_machine_that_ended_starts_again_with_its_own_disk(host: MachineHost, image: Image) -> None:
    machine_id = make(host, image)
    said(host, machine_id, "echo kept >/root/kept; sync")
    host.kill(machine_id)
    record = host.ensure_running(machine_id, image, lambda _: None)
    assert record.snapshot is None
    assert said(host, machine_id, "cat /root/kept; hostname") == f"kept\n{machine_id}"


def test_a_burst_of_machines_and_many_in_a_row_leave_nothing(host: MachineHost, image: Image) -> None:
    with ThreadPoolExecutor(8) as pool:
        machines = list(pool.map(lambda _: make(host, image), range(8)))
        names = list(pool.map(lambda machine_id: said(host, machine_id, "hostname"), machines))
        assert names == machines
        list(pool.map(host.destroy, machines))
    before = set(threading.enumerate())
    descriptors = psutil.Process().num_fds()
    for _ in range(5):
        machine_id = make(host, image)
        assert said(host, machine_id, "echo $((6 * 7))") == "42"
        host.destroy(machine_id)
    until(lambda: set(threading.enumerate()) <= before, 10)
    assert psutil.Process().num_fds() <= descriptors


_COUNTING = """
cat >/root/count.py <<'END'
import time
number, end = 0, time.monotonic() + 1e9
while True:
    number += 1
    print(number, time.time(), file=open("/run/count.draft", "w"))
    __import__("os").replace("/run/count.draft", "/run/count")
    time.sleep(0.1)
END
setsid python3 /root/count.py </dev/null >/dev/null 2>&1 &
setsid sh -c 'sleep 8; date +%s.%N >/run/alarm' </dev/null >/dev/null 2>&1 &
setsid sh -c 'exec 3>/root/open; echo first >&3; sleep 9; echo second >&3; exec sleep 1000' </dev/null >/dev/null 2>&1 &
head -c 1000000 /dev/urandom >/run/content
"""


@pytest.mark.parametrize("restored", [True, False])
def test_a_paused_machine_goes_on_where_it_stood(
    settings: Settings, host: MachineHost, image: Image, tmp_path: Path, *, restored: bool
) -> None:
    maker = MachineHost(settings.model_copy(update={"use_snapshots": restored}))
    machine_id = make(maker, image)
    assert (maker.record(machine_id).snapshot is not None) == restored
    tree, disk = tmp_path / "tree", tmp_path / "disk"
    tree.mkdir()
    (tree / "README").write_text("from the host\n")
    build_workspace(tree, disk, GIB // 8)
    maker.attach_workspace(machine_id, disk)
    said(maker, machine_id, _COUNTING)
    until(lambda: said(maker, machine_id, "cat /run/count 2>/dev/null || true"))
    counted = int(said(maker, machine_id, "cut -d' ' -f1 /run/count"))
    digest = said(maker, machine_id, "echo written >/workspace/new; sha256sum /run/content")
    started = said(maker, machine_id, "pgrep -f 'python3 .*coun[t]'")
    process = psutil.Process(maker.record(machine_id).pid)

    paused = maker.pause(machine_id)
    assert (paused.state, paused.holds_room, process.is_running()) == ("paused", False, False)
    assert maker.pause(machine_id) == paused
    assert host.sweep() == []
    with pytest.raises(GuestUnreachable, match="paused"):
        host.connect(machine_id)
    asleep = 3.0
    begun = time.time()
    until(lambda: time.time() > begun + asleep)

    # Another process of the host, which knows nothing but what is on disk.
    resumed = host.resume(machine_id)
    assert (resumed.state, resumed.holds_room) == ("running", True)
    # It is the same start of the machine: whoever knew of it before comes in.
    assert resumed.epoch == paused.epoch is not None
    assert host.resume(machine_id) == resumed
    number, at = said(host, machine_id, "cat /run/count").split()
    assert counted < int(number) < counted + 400
    until(lambda: abs(float(said(host, machine_id, "cut -d' ' -f2 /run/count")) - time.time()) < 2)
    assert float(at) > begun + asleep
    assert said(host, machine_id, "pgrep -f 'python3 .*coun[t]'") == started
    assert said(host, machine_id, "sha256sum /run/content") == digest
    assert (
        said(host, machine_id, "cat /workspace/README /workspace/new; touch /workspace/more")
        == "from the host\nwritten"
    )
    until(lambda: said(host, machine_id, "cat /run/alarm 2>/dev/null || true"))
    until(lambda: said(host, machine_id, "cat /root/open") == "first\nsecond")
    assert not (settings.machines / machine_id / "memory.state").exists()

    # And once more, to its end in the paused state.
    host.pause(machine_id)
    host.destroy(machine_id)
    with pytest.raises(MachineNotFound):
        host.resume(machine_id)


def test_a_pause_or_a_resume_that_was_cut_short_is_continued(
    settings: Settings, host: MachineHost, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    machine_id = make(host, image)
    said(host, machine_id, "echo here >/run/mark")

    def cut_short(place: str, act: Callable[[str], object]) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(Killed):
                act(machine_id)

    cut_short("machines.pause.sync", host.pause)
    assert MachineHost(settings).resume(machine_id).state == "running"
    assert said(host, machine_id, "cat /run/mark") == "here"
    cut_short("machines.pause.qemu.stop", host.pause)
    assert host.record(machine_id).state == "paused"
    assert host.is_alive(machine_id)
    cut_short("machines.pause.load", host.resume)
    assert host.record(machine_id).state == "paused"
    cut_short("machines.pause._set_clock", host.resume)
    assert host.resume(machine_id).state == "running"
    assert said(host, machine_id, "cat /run/mark") == "here"


@pytest.fixture
def pooled(settings: Settings, host: MachineHost, image: Image) -> MachineHost:
    """A host that keeps one machine of the tests' shape in its pool, and has it."""
    host.destroy(make(host, image))
    keeping = MachineHost(settings.model_copy(update={"warm_pool": 1}))
    keeping.keep_pool(print)
    return keeping


def pool_of(host: MachineHost) -> list[str]:
    return [record.id for record in host.records() if record.pooled_by is not None]


def test_a_machine_of_the_pool_is_handed_over_once_and_is_its_new_owners(
    pooled: MachineHost, settings: Settings, image: Image
) -> None:
    (member,) = pool_of(pooled)
    process, epoch = pooled.record(member).pid, pooled.record(member).epoch
    one, two = reserve(pooled), reserve(pooled)
    record = pooled.ensure_running(one, image, print)
    assert said(pooled, one, "hostname") == one
    assert record.epoch not in {None, epoch}
    assert (record.pid, record.state, record.owner_workflow) == (process, "running", "task-x")
    assert [each.id for each in pooled.records()] == [one, two]
    assert not (settings.machines / member).exists()
    assert pooled.ensure_running(two, image, print).pid != process
    pooled.destroy(member)  # whoever still knows it by its old name ends nothing
    assert pooled.sweep() == []
    assert (pooled.is_alive(one), pooled.is_alive(two)) == (True, True)
    assert set(traits(pooled, one)).isdisjoint(traits(pooled, two))
    until(partial(has_grown, pooled, one))
    elsewhere = MachineHost(settings)
    assert said(elsewhere, one, "cat /etc/hosts | head -1") == f"127.0.0.1 localhost {one}"
    assert elsewhere.pause(one).state == "paused"
    assert elsewhere.resume(one).state == "running"
    assert said(elsewhere, one, "hostname") == one
    pooled.keep_pool(print)
    assert len(pool_of(pooled)) == 1


def test_a_hand_over_that_was_cut_short_gives_a_machine_all_the_same(
    pooled: MachineHost, settings: Settings, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    for place in ("machines.pool.make_keys", "machines.pool.name_message", "machines.hypervisor.qemu.grow_root"):
        pooled.keep_pool(print)
        machine_id = reserve(pooled)
        with monkeypatch.context() as patch:
            patch.setattr(place, die)
            with pytest.raises(Killed):
                pooled.ensure_running(machine_id, image, print)
        later = MachineHost(settings)
        assert later.ensure_running(machine_id, image, print).state == "running"
        assert said(later, machine_id, "hostname") == machine_id
        until(partial(has_grown, later, machine_id))
        later.sweep()
        assert [each.id for each in later.records()] == [machine_id]
        assert said(later, machine_id, "hostname") == machine_id
        later.destroy(machine_id)
        pooled.sweep()


def test_the_pool_gives_way_and_ends_with_whoever_keeps_it(
    pooled: MachineHost, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (member,) = pool_of(pooled)
    assert pooled.sweep() == []
    full = MachineHost(settings.model_copy(update={"warm_pool": 1, "cpu_overcommit": 1}))
    deadline = datetime.now(UTC) + timedelta(hours=1)
    larger = Reservation(f"vm-{secrets.token_hex(8)}", "task-x", "run-x", os.cpu_count() or 1, GIB // 2, DISK, deadline)
    full.reserve(larger)
    assert pool_of(pooled) == []
    assert not pooled.is_alive(member)
    pooled.destroy(larger.machine_id)

    pooled.keep_pool(print)
    assert len(pool_of(pooled)) == 1
    monkeypatch.setattr("machines.pool.under_pressure", lambda _: True)
    pooled.keep_pool(print)
    assert pool_of(pooled) == []
    monkeypatch.undo()

    pooled.keep_pool(print)
    store = RecordStore(settings)
    (record,) = pooled.records()
    store.write(record.model_copy(update={"pooled_by": "1 1"}))
    assert pooled.sweep() == [f"destroyed machine {record.id}: nobody keeps the pool that it belongs to"]
    pooled.keep_pool(print)
    pooled.drain_pool()
    assert pooled.records() == []
