"""Machines kept after a failure: who hears of them, who does not any more, and the commands that keep and end them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from typer.testing import CliRunner, Result

from activities.machine.preservation import say_preserved
from api.runs.core import TaskView
from api.runs.preservation import as_kept_now
from cli.main import app
from foundation.errors import BucketUnavailable
from foundation.settings import Settings
from machines.host import MachineHost, Reservation
from machines.hypervisor import qemu
from machines.hypervisor.acceleration import QEMU
from machines.paths import machine_paths
from machines.records import RecordStore
from storage.bucket import Bucket
from storage.preserved import preserved_on
from tests.stand_ins.memory_bucket import MemoryBucket
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

ONE, TWO = "vm-0000000000000001", "vm-0000000000000002"
NAME = "host"
HOUR = timedelta(hours=1)


class Site:
    """A host with a preserved machine of the run ``failed``, and one that the run ``going`` is using."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.host = MachineHost(settings)
        self.bucket = MemoryBucket()
        self.until = datetime.now(UTC) + HOUR
        self.reserve(ONE, "failed")
        self.reserve(TWO, "going")
        self.start(ONE)
        self.host.preserve(ONE, self.until)
        self.say()

    def reserve(self, machine_id: str, run: str) -> None:
        self.host.reserve(Reservation(machine_id, f"task-{run}", "r", 1, 2**28, 2**30, datetime.now(UTC) + HOUR))

    def start(self, machine_id: str) -> None:
        """A QEMU without hardware that carries the machine's name."""
        paths = machine_paths(self.settings, machine_id)
        arguments = [QEMU, "-name", machine_id, "-pidfile", str(paths.pid_file), "-machine", "none", "-nodefaults"]
        qemu.start(paths, [*arguments, "-display", "none", "-S"])
        store = RecordStore(self.settings)
        store.write(store.read(machine_id).model_copy(update={"ssh_port": 2222}))

    def say(self) -> int:
        return say_preserved(NAME, self.host, self.bucket)

    def told(self, run: str = "failed", *, bucket: Any = None, **facts: Any) -> TaskStatus:
        """The run as a server shows it."""
        now = datetime.now(UTC)
        ended = {"ssh_command": "ssh as it was", "preserved_until": self.until, "host": NAME, **facts}
        status = TaskStatus(
            id=run,
            name="n",
            state=TaskState.FAILED_PRESERVED,
            created_at=now,
            state_changed_at=now,
            state_message="VM preserved",
            **ended,
        )
        return asyncio.run(as_kept_now(TaskView(status, live=True), cast("Bucket", bucket or self.bucket))).status


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("TASKYARD_HOME", str(tmp_path))
    monkeypatch.setenv("TASKYARD_HOST_NAME", NAME)
    site = Site(Settings())
    monkeypatch.setattr("storage.bucket.Bucket", lambda _settings: site.bucket)
    yield site
    for process in qemu.processes_of(site.settings.machines.resolve()).values():
        process.kill()
        process.wait(10)


def machine(*words: str) -> Result:
    return CliRunner().invoke(app, ["machine", *words], env={"COLUMNS": "20"})


def advertised(status: TaskStatus) -> bool:
    """Whether somebody who reads the status takes the machine to be there; its fields and its words say the same."""
    told = {
        status.ssh_command is not None,
        status.preserved_until is not None,
        "is gone" not in (status.state_message or ""),
    }
    assert len(told) == 1
    return told.pop()


def test_a_kept_machine_is_advertised_with_its_deadline_and_the_way_in(site: Site) -> None:
    status = site.told()
    assert advertised(status)
    assert status.preserved_until == site.until
    assert status.ssh_command == site.host.ssh_command(ONE)
    assert not advertised(site.told("going"))


@pytest.mark.parametrize("how", ["release", "destroy", "deadline", "dead"])
def test_a_machine_that_is_gone_is_not_advertised(site: Site, how: str) -> None:
    if how == "deadline":
        site.host.preserve(ONE, datetime.now(UTC) - HOUR)
        site.say()
        assert not advertised(site.told())
        site.host.sweep()
        site.say()
    elif how == "dead":
        site.host.kill(ONE)
        site.say()
    else:
        done = machine(how, "failed")
        assert (done.exit_code, done.stdout) == (0, f"{ONE} destroyed\n")
    assert not advertised(site.told())
    assert preserved_on(site.bucket, NAME) == {}


def test_what_the_host_has_not_said_yet_is_told_as_it_was_recorded_until_its_deadline(site: Site) -> None:
    class Away:
        def get(self, _key: str) -> bytes:
            raise BucketUnavailable("away")

    for bucket in (MemoryBucket(), Away()):
        assert site.told(bucket=bucket).ssh_command == "ssh as it was"
        assert not advertised(site.told(bucket=bucket, preserved_until=datetime.now(UTC) - HOUR))
        assert not advertised(site.told(bucket=bucket, preserved_until=None))


def test_extending_moves_the_deadline_for_the_sweeper_and_for_the_status(site: Site) -> None:
    done = machine("extend", "failed", "2h")
    assert (done.exit_code, done.stdout.startswith(f"{ONE} is kept until ")) == (0, True)
    assert site.host.record(ONE).deadline == site.told().preserved_until == site.until + 2 * HOUR
    site.host.preserve(ONE, datetime.now(UTC) - HOUR)
    machine("extend", ONE, "30m")
    assert site.host.sweep() == []
    assert site.host.record(ONE).deadline > datetime.now(UTC)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("extend", "failed", "31d"), 2, "at most 30 days"),
        (("extend", "failed", "9" * 400 + "d"), 2, "not a length of time"),
        (("extend", "failed", "soon"), 2, "not a length of time"),
        (("extend", "going", "1h"), 3, "ends with its run"),
        (("release", "failed", "going"), 3, "sandbox task cancel going"),
        (("release", "never"), 2, "No machine of the run 'never'"),
        (("ssh", "never"), 2, "No machine of the run 'never'"),
        (("destroy", "failed", "never"), 2, "No machine of the run 'never'"),
    ],
)
def test_what_cannot_be_kept_or_released_is_said_and_nothing_is_touched(
    site: Site, words: tuple[str, ...], code: int, said: str
) -> None:
    done = machine(*words)
    assert (done.exit_code, said in done.stderr, done.stdout) == (code, True, ""), done.stderr
    assert site.told().preserved_until == site.until
    assert site.host.is_alive(ONE)


def test_the_way_in_is_printed_whole_by_run_and_by_machine_however_narrow_the_terminal(site: Site) -> None:
    for name in ("failed", ONE):
        shown = machine("ssh", name, "--print")
        assert shown.stdout == site.host.ssh_command(ONE) + "\n"
    listed = machine("list")
    assert [line.split()[0] for line in listed.stdout.splitlines()[1:]] == [ONE, TWO]
    assert "task-failed" in listed.stdout
