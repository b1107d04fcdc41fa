"""Files that are written whole: what is there after any failure, who may read it, and what waits for a disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from foundation.durable import ORDINARY, on_their_way, write_durably, write_once, write_whole

Write = Callable[[Path, bytes | str], None]


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What reached the disk, in order: the kinds of the descriptors."""
    kinds: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        kinds.append("directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return kinds


@pytest.mark.parametrize("write", [write_whole, write_durably])
def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path: Path, write: Write) -> None:
    for data in (b"first", "zweiter, ä", b""):
        write(tmp_path / "file", data)
        assert (tmp_path / "file").read_bytes() == (data.encode() if isinstance(data, str) else data)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_what_must_outlive_the_host_waits_for_its_disk(tmp_path: Path, synced: list[str]) -> None:
    write_whole(tmp_path / "one", b"x")
    write_once(tmp_path / "two", b"x")
    assert synced == []
    write_durably(tmp_path / "three", b"x")
    assert synced == ["file", "directory"]


def test_a_file_is_its_users_alone_unless_it_is_an_ordinary_one(tmp_path: Path) -> None:
    write_whole(tmp_path / "private", b"")
    write_once(tmp_path / "once", b"")
    write_whole(tmp_path / "ordinary", b"", ORDINARY)
    (tmp_path / "plain").touch()
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert (modes["private"], modes["once"]) == (0o600, 0o600)
    assert modes["ordinary"] == modes["plain"]


@pytest.mark.parametrize("write", [write_whole, write_durably, write_once])
def test_a_write_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    (tmp_path / "file").write_bytes(b"before")

    def full(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="no space"):
        write(tmp_path / "file", b"after")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"before"}


def test_of_many_that_make_a_file_one_is_first_and_all_read_the_same(tmp_path: Path) -> None:
    def make(number: int) -> bytes:
        write_once(tmp_path / "file", f"{number}" * 1000)
        return (tmp_path / "file").read_bytes()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(make, range(32)))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_that_grow_are_sent_to_the_disk_meanwhile_and_lose_nothing(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for path in (one, other):
        path.touch()
    with on_their_way(one, other):
        one.write_bytes(b"x" * 2**20)
        other.write_bytes(b"y" * 2**20)
    assert (one.read_bytes(), other.read_bytes()) == (b"x" * 2**20, b"y" * 2**20)
    with pytest.raises(OSError, match="absent"), on_their_way(one, tmp_path / "absent"):
        pytest.fail("a file that is not there is on no way")
