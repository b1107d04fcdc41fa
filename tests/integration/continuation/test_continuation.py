"""A run that continues another one, on another host: files, commits and conversation, through the bucket."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from temporalio.testing import ActivityEnvironment

from activities.agent.conversation import conversation_id, file_of, place_in
from activities.artifacts.steps import Artifacts
from activities.machine.network import MachineNetworks
from activities.repository.staging import stage
from foundation.settings import Settings
from machines.disks.workspace import build_workspace
from machines.host import MachineHost
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.names import METADATA, conversation_name, patch_name
from tests.git_servers import git
from tests.stand_ins.fake_egress import FakeEgress
from tests.workspace_reading import extract_workspace
from workflows.runs.messages import TaskStatus
from workflows.runs.requests import AgentResult, CollectRequest, StageRequest, StageResult
from workflows.runs.states import TaskState
from workflows.specs.manifest import Repository, SecretReference
from workflows.specs.wire import Resume

PROJECT = "-workspace"
SAID = b'{"type":"user","message":{"role":"user","content":"begin"}}\n'
SECRET = "canary-71c0ffee5d"


class Work:
    """One run on a host of its own: staged, changed by its agent, collected."""

    def __init__(
        self, services: Settings, bucket: Bucket, place: Path, url: str, earlier: Work | str | None, **repository: bool
    ) -> None:
        self.bucket = bucket
        self.id = f"run-{uuid.uuid4().hex[:8]}"
        self.machine = f"vm-{uuid.uuid4().hex[:16]}"
        settings = services.model_copy(update={"home": place / self.id, "allow_file_repositories": True})
        settings.s3_access_key, secret = services.s3_credentials()
        self.settings = settings.model_copy(update={"s3_secret_key": secret})
        self.repository = Repository(url=url, branch="main", **repository)
        continued = earlier.id if isinstance(earlier, Work) else earlier
        request = StageRequest(
            task_id=self.id,
            machine_id=self.machine,
            repository=self.repository,
            disk="64M",
            resume=Resume(run=continued) if continued else None,
        )
        self.staged: StageResult = stage(self.settings, request, lambda _: None, bucket)
        self.tree = place / f"tree-{self.id}"
        extract_workspace(Path(self.staged.workspace_image), self.tree, dirty=False)

    def say(self, text: bytes) -> None:
        """Add to the agent's conversation, as Claude Code does."""
        path = file_of(self.tree, PROJECT, conversation_id(self.machine))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)

    def collect(self, *secrets: SecretReference) -> None:
        build_workspace(self.tree, Path(self.staged.workspace_image), 64 * 2**20)
        now = datetime.now(UTC)
        status = TaskStatus(id=self.id, name="t", state=TaskState.COMPLETING, created_at=now, state_changed_at=now)
        request = CollectRequest(
            task_id=self.id,
            machine_id=self.machine,
            repository=self.repository,
            base_commit=self.staged.base_commit,
            mirror=self.staged.mirror,
            submodules=self.staged.submodules,
            patterns=[],
            secrets=list(secrets),
            agent=AgentResult(exit_code=0),
            status=status,
        )
        artifacts = Artifacts(self.settings, MachineHost(self.settings), self.bucket, MachineNetworks(FakeEgress()))
        ActivityEnvironment().run(artifacts.collect_artifacts, request)

    def read(self, name: str) -> bytes:
        return b"".join(stored.open_stream(self.bucket, TASKS.place(self.id), name))

    def files(self) -> dict[str, tuple[str, bytes]]:
        """What is in the work tree: kind or mode, and content or target."""
        found: dict[str, tuple[str, bytes]] = {}
        for directory, below, names in os.walk(self.tree):
            if ".git" in below:
                below.remove(".git")
            for name in names + [each for each in below if Path(directory, each).is_symlink()]:
                path = Path(directory, name)
                kind = "link" if path.is_symlink() else oct(path.stat().st_mode & 0o111)
                content = bytes(path.readlink()) if kind == "link" else path.read_bytes()
                found[str(path.relative_to(self.tree))] = kind, content
        return found

    def git(self, *arguments: str) -> str:
        return git(self.tree, *arguments)


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    repository = tmp_path / "project"
    repository.mkdir()
    (repository / "app.py").write_text("print(1)\n" * 20)
    (repository / "old.py").write_text("old\n")
    (repository / "run.sh").write_text("echo\n")
    (repository / "crlf.txt").write_bytes(b"one\r\ntwo\r\n")
    (repository / ".gitattributes").write_text("crlf.txt text eol=crlf\n")
    (repository / ".gitignore").write_text("*.log\n")
    git(repository, "init", "--quiet", "--initial-branch=main")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "base")
    return repository


