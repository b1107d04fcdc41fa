"""What becomes of an agent's changes in submodules and in files of git LFS: a patch that a clone with both takes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.artifacts.steps import Artifacts
from activities.machine.network import MachineNetworks
from activities.repository.staging import stage
from foundation.settings import Settings
from machines.disks.workspace import build_workspace
from machines.host import MachineHost
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from tests.git_servers import IDENTITY, GitServer, git, without_hosts_own
from tests.stand_ins.fake_egress import FakeEgress
from tests.stand_ins.lfs_server import LfsServer
from tests.workspace_reading import extract_workspace
from workflows.runs.messages import TaskStatus
from workflows.runs.requests import AgentResult, CollectRequest, CollectResult, StageRequest
from workflows.runs.states import TaskState
from workflows.specs.manifest import Repository

CONTENT = bytes(range(256)) * 800
OTHER = bytes(reversed(range(256))) * 700


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "served") as running:
        yield running


class Project:
    """A repository with files of LFS, a submodule with some too, and one within that; staged, changed, collected."""

    def __init__(self, settings: Settings, bucket: Bucket, server: GitServer, place: Path) -> None:
        self.settings, self.bucket, self.server, self.place = settings, bucket, server, place
        LfsServer(server).nest(
            lambda place: {
                "kept.bin": CONTENT,
                "changed.bin": f"of {place}".encode(),
                "moved.bin": OTHER + place.encode(),
            }
        )
        self.machine = f"vm-{uuid.uuid4().hex[:16]}"
        self.task = f"collect-{uuid.uuid4().hex[:8]}"
        self.repository = Repository(url=server.url("top"), branch="main", submodules=True, lfs=True)
        request = StageRequest(task_id="t", machine_id=self.machine, repository=self.repository, disk="64M")
        self.staged = stage(settings, request, lambda _: None)
        self.tree = place / "guest"
        extract_workspace(Path(self.staged.workspace_image), self.tree, dirty=False)

    def collect(self) -> CollectResult:
        """What is collected of the tree as the guest has left it."""
        build_workspace(self.tree, Path(self.staged.workspace_image), 64 * 2**20)
        now = datetime.now(UTC)
        status = TaskStatus(id=self.task, name="t", state=TaskState.COMPLETING, created_at=now, state_changed_at=now)
        request = CollectRequest(
            task_id=self.task,
            machine_id=self.machine,
            repository=self.repository,
            base_commit=self.staged.base_commit,
            mirror=self.staged.mirror,
            submodules=self.staged.submodules,
            patterns=["**/changed.bin"],
            agent=AgentResult(exit_code=0),
            status=status,
        )
        artifacts = Artifacts(self.settings, MachineHost(self.settings), self.bucket, MachineNetworks(FakeEgress()))
        return ActivityEnvironment().run(artifacts.collect_artifacts, request)

    def read(self, name: str) -> bytes:
        return b"".join(stored.open_stream(self.bucket, TASKS.place(self.task), name))

    def patched(self) -> Path:
        """A clone as a person with git-lfs makes it, with the patch applied."""
        clone = self.place / "clone"
        config = self.place / "person.gitconfig"
        config.write_text(
            "[protocol]\n\tallow = always\n"
            '[filter "lfs"]\n\tclean = git-lfs clean -- %f\n\tsmudge = git-lfs smudge -- %f\n\trequired = true\n'
        )
        environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": str(config), "GIT_CONFIG_NOSYSTEM": "1"}

        def run(*command: str, input: bytes = b"") -> bytes:  # noqa: A002 -- the name subprocess gives it
            done = subprocess.run(command, env=environment, input=input, capture_output=True, check=False)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout

        run("git", "clone", "--quiet", "--recurse-submodules", self.server.url("top"), str(clone))
        assert (clone / "lib/middle/in ner/kept.bin").read_bytes() == CONTENT
        if patch := self.read(f"{self.task}.patch"):
            run("git", "-C", str(clone), "apply", "--binary", "-", input=patch)
        # git-lfs takes the new contents for what they are.
        run("git", "-C", str(clone), "add", "--all")
        return clone


@pytest.fixture
def project(
    services: Settings, bucket: Bucket, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Project:
    without_hosts_own(monkeypatch)
    settings = services.model_copy(update={"home": tmp_path / "home"})
    settings.s3_access_key, secret = services.s3_credentials()
    return Project(settings.model_copy(update={"s3_secret_key": secret}), bucket, server, tmp_path)


def contents(tree: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(tree)): path.read_bytes()
        for path in tree.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(tree).parts
    }


PLACES = ("", "lib/middle/", "lib/middle/in ner/")


def test_what_was_not_touched_is_not_in_the_patch(project: Project) -> None:
    result = project.collect()
    assert project.read(f"{project.task}.patch") == b""
    assert project.read(f"{project.task}-untracked.txt") == b""
    assert json.loads(project.read("metadata.json"))["changes"]["files"] == 0
    assert [note for note in result.notes if "repositories" in note] == []


def test_changes_everywhere_arrive_whole_in_a_clone(project: Project) -> None:
    for place in PLACES:
        (project.tree / place / "changed.bin").write_bytes(OTHER + place.encode())
        (project.tree / place / "new.bin").write_bytes(CONTENT[:5000] + place.encode())
        (project.tree / place / "moved.bin").rename(project.tree / place / "elsewhere.bin")
        (project.tree / place / "kept.bin").chmod(0o755)
        (project.tree / place / "text.txt").write_text("two\n")
        (project.tree / place / "new text.txt").write_text("new\n")
    # Committed or not, in a submodule or not.
    for place in ("lib/middle/in ner", "lib/middle"):
        git(project.tree / place, "add", "--all")
        git(project.tree / place, "commit", "--quiet", "-m", "change")

    project.collect()

    patch = project.read(f"{project.task}.patch")
    # A content that only moved is still the pointer that its server knows.
    assert patch.count(b"similarity index 100%") == 1
    assert patch.count(b"+version https://git-lfs.github.com") == 2
    assert contents(project.patched()) == contents(project.tree)
    untracked = project.read(f"{project.task}-untracked.txt").decode().splitlines()
    assert {f"{place}new text.txt" for place in PLACES} <= set(untracked)
    names = {each.path for each in stored.index(project.bucket, TASKS.place(project.task)) or ()}
    assert {f"{place}changed.bin" for place in PLACES} <= names


def test_a_submodule_that_was_emptied_or_removed(project: Project) -> None:
    inner = project.tree / "lib/middle/in ner"
    shutil.rmtree(inner)
    inner.mkdir()
    project.collect()
    assert b"deleted file mode" in project.read(f"{project.task}.patch")
    assert contents(project.patched()) == contents(project.tree)

    shutil.rmtree(project.tree / "lib")
    project.collect()
    assert b"-Subproject commit" in project.read(f"{project.task}.patch")
