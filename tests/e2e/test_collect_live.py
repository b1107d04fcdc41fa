"""A living guest's workspace: secrets in its memory, its disk read while it is frozen, and read when it hangs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.artifacts.steps import Artifacts
from activities.machine.network import MachineNetworks
from activities.machine.secrets import Secrets
from activities.repository.staging import Repositories
from cli.stack.up import Stack
from foundation.settings import Settings
from guest.contract import ENVIRONMENT
from machines.host import MachineHost, Reservation
from machines.images.store import find_image
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from tests.stack_settings import isolated_settings
from tests.stand_ins.fake_egress import FakeEgress
from workflows.runs.messages import TaskStatus
from workflows.runs.requests import CollectRequest, SecretsRequest, StageRequest
from workflows.specs.manifest import Repository, SecretReference

pytestmark = pytest.mark.timeout(600)

MACHINE = "vm-c0113c7000000001"
TASK = "collect-live"
VALUE = "line one\nline two ä"


@dataclass(frozen=True)
class Live:
    """A running machine with a staged workspace, and the bucket its artifacts go to."""

    settings: Settings
    host: MachineHost
    bucket: Bucket
    repository: Repository
    base: str

    def guest(self, command: str) -> str:
        return self.host.connect(MACHINE).run(command).stdout.decode()

    def collect(self) -> dict[str, bytes]:
        now = datetime.now(UTC)
        request = CollectRequest(
            task_id=TASK,
            machine_id=MACHINE,
            repository=self.repository,
            base_commit=self.base,
            patterns=[],
            status=TaskStatus(id=TASK, name=TASK, created_at=now, state_changed_at=now),
        )
        artifacts = Artifacts(self.settings, self.host, self.bucket, MachineNetworks(FakeEgress()))
        result = ActivityEnvironment().run(artifacts.collect_artifacts, request)
        return {
            each.name: b"".join(stored.open_stream(self.bucket, TASKS.place(TASK), each.name))
            for each in result.artifacts
        }


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    home = Path(tempfile.mkdtemp(prefix="ty-live-"))
    project = home / "project"
    project.mkdir()
    (project / "app.py").write_text("print(1)\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", project]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "base"], check=True)
    settings = isolated_settings(home, image_dir=Settings().images, allow_file_repositories=True)
    repository = Repository(url=f"file://{project}", branch="main")
    host = MachineHost(settings)
    try:
        with Stack(settings, parts=("bucket",)):
            bucket = Bucket(settings)
            deadline = datetime.now(UTC) + timedelta(hours=1)
            host.reserve(Reservation(MACHINE, "w", "r", 2, 2**30, 7 * 2**30, deadline))
            staged = ActivityEnvironment().run(
                Repositories(settings, bucket).stage_repository,
                StageRequest(task_id=TASK, machine_id=MACHINE, repository=repository, disk="4G"),
            )
            host.ensure_running(MACHINE, find_image(settings, "agentic-dev"), print)
            host.attach_workspace(MACHINE, Path(staged.workspace_image))
            yield Live(settings, host, bucket, repository, staged.base_commit)
    finally:
        host.destroy(MACHINE)
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(settings.sockets, ignore_errors=True)


def test_secrets_are_in_the_guests_memory_for_root_only(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY", VALUE)
    request = SecretsRequest(
        machine_id=MACHINE, task_id=TASK, secrets=[SecretReference(name="TOKEN", source="env", key="DEPLOY")]
    )

    for _ in range(2):
        result = ActivityEnvironment().run(Secrets(live.settings, live.host, live.bucket).inject_secrets, request)
        assert result.names == ["TOKEN"]

    assert live.guest(f"cat {ENVIRONMENT}") == f"TOKEN={VALUE}\0"
    assert live.guest(f"stat -c '%U %a' {ENVIRONMENT}; stat -f -c %T {ENVIRONMENT}") == "root 600\ntmpfs\n"
    assert "readable" not in live.guest(f"su agent -c 'test -r {ENVIRONMENT} && echo readable' || true")
    assert "line two" not in live.guest("journalctl --no-pager 2>/dev/null || true")


def test_a_living_guest_is_read_while_frozen_and_goes_on(live: Live) -> None:
    live.guest(
        "su agent -c 'cd /workspace && git status --porcelain --branch > /tmp/before && echo 2 > app.py && "
        "git -c user.name=a -c user.email=a@a commit -qam agent && echo new > notes.txt'"
    )

    files = live.collect()

    assert live.guest("cat /tmp/before") == "## main...origin/main\n"
    assert b"\n+2\n" in files[f"{TASK}.patch"]
    assert b"\n+new\n" in files[f"{TASK}.patch"]
    assert files[f"{TASK}-untracked.txt"] == b"notes.txt\n"
    metadata = json.loads(files["metadata.json"])
    assert metadata["notes"] == []
    assert metadata["left_out"] == {}
    assert live.guest("timeout 20 touch /workspace/after && echo written") == "written\n"


def test_a_guest_that_hangs_is_stopped_and_its_disk_read(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.artifacts.quiescence._FREEZE_SECONDS", 3)
    live.guest("echo late > /workspace/late.txt; sync --file-system /workspace")
    pid = live.host.record(MACHINE).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    files = live.collect()

    assert not live.host.is_alive(MACHINE)
    assert b"\n+late\n" in files[f"{TASK}.patch"]
    assert any("did not answer" in note for note in json.loads(files["metadata.json"])["notes"])
