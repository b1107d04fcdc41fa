"""The ledger: what fits, what fits later, what never fits."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import InsufficientResources
from foundation.settings import Settings
from machines.hypervisor.hardware import TRANSLATION_BYTES
from machines.ledger import DISK_HEADROOM, Capacity, NoRoom, admit, host_capacity
from machines.paths import CONSOLE, OVERLAY
from machines.records import MachineRecord, Reservation

GIB = 2**30
NOW = datetime(2026, 1, 2, tzinfo=UTC)
HOST = Capacity(cpus=8, memory_bytes=16 * GIB, disk_total_bytes=100 * GIB, disk_free_bytes=50 * GIB)


def asked(cpus: int = 2, memory: int = 4 * GIB, disk: int = 40 * GIB) -> Reservation:
    return Reservation("vm-00000000000000ff", "w", "r", cpus, memory, disk, NOW)


def there(cpus: int = 4, memory: int = 8 * GIB) -> MachineRecord:
    return MachineRecord(
        id="vm-0000000000000001",
        owner_workflow="w",
        owner_run="r",
        cpus=cpus,
        memory_bytes=memory,
        disk_bytes=40 * GIB,
        created_at=NOW,
        deadline=NOW,
    )


@pytest.mark.parametrize("request_", [asked(), asked(cpus=4), asked(memory=8 * GIB), asked(disk=100 * GIB)])
def test_what_is_free_may_be_used_to_the_last(request_: Reservation) -> None:
    admit(HOST, [there()], request_)
    admit(HOST, [], asked(cpus=8, memory=16 * GIB))


@pytest.mark.parametrize(
    ("request_", "missing"),
    [
        (asked(cpus=5), r"5 CPUs \(4 of 8 free\)"),
        (asked(memory=8 * GIB + 1), r"8\.0 GiB of memory \(8\.0 GiB free\)"),
        (asked(cpus=5, memory=9 * GIB), r"CPUs .* and .* of memory"),
    ],
)
def test_what_does_not_fit_now_may_fit_later(request_: Reservation, missing: str) -> None:
    with pytest.raises(NoRoom, match=missing) as refused:
        admit(HOST, [there()], request_)
    assert refused.value.retryable


def test_a_full_disk_admits_nothing_new() -> None:
    full = Capacity(8, 16 * GIB, 100 * GIB, GIB)
    with pytest.raises(NoRoom, match="free disk"):
        admit(full, [], asked())


@pytest.mark.parametrize(
    ("request_", "field"),
    [(asked(cpus=9), "cpus"), (asked(memory=17 * GIB), "memory"), (asked(disk=101 * GIB), "disk")],
)
def test_what_never_fits_is_said_with_figures(request_: Reservation, field: str) -> None:
    with pytest.raises(InsufficientResources, match=rf"vm\.{field}") as refused:
        admit(HOST, [], request_)
    assert refused.value.details["requested"]["cpus"] == request_.cpus
    assert refused.value.details["available"] == {
        "cpus": 8,
        "memory_bytes": 16 * GIB,
        "disk_bytes": 100 * GIB,
    }


def test_the_settings_shape_the_capacity(tmp_path: Path) -> None:
    once = host_capacity(Settings(home=tmp_path / "not" / "made", cpu_overcommit=1, memory_reserve="1M"))
    more = host_capacity(Settings(home=tmp_path, cpu_overcommit=3, memory_reserve="257M"))
    assert more.cpus == 3 * once.cpus
    assert once.memory_bytes - more.memory_bytes == 256 * 2**20
    assert 0 < once.disk_free_bytes <= once.disk_total_bytes


def test_what_each_qemu_takes_beside_its_guest_is_counted() -> None:
    host = replace(HOST, overhead_bytes=GIB)
    admit(host, [there()], asked(memory=6 * GIB))
    with pytest.raises(NoRoom, match=r"memory \(6\.0 GiB free\)"):
        admit(host, [there()], asked(memory=6 * GIB + 1))
    with pytest.raises(InsufficientResources) as refused:
        admit(host, [], asked(memory=15 * GIB + 1))
    assert refused.value.details["available"]["memory_bytes"] == 15 * GIB


@pytest.mark.parametrize(("acceleration", "more"), [("tcg", TRANSLATION_BYTES), ("kvm", 0)])
def test_an_emulating_qemu_counts_with_its_translations(tmp_path: Path, acceleration: str, more: int) -> None:
    least = host_capacity(Settings(home=tmp_path, acceleration="kvm")).overhead_bytes
    assert host_capacity(Settings(home=tmp_path, acceleration=acceleration)).overhead_bytes == least + more > 0


@given(
    sizes=st.lists(st.tuples(st.integers(0, 8 * GIB), st.integers(0, 8 * GIB)), max_size=8),
    free=st.integers(0, 40 * GIB),
    disk=st.integers(0, 8 * GIB),
)
def test_no_admission_takes_the_disk_that_was_promised_to_others(
    sizes: list[tuple[int, int]], free: int, disk: int
) -> None:
    records = [
        there(cpus=0, memory=0).model_copy(update={"id": str(n), "disk_bytes": d}) for n, (d, _) in enumerate(sizes)
    ]
    written = {str(number): done for number, (_, done) in enumerate(sizes)}
    host = replace(HOST, disk_free_bytes=free, written=written)
    # Until each of them has written what it was promised, so much of the free disk is theirs.
    promised = sum(max(0, min(DISK_HEADROOM, most) - done) for most, done in sizes)
    fits = free - promised >= min(DISK_HEADROOM, disk) or min(DISK_HEADROOM, disk) == 0
    try:
        admit(host, records, asked(disk=disk))
    except NoRoom:
        assert not fits
    else:
        assert fits


def test_what_machines_have_written_is_what_their_files_take(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path)
    directory = settings.machines / "vm-0000000000000001"
    directory.mkdir(parents=True)
    with (directory / OVERLAY).open("wb") as overlay:
        overlay.write(b"x" * 65536)
        overlay.truncate(8 * GIB)
    (directory / CONSOLE).write_bytes(b"x" * 4096)
    assert host_capacity(settings).written == {"vm-0000000000000001": 65536 + 4096}
