"""A run's work onto a branch of a git host: real git over HTTP, real disks, and a stand-in for the host's API."""

from __future__ import annotations

import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.artifacts.steps import Artifacts
from activities.machine.network import MachineNetworks
from activities.push.steps import Pushes
from activities.repository.staging import Repositories
from foundation.git.hosts import GitHost, Kind
from foundation.settings import Settings
from machines.disks.workspace import build_workspace
from machines.host import MachineHost, Reservation
from storage import artifacts as stored
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import read_entries
from tests.git_servers import commit, git
from tests.stand_ins.fake_egress import FakeEgress
from tests.stand_ins.git_host import GitHostStandIn
from workflows import steps
from workflows.runs.messages import Pushed, TaskStatus
from workflows.runs.requests import AgentResult, CollectRequest, PushRequest, StageRequest
from workflows.runs.states import TaskState
from workflows.specs.wire import PullRequest, Push, Repository, SecretReference

TOKEN = "canary-token-5d31c0ffee"
SECRET = "canary-secret-77aa01"
OPENS = SecretReference(name="GIT_TOKEN", source="env", key="CI_GIT_TOKEN")
GIVEN = SecretReference(name="API_KEY", source="env", key="CI_API_KEY")
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class Run:
    """A run that is staged from the host, changed as its agent would have, and collected."""

    settings: Settings
    bucket: Bucket
    host: GitHostStandIn
    tmp_path: Path
    task_id: str = field(default_factory=lambda: f"push-{uuid.uuid4().hex[:8]}")
    machine_id: str = field(default_factory=lambda: f"vm-{uuid.uuid4().hex[:16]}")
    secrets: tuple[SecretReference, ...] = ()

    def work(self, change: Callable[[Path], None]) -> None:
        """Stage, let ``change`` do what an agent does in its workspace, and collect."""
        machines = MachineHost(self.settings)
        room = {
            "cpus": 1,
            "memory_bytes": 2**29,
            "disk_bytes": 2**30,
            "deadline": datetime.now(UTC) + timedelta(hours=1),
        }
        machines.reserve(Reservation(machine_id=self.machine_id, owner_workflow="w", owner_run="r", **room))
        self.repository = Repository(url=self.host.url, branch="main", credentials=OPENS.name)
        self.staged = ActivityEnvironment().run(
            Repositories(self.settings, self.bucket).stage_repository,
            StageRequest(
                task_id=self.task_id,
                machine_id=self.machine_id,
                repository=self.repository,
                disk="64M",
                credentials=OPENS,
            ),
        )
        tree = self.tmp_path / f"tree-{self.task_id}"
        shutil.copytree(self.host.repository, tree)
        change(tree)
        build_workspace(tree, machines.workspace(self.machine_id), 2**26)
        now = datetime.now(UTC)
        request = CollectRequest(
            task_id=self.task_id,
            machine_id=self.machine_id,
            repository=self.repository,
            base_commit=self.staged.base_commit,
            mirror=self.staged.mirror,
            patterns=[],
            secrets=list(self.secrets),
            agent=AgentResult(exit_code=0),
            status=TaskStatus(
                id=self.task_id, name="n", state=TaskState.COMPLETING, created_at=now, state_changed_at=now
            ),
        )
        networks = MachineNetworks(FakeEgress())
        artifacts = Artifacts(self.settings, machines, self.bucket, networks)
        self.collected = ActivityEnvironment().run(artifacts.collect_artifacts, request)

    def push(self, attempt: int = 1, **push: object) -> Pushed:
        request = PushRequest(
            task_id=self.task_id,
            machine_id=self.machine_id,
            name="Fix the app",
            repository=self.repository.model_copy(update={"push": Push.model_validate(push)}),
            base_commit=self.staged.base_commit,
            mirror=self.staged.mirror,
            head=self.collected.head,
            at=AT,
            secrets=list(self.secrets),
            credentials=OPENS,
            api_credentials=OPENS,
        )
        environment = ActivityEnvironment()
        environment.info = replace(environment.info, attempt=attempt)
        return environment.run(Pushes(self.settings, self.bucket).push_changes, request)

    def log(self) -> str:
        return "".join(entry.data for entry in read_entries(self.bucket, TASKS.place(self.task_id)))