@pytest.fixture
def begin(services: Settings, bucket: Bucket, tmp_path: Path, origin: Path) -> Callable[..., Work]:
    def work(earlier: Work | str | None = None, url: str = f"file://{origin}") -> Work:
        return Work(services, bucket, tmp_path, url, earlier)

    return work


def leave_changes(work: Work) -> None:
    (work.tree / "app.py").write_text("print(2)\n" * 20)
    (work.tree / "old.py").unlink()
    (work.tree / "run.sh").chmod(0o755)
    (work.tree / "crlf.txt").write_bytes(b"one\r\nthree\r\n")
    (work.tree / "new").mkdir()
    (work.tree / "new" / "b\u00fc \\ch.bin").write_bytes(bytes(range(256)))
    (work.tree / "link").symlink_to("/etc/hostname")


def leave_commits(work: Work) -> None:
    leave_changes(work)
    work.git("add", "--all")
    work.git("commit", "--quiet", "-m", "first")
    (work.tree / "app.py").write_text("print(3)\n")
    work.git("commit", "--quiet", "-am", "second")
    (work.tree / "app.py").write_text("print(4)\n")


def leave_branch(work: Work) -> None:
    work.git("checkout", "--quiet", "-b", "agent/fix")
    leave_commits(work)


def leave_bare_branch(work: Work) -> None:
    work.git("checkout", "--quiet", "-b", "fix%41")
    leave_changes(work)


def leave_detached(work: Work) -> None:
    work.git("checkout", "--quiet", "--detach")
    leave_commits(work)


def leave_stash(work: Work) -> None:
    (work.tree / "app.py").write_text("stashed\n")
    work.git("stash")
    leave_changes(work)


def leave_ignored(work: Work) -> None:
    (work.tree / "kept.log").write_text("kept\n")
    work.git("add", "--force", "kept.log")


def leave_nothing(work: Work) -> None:
    work.say(SAID)


@pytest.mark.parametrize(
    "leave",
    [
        leave_changes,
        leave_commits,
        leave_branch,
        leave_bare_branch,
        leave_detached,
        leave_stash,
        leave_ignored,
        leave_nothing,
    ],
)
def test_a_run_goes_on_where_another_has_stopped_and_so_does_the_next(begin: Callable[..., Work], leave) -> None:
    first = begin()
    leave(first)
    first.say(SAID)
    first.collect()
    second = begin(first)
    assert second.files() == first.files()
    assert second.git("rev-parse", "HEAD") == first.git("rev-parse", "HEAD")
    assert second.git("branch", "--show-current") == first.git("branch", "--show-current")
    assert second.git("log", "--format=%s") == first.git("log", "--format=%s")
    assert (second.staged.base_commit, second.staged.notes) == (first.staged.base_commit, [])
    assert second.staged.conversation == conversation_id(first.machine)
    assert file_of(second.tree, PROJECT, second.staged.conversation).read_bytes() == SAID
    # Its agent goes on in a copy of the conversation.
    second.say(SAID + b'{"type":"user"}\n')
    second.collect()
    assert second.read(patch_name(second.id)) == first.read(patch_name(first.id))
    third = begin(second)
    assert third.staged.notes == []
    assert third.files() == first.files()
    assert third.git("rev-parse", "HEAD") == first.git("rev-parse", "HEAD")
    assert file_of(third.tree, PROJECT, str(third.staged.conversation)).read_bytes() == SAID + b'{"type":"user"}\n'


def test_a_stash_is_brought_along(begin: Callable[..., Work]) -> None:
    first = begin()
    leave_stash(first)
    first.collect()
    second = begin(first)
    assert "+stashed" in second.git("stash", "show", "-p", second.git("rev-parse", "refs/resumed/stash/0"))


def test_the_base_commit_is_that_of_the_earlier_run_wherever_its_branch_is_now(
    begin: Callable[..., Work], origin: Path
) -> None:
    first = begin()
    leave_changes(first)
    first.collect()
    (origin / "app.py").write_text("another\n")
    git(origin, "commit", "--quiet", "-am", "later")
    second = begin(first)
    assert second.files() == first.files()
    assert second.staged.base_commit == first.staged.base_commit


