"""Locks: exclusive or shared, with patience or without, on the file that is there, ending with their holder."""

from __future__ import annotations

import math
import threading
from pathlib import Path

import pytest

from foundation.locks import held, take


def test_one_holds_it_alone_or_many_share_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with held(path) as first, held(path, patience=0) as second, held(path, shared=True, patience=0) as third:
        assert (first, second, third) == (True, False, False)
    with held(path, shared=True) as first, held(path, shared=True) as second, held(path, patience=0) as third:
        assert (first, second, third) == (True, True, False)
    with held(path, patience=0) as first:
        assert first


@pytest.mark.parametrize("patience", [None, math.inf, 30.0])
def test_who_waits_says_so_once_and_has_it_next(tmp_path: Path, patience: float | None) -> None:
    waits, seen = threading.Event(), []

    def wait() -> None:
        with held(tmp_path / "lock", patience=patience, busy=waits.set) as got:
            seen.append(got)

    with held(tmp_path / "lock"):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert waits.wait(30)
        assert seen == []
    waiter.join(30)
    assert seen == [True]


def test_patience_ends(tmp_path: Path) -> None:
    said: list[str] = []
    with held(tmp_path / "lock"), held(tmp_path / "lock", patience=0.01, busy=lambda: said.append("busy")) as got:
        assert (got, said) == (False, ["busy"])


def test_a_file_that_was_made_anew_meanwhile_is_the_one_to_hold(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    waits, has_it, over = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with held(path, busy=waits.set):
            has_it.set()
            over.wait(30)

    with held(path):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert waits.wait(30)
        path.unlink()
        path.touch()
    assert has_it.wait(30)
    with held(path, patience=0) as got:
        assert not got
    over.set()
    waiter.join(30)


def test_a_lock_without_a_directory_is_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), held(tmp_path / "gone" / "lock"):
        pass


def test_an_open_file_changes_from_one_kind_to_the_other(tmp_path: Path) -> None:
    with (tmp_path / "lock").open("w") as one, (tmp_path / "lock").open("w") as other:
        assert take(one, shared=True)
        assert take(other, shared=True)
        assert not take(one, patience=0)
        # In the attempt it was let go.
        assert take(other, patience=0)
        assert take(other, shared=True, patience=0)
        assert take(one, shared=True, patience=0)
