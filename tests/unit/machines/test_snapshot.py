"""Snapshots without guests: what they are named by, when they are taken for whole, and how much disk they may use."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from foundation.errors import MachineError
from foundation.settings import Settings
from machines.images.store import Image
from machines.paths import MachinePaths
from machines.shape import Shape
from machines.snapshots.snapshot import (
    Snapshot,
    discard_snapshot,
    discard_snapshots_of,
    held_snapshot,
    list_snapshots,
    snapshot_key,
    sweep_snapshots,
)
from machines.snapshots.template import DISK, MEMORY, STATE

MIB = 2**20


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, snapshot_limit="100M")


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Templates made, by the name of their directory; a file of 8 MiB in 64 MiB of nothing stands for the memory."""
    directories: list[str] = []

    def make(paths: MachinePaths, _shape: Shape, _report: Callable[[str], None]) -> None:
        directories.append(paths.directory.name)
        with (paths.directory / MEMORY).open("wb") as file:
            file.truncate(64 * MIB)
            file.seek(16 * MIB)
            file.write(os.urandom(8 * MIB))
        (paths.directory / STATE).write_bytes(b"devices")
        (paths.directory / DISK).write_bytes(b"disk")

    monkeypatch.setattr("machines.snapshots.snapshot.make_template", make)
    return directories


def shape(directory: Path, cpus: int = 2) -> Shape:
    image = Image("p", "0" * 32, directory, {}, 0, 64 * MIB, datetime.now(UTC), 0.0, "root=/dev/vda")
    return Shape(image, cpus, 64 * MIB, "tcg")


def take(settings: Settings, wanted: Shape) -> Snapshot:
    with held_snapshot(settings, wanted, lambda _: None) as snapshot:
        return snapshot


def test_each_thing_that_shapes_a_guest_is_in_the_key(tmp_path: Path) -> None:
    one = shape(tmp_path)
    others = [
        replace(one, cpus=1),
        replace(one, memory_bytes=128 * MIB),
        replace(one, acceleration="kvm"),
        replace(one, image=replace(one.image, digest="1" * 32)),
        replace(one, image=replace(one.image, command_line="root=/dev/vdb")),
    ]
    assert len({snapshot_key(each) for each in [one, *others]}) == 6
    assert snapshot_key(replace(one, image=replace(one.image, directory=tmp_path / "moved"))) == snapshot_key(one)


def test_a_snapshot_is_made_once(settings: Settings, made: list[str], tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: take(settings, shape(tmp_path)).key, range(8)))
    assert (len(made), set(found)) == (1, {snapshot_key(shape(tmp_path))})
    assert [path.name for path in settings.snapshots.iterdir() if path.name.startswith(".build")] == []


@pytest.mark.parametrize("name", [MEMORY, STATE, DISK])
@pytest.mark.parametrize("fault", ["flip", "cut", "gone", "grown"])
def test_a_damaged_snapshot_is_made_anew(
    settings: Settings, made: list[str], tmp_path: Path, name: str, fault: str
) -> None:
    path = take(settings, shape(tmp_path)).directory / name
    path.chmod(0o600)
    if fault == "flip":
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 4)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    elif fault == "cut":
        os.truncate(path, path.stat().st_size - 1)
    elif fault == "grown":
        os.truncate(path, path.stat().st_size + 1)
    else:
        path.unlink()
    assert take(settings, shape(tmp_path)).key
    assert len(made) == 2


@pytest.mark.parametrize("content", ["", "{", '{"inputs": {}}'])
def test_facts_that_cannot_be_read_are_none(settings: Settings, made: list[str], tmp_path: Path, content: str) -> None:
    (take(settings, shape(tmp_path)).directory / "snapshot.json").write_text(content)
    assert list_snapshots(settings) == []
    take(settings, shape(tmp_path))
    assert len(made) == 2


def test_another_shapes_snapshot_in_its_place_is_not_taken(settings: Settings, made: list[str], tmp_path: Path) -> None:
    wanted = snapshot_key(shape(tmp_path, cpus=4))
    take(settings, shape(tmp_path)).directory.rename(settings.snapshots / wanted)
    assert take(settings, shape(tmp_path, cpus=4)).cpus == 4
    assert len(made) == 2


def test_a_copy_that_is_the_same_is_taken(settings: Settings, made: list[str], tmp_path: Path) -> None:
    path = take(settings, shape(tmp_path)).memory
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    take(settings, shape(tmp_path))
    assert len(made) == 1


def test_a_template_that_fails_leaves_nothing(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(paths: MachinePaths, *_: object) -> None:
        (paths.directory / MEMORY).write_bytes(b"half")
        raise MachineError("no boot")

    monkeypatch.setattr("machines.snapshots.snapshot.make_template", fail)
    with pytest.raises(MachineError, match="no boot"):
        take(settings, shape(tmp_path))
    assert [path.name for path in settings.snapshots.iterdir()] == [f".lock-{snapshot_key(shape(tmp_path))}"]


@pytest.mark.usefixtures("made")
def test_the_longest_unused_go_when_there_is_no_room(settings: Settings, tmp_path: Path) -> None:
    keys = {}
    for cpus in (1, 2, 3):
        keys[cpus] = take(settings, shape(tmp_path, cpus)).key
        os.utime(settings.snapshots / keys[cpus] / "used", (cpus, cpus))
    take(settings, shape(tmp_path, 1))
    smaller = settings.model_copy(update={"snapshot_limit": "20M"})
    lines = sweep_snapshots(smaller)
    assert len(lines) == 1
    assert keys[2] in lines[0]
    assert [snapshot.cpus for snapshot in list_snapshots(settings)] == [1, 3]


@pytest.mark.usefixtures("made")
def test_one_that_is_in_use_stays(settings: Settings, tmp_path: Path) -> None:
    nothing = settings.model_copy(update={"snapshot_limit": "1K"})
    with held_snapshot(settings, shape(tmp_path), lambda _: None) as snapshot:
        assert sweep_snapshots(nothing) == []
        assert not discard_snapshot(settings, snapshot.key)
    assert len(sweep_snapshots(nothing)) == 1
    assert list_snapshots(settings) == []


@pytest.mark.usefixtures("made")
def test_the_snapshots_of_an_image_go_with_it(settings: Settings, tmp_path: Path) -> None:
    take(settings, shape(tmp_path))
    discard_snapshots_of(settings, "1" * 32)
    assert len(list_snapshots(settings)) == 1
    discard_snapshots_of(settings, "0" * 32)
    assert list_snapshots(settings) == []


def test_what_a_killed_maker_left_is_swept_and_what_a_living_one_makes_is_not(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, over = threading.Event(), threading.Event()

    def make(paths: MachinePaths, *_: object) -> None:
        under_way.set()
        over.wait(30)
        for name in (MEMORY, STATE, DISK):
            (paths.directory / name).write_bytes(b"x")

    monkeypatch.setattr("machines.snapshots.snapshot.make_template", make)
    with ThreadPoolExecutor(1) as pool:
        making = pool.submit(take, settings, shape(tmp_path))
        assert under_way.wait(30)
        left = settings.snapshots / f".build-{'f' * 32}-0000"
        left.mkdir()
        lines = sweep_snapshots(settings)
        over.set()
        assert making.result(30).key
    assert [left.name in line for line in lines] == [True]
    assert not left.exists()
