"""Logs of the stack's parts: long ones are put aside while their writers go on, and there is a limit to all of them."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cli.stack.supervisor import bound_log

MOST = 1000
LINE = b"a line of a part that says much\n"


def test_a_log_and_what_is_put_aside_stay_bounded_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab", buffering=0) as writer:
        for number in range(500):
            writer.write(b"%d %s" % (number, LINE))
            bound_log(log, MOST)
            assert log.stat().st_size <= MOST
    assert sorted(path.name for path in tmp_path.iterdir()) == ["part.log", "part.log.1"]
    kept = log.with_suffix(".log.1").read_bytes() + log.read_bytes()
    assert len(kept) <= 2 * MOST + len(LINE) + 4
    numbers = [int(line.split()[0]) for line in kept.splitlines()]
    assert numbers == list(range(numbers[0], 500))


def test_a_full_disk_costs_old_lines_and_not_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: Path, aside: Path) -> None:
        aside.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("cli.stack.supervisor.shutil.copyfile", no_room)
    log = tmp_path / "part.log"
    log.write_bytes(LINE * MOST)
    bound_log(log, MOST)
    assert log.stat().st_size == 0
    assert list(tmp_path.iterdir()) == [log]


def test_a_log_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    bound_log(tmp_path / "part.log", MOST)
    assert list(tmp_path.iterdir()) == []