def without_anything(work: Work) -> None:
    prefix = TASKS.place(work.id).prefix
    work.bucket.delete([each.key for each in work.bucket.list(prefix)])


def without_conversation(work: Work) -> None:
    work.bucket.delete([TASKS.place(work.id).artifact_key(conversation_name(work.id))])


def with_forged_facts(work: Work) -> None:
    facts = json.loads(work.read(METADATA))
    facts["conversation"] = {"id": "../../../../../etc/cron.d/x", "project": "../../.."}
    facts["checked_out"] = {"ref": "refs/heads/--upload-pack=x", "commit": "--exec=x"}
    facts["left_out_count"] = 2
    facts["left_out"] = {"big.bin": "a new file of 3 GiB"}
    stored.store(work.bucket, TASKS.place(work.id), METADATA, json.dumps(facts).encode())


def with_facts_of_another_form(work: Work) -> None:
    stored.store(work.bucket, TASKS.place(work.id), METADATA, b'["none"]')


def with_a_patch_that_does_not_fit(work: Work) -> None:
    patch = work.read(patch_name(work.id)).replace(b"-print(1)", b"-print(0)").replace(b"-old", b"-odd")
    stored.store(work.bucket, TASKS.place(work.id), patch_name(work.id), patch)


@pytest.mark.parametrize(
    ("spoil", "said", "continued"),
    [
        (without_anything, "Nothing was collected of run", None),
        (with_facts_of_another_form, "Nothing was collected", None),
        (without_conversation, "conversation of run", "print(2)"),
        (with_forged_facts, "2 files were not collected, or not whole, and are missing", "print(2)"),
        (with_a_patch_that_does_not_fit, "does not fit everywhere", "print(1)"),
    ],
)
def test_what_is_missing_or_forged_is_told_and_the_run_begins_all_the_same(
    begin: Callable[..., Work], spoil, said: str, continued: str | None
) -> None:
    first = begin()
    leave_changes(first)
    first.say(SAID)
    first.collect()
    spoil(first)
    second = begin(first)
    assert said in " ".join(second.staged.notes)
    assert (second.tree / "app.py").read_text().startswith(continued or "print(1)")
    assert (second.tree / "new").exists() == (continued is not None)
    assert (second.staged.conversation is None) == (spoil is not with_a_patch_that_does_not_fit)
    assert second.git("branch", "--show-current") == "main"


def test_a_run_of_another_repository_is_not_mixed_in(begin: Callable[..., Work], tmp_path: Path, origin: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(origin, other)
    first = begin()
    leave_changes(first)
    first.collect()
    second = begin(first, url=f"file://{other}")
    assert "another repository" in second.staged.notes[0]
    assert (second.tree / "app.py").read_text().startswith("print(1)")


def test_no_secret_and_no_link_of_the_guest_gets_into_the_conversation_that_is_kept(
    begin: Callable[..., Work], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", SECRET)
    first = begin()
    leave_changes(first)
    first.say(b'{"type":"user","message":"' + SECRET.encode() + b'"}\n')
    first.collect(SecretReference(name="TOKEN", source="env", key="TOKEN"))
    kept = first.read(conversation_name(first.id))
    assert kept == b'{"type":"user","message":"[redacted:TOKEN]"}\n'
    hidden = [each.name for each in stored.index(first.bucket, TASKS.place(first.id)) if each.hidden]
    assert hidden == [conversation_name(first.id)]
    assert "placeholders" in begin(first).staged.notes[-1]

    other = begin()
    path = file_of(other.tree, PROJECT, conversation_id(other.machine))
    path.parent.mkdir()
    path.symlink_to("/etc/passwd")
    other.collect()
    assert not [each for each in stored.index(other.bucket, TASKS.place(other.id)) if each.hidden]
    # An agent may have removed the whole git directory.
    gone = begin()
    shutil.rmtree(gone.tree / ".git")
    gone.collect()
    assert begin(gone).files() == gone.files()


def test_every_workspace_has_a_place_for_conversations_that_git_does_not_see(begin: Callable[..., Work]) -> None:
    work = begin()
    assert place_in(work.tree).is_dir()
    work.say(SAID)
    assert work.git("status", "--porcelain") == ""
    subprocess.run(["git", "-C", work.tree, "clean", "-ffdxq"], check=True)
    assert file_of(work.tree, PROJECT, conversation_id(work.machine)).exists()
