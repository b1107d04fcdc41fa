"""Collecting from the disk of a machine whose process has ended, into a real S3 server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.artifacts.steps import Artifacts
from activities.machine.network import MachineNetworks
from activities.repository.mirror import mirror_path
from activities.repository.staging import Repositories
from foundation.errors import MachineError
from foundation.settings import Settings
from machines.disks.workspace import Limits, build_workspace
from machines.host import MachineHost, Reservation
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import read_entries
from tests.stand_ins.fake_egress import Decided, FakeEgress
from workflows.runs.messages import NetworkUse, TaskStatus, Transition
from workflows.runs.requests import AgentResult, CollectRequest, CollectResult, StageRequest
from workflows.runs.states import Cause, TaskState
from workflows.specs.manifest import Repository, SecretReference, VmSpec

SECRET = "canary-5d31c0ffee"


class Run:
    """A run whose machine has died: staged, its disk changed by the guest, and to be collected."""

    def __init__(self, settings: Settings, bucket: Bucket, repository: Path) -> None:
        self.settings = settings
        self.bucket = bucket
        self.host = MachineHost(settings)
        self.egress = FakeEgress()
        self.task_id = f"collect-{uuid.uuid4().hex[:8]}"
        self.machine_id = f"vm-{uuid.uuid4().hex[:16]}"
        self.repository = Repository(url=f"file://{repository}", branch="main")
        self.host.reserve(
            Reservation(
                machine_id=self.machine_id,
                owner_workflow="w",
                owner_run="r",
                cpus=1,
                memory_bytes=2**29,
                disk_bytes=2**30,
                deadline=datetime.now(UTC) + timedelta(hours=1),
            )
        )
        staged = ActivityEnvironment().run(
            Repositories(settings, bucket).stage_repository,
            StageRequest(task_id=self.task_id, machine_id=self.machine_id, repository=self.repository, disk="64M"),
        )
        self.base = staged.base_commit
        self.image = self.host.workspace(self.machine_id)
        Path(staged.workspace_image).rename(self.image)

    def change(self, tmp_path: Path, **files: str | bytes) -> None:
        """Write files onto the disk as a guest would, without a clean end."""
        commands = []
        for name, content in files.items():
            source = tmp_path / f"content-{len(commands)}"
            source.write_bytes(content if isinstance(content, bytes) else content.encode())
            path = name.replace("__", "/")
            commands += [f"rm {path}", f"write {source} {path}"]
        commands.append("ssv state 0")
        subprocess.run(
            ["debugfs", "-w", "-f", "-", self.image],
            input="".join(f"{command}\n" for command in commands).encode(),
            capture_output=True,
            check=True,
        )

    def collect(
        self, *patterns: str, secrets: tuple[SecretReference, ...] = (), release: bool = False, attempt: int = 1
    ) -> CollectResult:
        now = datetime.now(UTC)
        request = CollectRequest(
            task_id=self.task_id,
            machine_id=self.machine_id,
            repository=self.repository,
            base_commit=self.base,
            patterns=list(patterns),
            secrets=list(secrets),
            agent=AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="it failed"),
            status=TaskStatus(
                id=self.task_id,
                name="collect",
                state=TaskState.COMPLETING,
                created_at=now,
                state_changed_at=now,
                exit_code=3,
                cause=Cause.AGENT_EXIT,
                transitions=[Transition(state=TaskState.RUNNING, at=now)],
            ),
            vm=VmSpec(cpus=2, memory="3G", disk="9G"),
            release=release,
        )
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=attempt)
        artifacts = Artifacts(self.settings, self.host, self.bucket, MachineNetworks(self.egress))
        return environment.run(artifacts.collect_artifacts, request)

    def read(self, name: str) -> bytes:
        return b"".join(stored.open_stream(self.bucket, TASKS.place(self.task_id), name))

    def metadata(self) -> dict[str, object]:
        return json.loads(self.read("metadata.json"))


@pytest.fixture
def run(services: Settings, bucket: Bucket, tmp_path: Path) -> Run:
    repository = tmp_path / "project"
    repository.mkdir()
    (repository / "app.py").write_text("print(1)\n")
    (repository / "docs").mkdir()
    (repository / "docs" / "README.md").write_text("docs\n")
    (repository / ".gitignore").write_text("*.log\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", repository]
    subprocess.run([*git, "init", "--quiet", "--initial-branch=main"], check=True)
    subprocess.run([*git, "add", "--all"], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "base"], check=True)
    settings = services.model_copy(update={"home": tmp_path / "home", "allow_file_repositories": True})
    settings.s3_access_key, secret = services.s3_credentials()
    return Run(settings.model_copy(update={"s3_secret_key": secret}), bucket, repository)


def test_a_machine_that_is_let_go_is_collected_from_once(run: Run) -> None:
    run.egress.uses[run.machine_id] = NetworkUse(allowed=3, blocked=1)
    run.egress.decisions = [Decided("late.example.org")]
    first = run.collect("app.py", release=True)
    assert first.released
    assert run.metadata()["network"] == NetworkUse(allowed=3, blocked=1).model_dump()
    assert "late.example.org" in str(list(read_entries(run.bucket, TASKS.place(run.task_id))))
    # The proxy knows a machine that is gone no longer.
    run.egress.uses.clear()
    assert len(first.artifacts) > 1
    assert run.host.records() == []
    assert run.collect("app.py", release=True, attempt=2) == first
    # An attempt that began before the machine went finds no disk any more, and takes nothing away.
    late = run.collect("app.py", release=True)
    assert (late.artifacts, late.network) == (first.artifacts, first.network)


def test_everything_is_collected_from_a_dead_machine(run: Run, tmp_path: Path) -> None:
    run.change(tmp_path, **{"app.py": "print(2)\n", "REPORT.md": "# Report\n", "docs__out.log": "log\n"})

    result = run.collect("**/*.md", "**/*.log", "missing/**", "app.py")

    index = stored.index(run.bucket, TASKS.place(run.task_id))
    assert [artifact.name for artifact in result.artifacts] == [artifact.name for artifact in index]
    assert {artifact.name: artifact.path for artifact in index} == {
        f"{run.task_id}.patch": f"{run.task_id}.patch",
        f"{run.task_id}-untracked.txt": f"{run.task_id}-untracked.txt",
        "docs/README.md": "docs/README.md",
        "REPORT.md": "REPORT.md",
        "docs/out.log": "docs/out.log",
        "app.py": "app.py",
        "metadata.json": "metadata.json",
    }
    for artifact in index:
        content = run.read(artifact.name)
        assert (len(content), hashlib.sha256(content).hexdigest()) == (artifact.size_bytes, artifact.sha256)
    assert run.read(f"{run.task_id}-untracked.txt") == b"REPORT.md\n"
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", tmp_path / "project", clone], check=True)
    subprocess.run(["git", "-C", clone, "apply", "-"], input=run.read(f"{run.task_id}.patch"), check=True)
    assert (clone / "app.py").read_text() == "print(2)\n"
    assert (clone / "REPORT.md").read_text() == "# Report\n"
    metadata = run.metadata()
    assert (metadata["state"], metadata["cause"], metadata["exit_code"]) == ("failed", "agent_exit", 3)
    assert metadata["patterns_without_match"] == ["missing/**"]
    assert metadata["repository"]["base_commit"] == run.base
    assert {"cpus": 2, "memory": "3G", "disk": "9G", "profile": "agentic-dev"}.items() <= metadata["vm"].items()
    assert metadata["changes"] == {"files": 2, "insertions": 2, "deletions": 1, "untracked": 1}
    assert any("mended copy" in note for note in metadata["notes"])
    events = [json.loads(entry.data) for entry in read_entries(run.bucket, TASKS.place(run.task_id))]
    types = ["state_change", "staged", "state_change", "artifacts"]
    assert [event["type"] for event in events] == [*types, *("note" for _ in metadata["notes"])]
    assert [event["message"] for event in events[len(types) :]] == metadata["notes"] == result.notes


def test_collecting_again_gives_the_same_and_leaves_nothing_behind(run: Run, tmp_path: Path) -> None:
    run.change(tmp_path, **{"REPORT.md": "# Report\n"})

    first = run.collect("REPORT.md")
    again = run.collect("REPORT.md")

    def told(result: CollectResult) -> list[tuple[str, str]]:
        return [(each.name, each.sha256) for each in result.artifacts if each.name != "metadata.json"]

    assert told(first) == told(again)
    assert not (run.settings.staging / run.machine_id / "collect").exists()


def test_a_file_that_is_called_as_one_of_the_runs_own_artifacts_takes_nothing_from_it(run: Run, tmp_path: Path) -> None:
    own = {"metadata.json": "{}", f"{run.task_id}.patch": "no patch\n"}
    run.change(tmp_path, **{**own, "docs__metadata.json": "[]"})

    result = run.collect("**/metadata.json", f"{run.task_id}.patch")

    contents = [(artifact.path, run.read(artifact.name)) for artifact in result.artifacts]
    assert all((path, content.encode()) in contents for path, content in own.items())
    assert ("docs/metadata.json", b"[]") in contents
    assert run.read(f"{run.task_id}.patch").startswith(b"diff --git")
    assert len({artifact.name for artifact in result.artifacts}) == len(result.artifacts)
    assert run.metadata()["task_id"] == run.task_id


def test_secret_values_do_not_reach_the_bucket(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", SECRET)
    run.change(tmp_path, **{"leak.txt": f"token={SECRET}\n", f"{SECRET}.txt": "by name\n"})

    result = run.collect("*.txt", secrets=(SecretReference(name="CANARY", source="env", key="CANARY"),))

    assert SECRET not in result.model_dump_json()
    for artifact in result.artifacts:
        assert SECRET.encode() not in run.read(artifact.name)
    assert b"[redacted:CANARY]" in run.read("leak.txt")
    assert any("may not apply" in note for note in run.metadata()["notes"])

    monkeypatch.delenv("CANARY")
    with pytest.raises(ApplicationError) as refused:
        run.collect("*.txt", secrets=(SecretReference(name="CANARY", source="env", key="CANARY"),))
    assert refused.value.type == "secret_unavailable"


def test_what_git_says_of_a_failure_shows_no_secret(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MachineError(f"git failed with exit code 128: fatal: '{SECRET}'")

    monkeypatch.setenv("CANARY", SECRET)
    monkeypatch.setattr("activities.artifacts.collection.write_patch", refuse)
    monkeypatch.setattr("activities.artifacts.collection.write_bundle", refuse)

    with pytest.raises(ApplicationError) as failed:
        run.collect(secrets=(SecretReference(name="CANARY", source="env", key="CANARY"),))

    assert SECRET not in str(failed.value)
    assert "[redacted:CANARY]" in str(failed.value)


def test_an_unreadable_disk_fails_the_step_after_its_metadata_is_stored(run: Run) -> None:
    run.image.write_bytes(b"\0" * 2**20)

    with pytest.raises(ApplicationError) as failed:
        run.collect("*.md")

    assert failed.value.type == "machine_error"
    assert [artifact.name for artifact in stored.index(run.bucket, TASKS.place(run.task_id))] == ["metadata.json"]
    assert any("could not be read" in note for note in run.metadata()["notes"])


def test_without_its_mirror_the_pattern_files_are_kept(run: Run, tmp_path: Path) -> None:
    run.change(tmp_path, **{"REPORT.md": "# Report\n"})
    mirror = mirror_path(run.settings, run.repository.url)
    mirror.rename(tmp_path / "mirror-elsewhere")

    with pytest.raises(ApplicationError) as failed:
        run.collect("REPORT.md")

    assert failed.value.type == "repository_not_found"
    assert run.read("REPORT.md") == b"# Report\n"


def test_a_run_without_a_disk_has_its_metadata(run: Run) -> None:
    run.image.unlink()

    result = run.collect("*.md")

    assert [artifact.name for artifact in result.artifacts] == ["metadata.json"]


def test_what_was_not_read_is_told_in_the_result_the_log_and_the_metadata(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.change(tmp_path, **{"app.py": "print(2)\n" * 20, "big.log": "x" * 5000})
    monkeypatch.setattr(Limits, "__init__", partialmethod(Limits.__init__, file_bytes=100))

    result = run.collect()

    assert run.read(f"{run.task_id}.patch") == b""
    said = " ".join(result.notes)
    assert "Not read from the disk: 2 files (app.py, big.log)." in said
    assert "in the patch as in the base: 1 file (app.py)." in said
    metadata = run.metadata()
    assert set(result.notes) <= set(metadata["notes"])
    assert metadata["left_out"]["app.py"]
    assert metadata["left_out_count"] == 2
    events = [json.loads(entry.data) for entry in read_entries(run.bucket, TASKS.place(run.task_id))]
    assert [event["message"] for event in events if event["type"] == "note"] == result.notes


def test_a_root_directory_that_is_not_read_whole_fails_the_step(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limits, "__init__", partialmethod(Limits.__init__, entries=1))

    with pytest.raises(ApplicationError) as failed:
        run.collect("*.py")

    assert failed.value.type == "machine_error"
    assert failed.value.non_retryable
    assert run.read(f"{run.task_id}.patch") == b""
    assert run.metadata()["left_out"]["app.py"]


def test_work_on_another_branch_is_in_a_bundle_that_is_named(run: Run, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", clone]
    subprocess.run(["git", "clone", "--quiet", tmp_path / "project", clone], check=True)
    subprocess.run([*git, "checkout", "--quiet", "-b", "side"], check=True)
    (clone / "app.py").write_text("print(2)\n")
    subprocess.run([*git, "commit", "--quiet", "--all", "--message", "side"], check=True)
    subprocess.run([*git, "checkout", "--quiet", "main"], check=True)
    run.image.unlink()
    build_workspace(clone, run.image, 64 * 2**20)

    result = run.collect()

    name = f"{run.task_id}.bundle"
    assert name in [artifact.name for artifact in result.artifacts]
    assert run.read(f"{run.task_id}.patch") == b""
    assert [note for note in result.notes if name in note and "branch side" in note]
    assert run.metadata()["bundle"] == {"refs/heads/side": "branch side"}
    (tmp_path / "work.bundle").write_bytes(run.read(name))
    fetch = [*git[:1], "-C", tmp_path / "project", "fetch", "--quiet", tmp_path / "work.bundle", "refs/*:refs/agent/*"]
    subprocess.run(fetch, check=True)
    shown = subprocess.run(
        ["git", "-C", tmp_path / "project", "show", "refs/agent/heads/side:app.py"], check=True, capture_output=True
    )
    assert shown.stdout == b"print(2)\n"
