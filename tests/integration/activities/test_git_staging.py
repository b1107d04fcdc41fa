"""Staging through real git from a real smart HTTP server on loopback.

Above 400 lines: one server, with faults of its own to be switched on, serves them all.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from activities.repository.mirror import Mirror, evict, mirror_path, reading
from activities.repository.remote import LOOK_SECONDS, RemoteBranch
from activities.repository.staging import stage
from foundation.errors import (
    RefNotFound,
    RepositoryDenied,
    RepositoryError,
    RepositoryNotAllowed,
    RepositoryNotFound,
    RepositoryUnreachable,
)
from foundation.settings import Settings
from tests.git_servers import GitServer, commit, git
from tests.workspace_reading import extract_workspace
from workflows.runs.requests import StageRequest, StageResult
from workflows.specs.manifest import Repository
from workflows.steps import STAGE

MACHINE = "vm-0123456789abcdef"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "served") as running:
        running.private["private"] = {"reader:letmein"}
        yield running


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    config = tmp_path / "gitconfig"
    config.touch()
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    for name in [name for name in os.environ if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}]:
        monkeypatch.delenv(name)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def project_url(server: GitServer, project: Path) -> str:
    return server.url(project.name)


@pytest.fixture
def project(server: GitServer) -> Path:
    """A repository as a team has it: two branches, a tag, a directory, an executable, a link."""
    path = server.root / "project"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("README.md")
    commit(path, "README.md", "one\n")
    git(path, "tag", "v1")
    commit(path, "services/payment/app.py", "print(1)\n")
    git(path, "branch", "develop")
    return path


def staged(settings: Settings, url: str, branch: str = "main", **more: str) -> StageResult:
    request = StageRequest(
        task_id="t", machine_id=MACHINE, repository=Repository(url=url, branch=branch, **more), disk="64M"
    )
    return stage(settings, request, lambda _: None)


def in_image(result: StageResult, *commands: str) -> str:
    done = [
        subprocess.run(["debugfs", "-R", command, result.workspace_image], capture_output=True, text=True, check=True)
        for command in commands
    ]
    return "".join(each.stdout for each in done)


@contextmanager
def work_tree(result: StageResult, directory: Path) -> Iterator[Path]:
    extract_workspace(Path(result.workspace_image), directory, dirty=False)
    yield directory
    shutil.rmtree(directory)


def test_the_workspace_is_a_clone_on_its_branch(
    settings: Settings, server: GitServer, project: Path, tmp_path: Path
) -> None:
    result = staged(settings, server.url("project"))

    assert result.base_commit == git(project, "rev-parse", "main")
    assert result.files == 4
    assert "lost+found" not in in_image(result, "ls -p /")
    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "status", "--porcelain=v2", "--branch").splitlines() == [
            f"# branch.oid {result.base_commit}",
            "# branch.head main",
            "# branch.upstream origin/main",
            "# branch.ab +0 -0",
        ]
        assert git(tree, "remote", "get-url", "origin") == server.url("project")
        assert git(tree, "for-each-ref", "--format=%(refname)").splitlines() == [
            "refs/heads/main",
            "refs/remotes/origin/HEAD",
            "refs/remotes/origin/develop",
            "refs/remotes/origin/main",
            "refs/tags/v1",
        ]
        git(tree, "fsck", "--strict")
        leaked = subprocess.run(
            ["grep", "-rIl", str(settings.home), tree], capture_output=True, text=True, check=False
        ).stdout
        assert not leaked


def test_staging_leaves_the_image_only_and_gives_it_again(settings: Settings, server: GitServer, project: Path) -> None:
    first = staged(settings, server.url("project"))
    made = Path(first.workspace_image).stat().st_ino
    asked = len(server.asked)

    assert staged(settings, server.url("project")) == first
    assert Path(first.workspace_image).stat().st_ino == made
    assert len(server.asked) == asked
    assert {path.name for path in (settings.staging / MACHINE).iterdir()} == {"workspace.raw", "staged.json"}

    Path(first.workspace_image).unlink()
    new = commit(project, "README.md", "two\n")
    assert staged(settings, server.url("project")).base_commit == new


def test_a_commit_is_checked_out_by_its_short_id(
    settings: Settings, server: GitServer, project: Path, tmp_path: Path
) -> None:
    wanted = git(project, "rev-parse", "v1")

    result = staged(settings, server.url("project"), commit=wanted[:10].upper())

    assert result.base_commit == wanted
    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "rev-parse", "HEAD") == wanted
        assert git(tree, "status", "--porcelain") == ""
        assert not (tree / "services").exists()


def test_a_commit_that_no_branch_holds_is_fetched_by_its_id(
    settings: Settings, server: GitServer, project: Path
) -> None:
    git(project, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(project, "checkout", "--quiet", "--detach")
    lone = commit(project, "README.md", "lone\n")
    git(project, "checkout", "--quiet", "main")

    assert staged(settings, server.url("project"), commit=lone).base_commit == lone


@pytest.mark.parametrize(
    "branch", ["feature/a-b", "ünïcode", "semi;colon", "$(touch)", "a'b\"c", "#1", "v1", "deadbeef1", "a&b|c<d>"]
)
def test_unusual_branch_names(
    settings: Settings, server: GitServer, project: Path, tmp_path: Path, branch: str
) -> None:
    git(project, "update-ref", f"refs/heads/{branch}", "HEAD")
    git(project, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
    tip = commit(project, "README.md", "unusual\n")

    result = staged(settings, server.url("project"), branch)

    assert result.base_commit == tip
    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "symbolic-ref", "HEAD") == f"refs/heads/{branch}"
        assert (tree / "README.md").read_text() == "unusual\n"


@pytest.mark.parametrize(
    ("branch", "more", "sentence"),
    [
        ("develpo", {}, "no branch 'develpo'; did you mean 'develop'?"),
        ("zzz", {}, "no branch 'zzz'; it has develop, main."),
        ("v1", {}, "only a tag of that name"),
        ("main", {"commit": "0123456789"}, "no commit 0123456789"),
        ("main", {"commit": "0" * 39 + "1"}, "no commit 0000000"),
        ("main", {"subpath": "services/paymnt"}, "no directory 'services/paymnt' at commit"),
        ("main", {"subpath": "README.md"}, "no directory 'README.md'"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(
    settings: Settings, project_url: str, branch: str, more: dict[str, str], sentence: str
) -> None:
    with pytest.raises(RefNotFound) as caught:
        staged(settings, project_url, branch, **more)

    assert sentence in caught.value.message
    assert project_url in caught.value.message
    assert branch in caught.value.message
    assert not caught.value.retryable
    assert not (settings.staging / MACHINE / "tree").exists()


def test_a_subpath_that_is_there_is_accepted(settings: Settings, project_url: str) -> None:
    assert staged(settings, project_url, subpath="./services/payment/").files == 4


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("absent", RepositoryNotFound),
        ("private", RepositoryDenied),
        ("forbidden", RepositoryDenied),
        ("broken", RepositoryUnreachable),
    ],
)
def test_refusals_of_the_server(settings: Settings, server: GitServer, name: str, kind: type[RepositoryError]) -> None:
    with pytest.raises(kind) as caught:
        staged(settings, server.url(name), "some-branch")

    assert server.url(name) in caught.value.message
    assert "some-branch" in caught.value.message
    assert not list(settings.mirrors.glob("*"))


def test_an_empty_repository_has_no_branch(settings: Settings, server: GitServer) -> None:
    git(server.root, "init", "--quiet", "--bare", "void")

    with pytest.raises(RefNotFound, match="is empty"):
        staged(settings, server.url("void"))


def test_the_hosts_configured_credentials_open_a_repository_and_stay_there(
    settings: Settings, server: GitServer, project: Path, tmp_path: Path
) -> None:
    project.rename(server.root / "private")
    config = Path(os.environ["GIT_CONFIG_GLOBAL"])
    config.write_text('[credential]\n\thelper = "!f() { echo username=reader; echo password=letmein; }; f"\n')

    result = staged(settings, server.url("private", "reader@"))

    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "remote", "get-url", "origin") == server.url("private")
        for word in ("letmein", "reader"):
            found = subprocess.run(["grep", "-rl", word, tree], capture_output=True, text=True, check=False)
            assert found.stdout == ""


def test_an_unreachable_server_is_told_quickly(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    begun = time.monotonic()

    with pytest.raises(RepositoryUnreachable) as caught:
        staged(settings, f"http://127.0.0.1:{port}/project")

    assert caught.value.retryable
    assert f"127.0.0.1:{port}" in caught.value.message
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("waiting", [0, 8])
def test_a_server_that_never_answers_is_left_within_the_limit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """With a full queue of waiting connections the kernel drops further ones, as a black hole does."""
    monkeypatch.setattr("activities.repository.remote.LOOK_SECONDS", 0.8)
    with socket.create_server(("127.0.0.1", 0), backlog=0 if waiting else 8) as silent, ExitStack() as crowd:
        for _ in range(waiting):
            client = crowd.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(silent.getsockname())
        with pytest.raises(RepositoryUnreachable, match="did not answer within 1 s"):
            staged(settings, f"http://127.0.0.1:{silent.getsockname()[1]}/project")


def test_an_ssh_server_that_is_not_there(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]

    with pytest.raises(RepositoryUnreachable, match="refused"):
        staged(settings, f"ssh://git@127.0.0.1:{port}/project")


def test_file_repositories_are_refused_unless_allowed(settings: Settings, project: Path) -> None:
    with pytest.raises(RepositoryNotAllowed, match="TASKYARD_ALLOW_FILE_REPOSITORIES"):
        staged(settings, f"file://{project}")

    allowing = settings.model_copy(update={"allow_file_repositories": True})
    assert staged(allowing, f"file://{project}").files == 4


def test_a_rewritten_url_cannot_bring_in_another_transport(settings: Settings, project: Path) -> None:
    config = Path(os.environ["GIT_CONFIG_GLOBAL"])
    config.write_text(f'[url "file://{project.parent}/"]\n\tinsteadOf = https://mirror.invalid/\n')

    with pytest.raises(RepositoryNotAllowed):
        staged(settings, "https://mirror.invalid/project")


def test_hooks_of_the_host_do_not_run(settings: Settings, project_url: str, tmp_path: Path) -> None:
    hooks = tmp_path / "hooks"
    hooks.mkdir()
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/hook-ran\n")
        (hooks / name).chmod(0o755)
    Path(os.environ["GIT_CONFIG_GLOBAL"]).write_text(
        f"[core]\n\thooksPath = {hooks}\n[init]\n\ttemplateDir = {tmp_path}\n"
    )

    staged(settings, project_url)

    assert not (tmp_path / "hook-ran").exists()


@pytest.mark.parametrize("damage", ["objects", "lock", "head"])
def test_a_damaged_mirror_is_made_anew(settings: Settings, server: GitServer, project: Path, damage: str) -> None:
    first = staged(settings, server.url("project"))
    mirror = mirror_path(settings, server.url("project"))
    Path(first.workspace_image).unlink()
    new = commit(project, "README.md", "two\n")
    if damage == "objects":
        for pack in mirror.glob("objects/pack/*"):
            pack.chmod(0o600)
            pack.write_bytes(b"")
    elif damage == "lock":
        (mirror / "refs/heads/main.lock").touch()
        (mirror / "packed-refs.lock").touch()
    else:
        (mirror / "HEAD").unlink()

    assert staged(settings, server.url("project")).base_commit == new


def test_a_killed_first_fetch_leaves_no_mirror_and_the_next_one_works(
    settings: Settings, server: GitServer, project: Path
) -> None:
    server.slow = threading.Event()
    program = (
        "import sys; from activities.repository.staging import stage; from foundation.settings import Settings; "
        "from workflows.runs.requests import StageRequest; "
        "stage(Settings(home=sys.argv[1]), StageRequest.model_validate_json(sys.argv[2]), lambda _: None)"
    )
    request = StageRequest(
        task_id="t",
        machine_id=MACHINE,
        repository=Repository(url=server.url("project"), branch="main"),
        disk="64M",
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", program, settings.home, request.model_dump_json()],
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 20
        while not server.fetches:
            assert time.monotonic() < deadline
            assert worker.poll() is None
            time.sleep(0.02)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert not mirror_path(settings, server.url("project")).exists()
    server.slow.set()

    assert staged(settings, server.url("project")).base_commit == git(project, "rev-parse", "main")
    assert [path.name for path in settings.mirrors.iterdir() if path.is_dir()] == [
        mirror_path(settings, server.url("project")).name
    ]


def test_an_unreachable_server_is_given_up_within_a_minute() -> None:
    policy = STAGE.retry
    waits = [policy.initial_interval * policy.backoff_coefficient**turn for turn in range(policy.maximum_attempts - 1)]

    assert sum(waits, timedelta()) + timedelta(seconds=LOOK_SECONDS) * policy.maximum_attempts <= timedelta(minutes=1)


def test_collecting_does_not_wait_for_a_fetch_of_the_same_repository(
    settings: Settings, server: GitServer, project: Path
) -> None:
    first = staged(settings, server.url("project"))
    Path(first.workspace_image).unlink()
    commit(project, "README.md", "two\n")
    server.slow = threading.Event()
    fetching = threading.Thread(target=staged, args=(settings, server.url("project")))
    fetching.start()
    try:
        deadline = time.monotonic() + 20
        while server.fetches < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        with reading(settings, server.url("project")) as mirror:
            assert git(mirror, "rev-parse", "refs/heads/main") == first.base_commit
    finally:
        server.slow.set()
        fetching.join()


def test_two_runs_of_one_repository_at_once(settings: Settings, server: GitServer, project: Path) -> None:
    results: list[StageResult] = []

    def run(number: int) -> None:
        request = StageRequest(
            task_id="t",
            machine_id=f"vm-{number:016x}",
            repository=Repository(url=server.url("project"), branch="main"),
            disk="64M",
        )
        results.append(stage(settings, request, lambda _: None))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert {result.base_commit for result in results} == {git(project, "rev-parse", "main")}
    assert len({result.workspace_image for result in results}) == 4


def test_a_branch_that_goes_on_while_it_is_staged_leaves_the_work_tree_at_the_base(
    settings: Settings, server: GitServer, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Mirror.commit

    def looked_up_and_fetched_again(mirror: Mirror, path: Path, branch: RemoteBranch) -> str:
        base = look(mirror, path, branch)
        commit(project, "later.txt", "later\n")
        git(path, "fetch", "--quiet", str(project), "+refs/heads/*:refs/heads/*")
        return base

    monkeypatch.setattr(Mirror, "commit", looked_up_and_fetched_again)

    result = staged(settings, server.url("project"))

    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "rev-parse", "HEAD") == result.base_commit
        assert git(tree, "symbolic-ref", "HEAD") == "refs/heads/main"
        assert git(tree, "status", "--porcelain") == ""


@pytest.fixture
def sha256_project(server: GitServer) -> Path:
    path = server.root / "sha256"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main", "--object-format=sha256")
    commit(path, "README.md", "one\n")
    return path


def test_a_repository_of_sha256_objects_is_staged_and_refreshed(
    settings: Settings, server: GitServer, sha256_project: Path, tmp_path: Path
) -> None:
    first = git(sha256_project, "rev-parse", "main")
    assert staged(settings, server.url("sha256")).base_commit == first
    shutil.rmtree(settings.staging)
    tip = commit(sha256_project, "README.md", "two\n")

    result = staged(settings, server.url("sha256"))

    assert result.base_commit == tip
    assert len(tip) == 64
    with work_tree(result, tmp_path / "out") as tree:
        assert git(tree, "rev-parse", "HEAD~1") == first
        assert git(tree, "status", "--porcelain") == ""
    assert staged(settings, server.url("sha256"), commit=first).base_commit == first
    assert staged(settings, server.url("sha256"), commit=first[:12]).base_commit == first


def test_a_server_that_changed_its_object_format_is_followed(
    settings: Settings, server: GitServer, project: Path
) -> None:
    staged(settings, server.url("project"))
    shutil.rmtree(settings.staging)
    shutil.rmtree(project)
    project.mkdir()
    git(project, "init", "--quiet", "--initial-branch=main", "--object-format=sha256")
    tip = commit(project, "README.md", "anew\n")

    assert staged(settings, server.url("project")).base_commit == tip


def test_mirrors_stay_below_their_limit_and_none_in_use_goes(settings: Settings, server: GitServer) -> None:
    for name in ("old", "run", "read", "young", "new"):
        (server.root / name).mkdir()
        git(server.root / name, "init", "--quiet", "--initial-branch=main")
        (server.root / name / "data").write_bytes(os.urandom(300_000))
        commit(server.root / name, "README.md", name)
    paths = {name: mirror_path(settings, server.url(name)) for name in ("old", "run", "read", "young", "new")}
    for age, name in enumerate(("young", "read", "run", "old"), 1):
        staged(settings, server.url(name))
        if name != "run":
            shutil.rmtree(settings.staging / MACHINE)
        else:
            (settings.staging / MACHINE).rename(settings.staging / "vm-of-a-run")
        os.utime(paths[name].with_suffix(".use"), (time.time() - 1000 * age,) * 2)
    small = settings.model_copy(update={"mirror_limit": "1M"})

    # What killed processes left of repositories that nobody asked for again; one is still at work.
    for name in ("a" * 64, "b" * 64):
        (settings.mirrors / f".{name}.gone" / "objects").mkdir(parents=True)
    working = settings.mirrors / f".{'b' * 64}.gone"
    with reading(settings, server.url("read")), (settings.mirrors / f"{'b' * 64}.fetch").open("w") as fetching:
        fcntl.flock(fetching, fcntl.LOCK_EX)
        os.utime(paths["read"].with_suffix(".use"), (0, 0))
        staged(small, server.url("new"))

        assert working.exists()
        fcntl.flock(fetching, fcntl.LOCK_UN)
        evict(small)

    assert {name for name, path in paths.items() if path.is_dir()} == {"run", "read", "new"}
    assert not list(settings.mirrors.glob(".*"))

    shutil.rmtree(settings.staging)
    assert len(evict(settings.model_copy(update={"mirror_limit": "1K"}))) == 3