@pytest.fixture(params=["gitea"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GitHostStandIn]:
    kind: Kind = request.param
    with GitHostStandIn(kind, tmp_path / "served", TOKEN) as running:
        yield running


@pytest.fixture
def run(host: GitHostStandIn, tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Run:
    config = tmp_path / "gitconfig"
    config.touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    monkeypatch.setenv("CI_API_KEY", SECRET)
    settings = Settings(home=tmp_path / "home", git_hosts=[host.host()], git_author="Bot <bot@example.org>")
    return Run(settings, bucket, host, tmp_path)


def edited(tree: Path) -> None:
    (tree / "app.py").write_text("one\n2\nthree\n")
    (tree / "new.txt").write_text("new\n")


def commits_and_edits(tree: Path) -> None:
    (tree / "own.txt").write_text("the agent's own\n")
    committed(tree, "The agent's own commit")
    edited(tree)


def committed(tree: Path, message: str) -> None:
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", message)


@pytest.mark.parametrize("host", ["github", "gitlab", "gitea"], indirect=True)
def test_work_gets_onto_a_branch_and_is_asked_to_be_merged_once(run: Run, host: GitHostStandIn) -> None:
    run.work(commits_and_edits)
    host.lost = 1

    with pytest.raises(ApplicationError) as lost:
        run.push(branch="fix/app", pull_request=PullRequest(title="Fix it", body="Why", draft=True))
    pushed = run.push(2, branch="fix/app", pull_request=PullRequest(title="Fix it", body="Why", draft=True))
    again = run.push(3, branch="fix/app", pull_request=PullRequest(title="Fix it", body="Why", draft=True))

    assert not lost.value.non_retryable
    assert pushed == again
    assert (pushed.branch, pushed.base, pushed.pull_request_number, pushed.error) == ("fix/app", "main", 1, None)
    assert pushed.pull_request_url is not None
    assert pushed.pull_request_url.startswith("https://git.example.org/org/repo/")
    assert len(host.pulls) == 1
    assert pushed.commit == host.tip("fix/app")
    format_ = "--format=%an <%ae> %cn %at %s"
    log = git(host.repository, "log", format_, "main..fix/app").splitlines()
    assert log == [f"Bot <bot@example.org> Bot {int(AT.timestamp())} Fix the app", log[1]]
    assert log[1].endswith("The agent's own commit")
    assert git(host.repository, "show", "fix/app:app.py") == "one\n2\nthree"
    assert git(host.repository, "diff", "--name-only", "main", "fix/app").split() == ["app.py", "new.txt", "own.txt"]
    assert f"{pushed.branch}" in run.log()
    assert TOKEN not in run.log()
    left = subprocess.run(["grep", "-rlaF", TOKEN, run.settings.home], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_without_commits_of_the_agent_there_is_one_and_its_author_is_the_manifests(
    run: Run, host: GitHostStandIn
) -> None:
    run.work(edited)

    pushed = run.push(author="A B <ab@example.org>", message="A subject\n\nand a body")

    assert pushed.branch == f"taskyard/{run.task_id}"
    shown = git(host.repository, "log", "--format=%an <%ae>%n%cn%n%B", f"main..{pushed.branch}")
    assert shown == "A B <ab@example.org>\nBot\nA subject\n\nand a body"


def unchanged(_tree: Path) -> None:
    pass


def undone(tree: Path) -> None:
    edited(tree)
    committed(tree, "a mistake")
    git(tree, "revert", "--no-edit", "HEAD")


def with_a_workflow(tree: Path) -> None:
    """In a commit of the agent's alone, not in what is left."""
    (tree / ".github" / "workflows").mkdir(parents=True)
    (tree / ".github" / "workflows" / "x.yml").write_text("on: push\n")
    committed(tree, "a workflow")
    shutil.rmtree(tree / ".github")
    edited(tree)


WORKFLOW = ".github/workflows/x.yml"
MERGE = ("-c", "user.name=t", "-c", "user.email=t", "merge", "--quiet", "--no-ff", "--no-edit")


def with_a_branch(host: GitHostStandIn) -> None:
    """The server has a branch with a workflow that the base branch does not have, and one without."""
    for branch, name in (("deploys", WORKFLOW), ("other", "other.txt")):
        git(host.repository, "checkout", "--quiet", "-b", branch, "main")
        commit(host.repository, name, "on: push\n")
    git(host.repository, "checkout", "--quiet", "main")


def merging_it(tree: Path) -> None:
    """Brings a file as another of the server's own commits has it, which no new commit changes."""
    edited(tree)
    committed(tree, "own")
    git(tree, *MERGE, "deploys")


def merging_another(tree: Path) -> None:
    edited(tree)
    committed(tree, "own")
    git(tree, *MERGE, "other")


def in_the_merge_itself(tree: Path) -> None:
    """In neither of the parents, and gone again in the end."""
    merging_another(tree)
    (tree / WORKFLOW).parent.mkdir(parents=True)
    (tree / WORKFLOW).write_text("on: push\n")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--amend", "--no-edit")
    git(tree, "rm", "--quiet", WORKFLOW)
    git(tree, "commit", "--quiet", "--message", "gone")


def in_a_side_that_the_merge_drops(tree: Path) -> None:
    git(tree, "checkout", "--quiet", "-b", "side")
    commit(tree, WORKFLOW, "on: push\n")
    git(tree, "checkout", "--quiet", "main")
    edited(tree)
    committed(tree, "own")
    git(tree, *MERGE, "--strategy=ours", "side")


def with_the_token(tree: Path) -> None:
    """The guest never had it; it may have come with the model's answer, or from a server."""
    (tree / "new.txt").write_text(f"token = {TOKEN}\n")


def with_a_secret(tree: Path) -> None:
    (tree / "new.txt").write_text(f"key = {SECRET}\n")


def with_lfs(tree: Path) -> None:
    (tree / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (tree / "large.bin").write_bytes(bytes(1000))


@dataclass(frozen=True)
class Refusal:
    """What an agent did, or a manifest says, and a part of what is told instead of a push."""

    told: str
    change: Callable[[Path], None] = edited
    push: dict[str, str] = field(default_factory=dict)
    server: Callable[[GitHostStandIn], object] = lambda _: None
    secrets: tuple[SecretReference, ...] = ()


def taken(host: GitHostStandIn) -> None:
    git(host.repository, "branch", "other")
    git(host.repository, "checkout", "--quiet", "other")
    git(host.repository, "-c", "user.name=t", "-c", "user.email=t", "commit", "--quiet", "--allow-empty", "-m", "x")
    git(host.repository, "checkout", "--quiet", "main")


def with_a_hook(host: GitHostStandIn) -> None:
    hook = host.repository / ".git" / "hooks" / "pre-receive"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho 'refusing to allow a token {TOKEN} without `workflow` scope' >&2\nexit 1\n")
    hook.chmod(0o755)


def denied(host: GitHostStandIn) -> None:
    host.server.private["org"] = {"somebody:else"}


REFUSALS = [
    Refusal("changed nothing", unchanged),
    Refusal("changed nothing", undone),
    Refusal(WORKFLOW, with_a_workflow),
    Refusal(WORKFLOW, merging_it, server=with_a_branch),
    Refusal(WORKFLOW, in_the_merge_itself, server=with_a_branch),
    Refusal(WORKFLOW, in_a_side_that_the_merge_drops),
    Refusal("a value of a secret", with_the_token),
    Refusal("a value of a secret", with_a_secret, secrets=(GIVEN,)),
    Refusal("git LFS", with_lfs),
]
# Of the same work, one after another: what a server is asked for, and how it stands.
SERVERS = [
    Refusal("'main' is the base branch", push={"branch": "main"}),
    Refusal("nothing is ever forced", push={"branch": "other"}, server=taken),
    Refusal("without `workflow` scope", server=with_a_hook),
    Refusal("refuses the credentials", server=denied),
]


def not_pushed(run: Run, host: GitHostStandIn, row: Refusal) -> None:
    before = git(host.repository, "for-each-ref")

    pushed = run.push(**row.push)

    assert row.told in f"{pushed.error or pushed.note}"
    assert TOKEN not in f"{pushed} {run.log()}"
    assert (pushed.branch, pushed.commit, pushed.pull_request_url) == (None, None, None)
    assert git(host.repository, "for-each-ref") == before
    names = {each.name for each in stored.index(run.bucket, TASKS.place(run.task_id))}
    assert f"{run.task_id}.patch" in names


@pytest.mark.parametrize("row", REFUSALS, ids=lambda row: f"{row.told[:20]}-{row.change.__name__}")
def test_work_that_is_not_pushed_is_told_and_leaves_the_artifacts(run: Run, host: GitHostStandIn, row: Refusal) -> None:
    run.secrets = row.secrets
    row.server(host)
    run.work(row.change)
    not_pushed(run, host, row)


def test_what_a_server_does_not_take_is_told_and_leaves_the_artifacts(run: Run, host: GitHostStandIn) -> None:
    run.work(edited)
    for row in SERVERS:
        row.server(host)
        not_pushed(run, host, row)


def test_a_workflow_file_is_pushed_where_the_manifest_allows_it(run: Run, host: GitHostStandIn) -> None:
    run.work(with_a_workflow)

    pushed = run.push(ci_files=True)

    assert pushed.error is None
    assert pushed.commit == host.tip(f"taskyard/{run.task_id}")


def test_a_merge_that_brings_no_workflow_is_pushed(run: Run, host: GitHostStandIn) -> None:
    with_a_branch(host)
    run.work(merging_another)

    pushed = run.push()

    assert pushed.error is None
    assert pushed.commit == host.tip(f"taskyard/{run.task_id}")
    changed = git(host.repository, "diff", "--name-only", "main", f"{pushed.commit}").split()
    assert changed == ["app.py", "new.txt", "other.txt"]


API_REFUSALS = [
    ((403, {}, b'{"message": "Resource not accessible\\u001b[31m"}'), "may open pull requests"),
    ((301, {"Location": "https://elsewhere.example.org/"}, b"{}"), "sends elsewhere"),
    ((200, {}, b"[" * 2000), "does not say which"),
    ((200, {}, b'{"no": "list"}'), "does not say which"),
    ((200, {}, f'[{{"message": "{TOKEN}"}}]'.encode()), "form"),
    ((404, {}, f'{{"message": "{TOKEN}"}}'.encode()), "may see the repository"),
    ((503, {}, b"away"), "status 503"),
]


def test_what_the_host_says_to_a_pull_request_is_told_beside_the_pushed_branch(run: Run, host: GitHostStandIn) -> None:
    run.work(edited)
    last = steps.PUSH.retry.maximum_attempts

    for answer, told in API_REFUSALS:
        host.refuses = answer
        pushed = run.push(last, pull_request=PullRequest())
        assert pushed.commit == host.tip(f"taskyard/{run.task_id}")
        assert pushed.pull_request_url is None
        assert told in f"{pushed.error}"
        assert TOKEN not in f"{pushed} {run.log()}"
        assert "\x1b" not in f"{pushed.error}"

    host.refuses = None
    run.settings.git_hosts = [GitHost(kind="gitea", url="https://git.example.org")]
    assert "TASKYARD_GIT_HOSTS" in f"{run.push(pull_request=PullRequest()).error}"
    assert host.bodies == []
