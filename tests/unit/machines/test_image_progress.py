"""What a build tells while it runs, and what it says when a step fails."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil
import pytest

from foundation.errors import ImageBuildFailed
from machines.images import running
from machines.images.running import LoggedProcess, follow_packages

OUTPUT = """\
I: running apt-get update...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Need to get 29.7 MB of archives.
Get:1 http://mirror.invalid/debian bookworm/main amd64 git amd64 1:2.39.5 [7260 kB]
I: installing remaining packages inside the chroot...
Unpacking git (1:2.39.5) ...
Unpacking less (590) ...
Setting up git (1:2.39.5) ...
I: something that tells a user nothing
"""


def process(tmp_path: Path, script: str, reports: list[str]) -> LoggedProcess:
    command = [sys.executable, "-c", script]
    return LoggedProcess("disk", command, "check the disk", log=tmp_path / "log", report=reports.append)


def test_output_becomes_stages_and_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_COUNT_SECONDS", -1)
    reports: list[str] = []
    follow_packages(iter(OUTPUT.splitlines()), reports.append)
    assert reports == [
        "packages: reading the mirror's lists",
        "packages: fetching 29.7 MB for 2 packages",
        "packages: 1 of 2 fetched",
        "packages: the profile's own",
        "packages: 1 of 2 unpacked",
        "packages: 2 of 2 unpacked",
        "packages: 1 of 2 set up",
    ]


def test_failed_step_shows_the_end_of_the_log_and_where_it_is(tmp_path: Path) -> None:
    script = "print('early'); [print('line', n) for n in range(30)]; raise SystemExit(3)"
    with pytest.raises(ImageBuildFailed, match="check the disk") as caught, process(tmp_path, script, []) as lines:
        assert next(lines) == "early"
    assert "line 29" in caught.value.message
    assert "early" not in caught.value.message
    assert str(tmp_path / "log") in caught.value.message
    assert "early" in (tmp_path / "log").read_text()


def test_silence_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_SILENCE_SECONDS", 0.01)
    reports: list[str] = []
    with process(tmp_path, "import sys; sys.stdin.close(); import time; time.sleep(0.3)", reports) as lines:
        assert list(lines) == []
    assert reports[0].startswith("disk: still at work after")


def test_interrupted_step_takes_its_whole_session_along(tmp_path: Path) -> None:
    script = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    children: list[psutil.Process] = []

    def watch_until_interrupted() -> None:
        with process(tmp_path, script, []) as lines:
            children.append(psutil.Process(int(next(lines))))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_until_interrupted()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (gone, alive) == (children, [])
