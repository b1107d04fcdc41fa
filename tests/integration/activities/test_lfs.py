"""Files of git LFS in a workspace, when the manifest asks for them: the real git-lfs from a server of its protocol."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.repository.staging import stage
from foundation.errors import HostNotReady, RepositoryError, RepositoryNotAllowed, RepositoryUnreachable
from foundation.settings import Settings
from tests.git_servers import GitServer, commit, git, ssh_server, sshd_program, without_hosts_own
from tests.stand_ins.lfs_server import LfsServer
from tests.workspace_reading import extract_workspace
from workflows.runs.requests import StageRequest, StageResult
from workflows.specs.manifest import Repository, SecretReference

MACHINE = "vm-0123456789abcdef"
TOKEN = "canary-token-5d31c0ffee"
REFERENCE = SecretReference(name="GIT_TOKEN", source="env", key="CI_GIT_TOKEN")
CONTENT = bytes(range(256)) * 800


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def lfs(server: GitServer) -> LfsServer:
    return LfsServer(server)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    without_hosts_own(monkeypatch)
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    return Settings(home=tmp_path / "home")


@pytest.fixture
def project(server: GitServer, lfs: LfsServer) -> Path:
    """Two files of LFS, of which one lies in a directory; a pointer that no attribute names; a text."""
    path = server.root / "project"
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    (path / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    (path / "assets").mkdir()
    (path / "assets/a b.bin").write_bytes(lfs.add(CONTENT))
    (path / "small.bin").write_bytes(lfs.add(b"small\n"))
    (path / "small.bin").chmod(0o755)
    (path / "fixture.txt").write_bytes(LfsServer(server).add(b"nobody has this"))
    server.beside = lfs.answer
    commit(path, "README.md", "one\n")
    return path


def staged(
    settings: Settings, url: str, reference: SecretReference | None = None, *, wanted: bool = True, **more: object
) -> StageResult:
    shutil.rmtree(settings.staging / MACHINE, ignore_errors=True)
    repository = Repository(url=url, branch="main", lfs=wanted, credentials=reference and reference.name, **more)
    request = StageRequest(task_id="t", machine_id=MACHINE, repository=repository, disk="64M", credentials=reference)
    return stage(settings, request, lambda _: None)


def refused(kind: type[Exception], settings: Settings, url: str, *words: str, **more: object) -> None:
    with pytest.raises(kind) as caught:
        staged(settings, url, **more)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    for word in words:
        assert word in str(caught.value)


def extracted(result: StageResult, into: Path) -> Path:
    shutil.rmtree(into, ignore_errors=True)
    extract_workspace(Path(result.workspace_image), into, dirty=False)
    return into


@pytest.mark.usefixtures("project")
def test_contents_stand_in_the_places_of_their_pointers(
    settings: Settings, server: GitServer, lfs: LfsServer, tmp_path: Path
) -> None:
    tree = extracted(staged(settings, server.url("project")), tmp_path / "out")

    assert (tree / "assets/a b.bin").read_bytes() == CONTENT
    assert (tree / "small.bin").read_bytes() == b"small\n"
    assert (tree / "small.bin").stat().st_mode & 0o111
    assert (tree / "fixture.txt").read_bytes().startswith(b"version https://git-lfs")
    assert git(tree, "status", "--porcelain") == ""
    # Only what the attributes name is asked for, and only once for many runs.
    assert [len(batch["objects"]) for batch in lfs.batches] == [2]  # type: ignore[arg-type]
    staged(settings, server.url("project"))
    assert len(lfs.batches) == 1


@pytest.mark.usefixtures("project")
def test_an_agent_without_git_lfs_works_with_them_as_with_any_file(
    settings: Settings, server: GitServer, tmp_path: Path
) -> None:
    tree = extracted(staged(settings, server.url("project")), tmp_path / "out")
    os.utime(tree / "small.bin", (0, 0))
    assert git(tree, "status", "--porcelain") == ""

    (tree / "small.bin").write_bytes(b"changed\n")
    (tree / "new.bin").write_bytes(b"new\n")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "change")
    # Whole in the commit: nothing is left behind where no bundle and no patch reaches.
    assert git(tree, "cat-file", "blob", "HEAD:small.bin") == "changed"
    assert git(tree, "cat-file", "blob", "HEAD:new.bin") == "new"
    assert git(tree, "cat-file", "blob", "HEAD:assets/a b.bin").startswith("version ")
    git(tree, "checkout", "--quiet", "HEAD~")
    assert (tree / "small.bin").read_bytes() == b"small\n"
    (tree / "assets/a b.bin").unlink()
    git(tree, "checkout", "--", ".")
    assert (tree / "assets/a b.bin").read_bytes() == CONTENT
    git(tree, "worktree", "add", "--quiet", "--detach", str(tmp_path / "other"))
    assert (tmp_path / "other/assets/a b.bin").read_bytes() == CONTENT
    assert not list((tree / ".git/lfs").glob("content.*"))


@pytest.mark.usefixtures("project")
def test_without_being_asked_for_they_stay_pointers(
    settings: Settings, server: GitServer, lfs: LfsServer, tmp_path: Path
) -> None:
    tree = extracted(staged(settings, server.url("project"), wanted=False), tmp_path / "out")
    assert (tree / "small.bin").read_bytes() == lfs.add(b"small\n")
    assert lfs.batches == []


def test_a_secret_opens_them_and_goes_nowhere_else(
    settings: Settings, server: GitServer, lfs: LfsServer, project: Path, tmp_path: Path
) -> None:
    server.private["project"] = {f"x-access-token:{TOKEN}"}
    tree = extracted(staged(settings, server.url("project"), REFERENCE), tmp_path / "out")
    assert (tree / "assets/a b.bin").read_bytes() == CONTENT
    assert "/project.git/info/lfs/objects/batch" in {path for path, _ in server.shown}
    found = subprocess.run(["grep", "-rlaF", TOKEN, settings.home, tree], capture_output=True, check=False)
    assert found.stdout == b""

    (project / "third.bin").write_bytes(lfs.add(b"third\n"))
    commit(project, "README.md", "two\n")
    with GitServer(tmp_path / "elsewhere") as other:
        other.private["store"] = {f"x-access-token:{TOKEN}"}
        lfs.elsewhere = other.url("store.git/info/lfs")
        refused(RepositoryError, settings, server.url("project"), "third.bin", reference=REFERENCE)
        assert other.asked
        assert other.shown == []


@pytest.mark.parametrize(
    "config",
    [
        "[lfs]\n\turl = file:///etc\n",
        "[lfs]\n\turl = ssh://git@example.org/x\n",
        "[lfs]\n\turl = https://user:password@example.org/x\n",
        "[lfs]\n\turl = --upload-pack=x\n",
    ],
)
def test_a_committed_configuration_names_a_web_address_or_nothing(
    settings: Settings, server: GitServer, project: Path, config: str
) -> None:
    commit(project, ".lfsconfig", config)
    refused(RepositoryNotAllowed, settings, server.url("project"), ".lfsconfig")


def test_of_a_committed_configuration_nothing_but_the_address_counts(
    settings: Settings, server: GitServer, lfs: LfsServer, project: Path, tmp_path: Path
) -> None:
    url = server.url("other.git/info/lfs")
    commit(
        project,
        ".lfsconfig",
        f"[lfs]\n\turl = {url}\n\tfetchexclude = *\n\tskipdownloaderrors = true\n[include]\n\tpath = /etc/gitconfig\n",
    )
    tree = extracted(staged(settings, server.url("project")), tmp_path / "out")
    assert (tree / "small.bin").read_bytes() == b"small\n"
    assert lfs.batches
    assert not [line for line in server.asked if "/project.git/info/lfs" in line]


@pytest.mark.parametrize("sent", [b"smalL\n", b"small\n" + b"x" * 2**22, b"s"])
@pytest.mark.usefixtures("project")
def test_another_content_than_the_pointer_names_is_not_taken(
    settings: Settings, server: GitServer, lfs: LfsServer, sent: bytes
) -> None:
    oid = next(oid for oid, content in lfs.contents.items() if content == b"small\n")
    lfs.sent[oid] = sent
    refused(RepositoryError, settings, server.url("project"), "small.bin")
    # Nor is one that was damaged since.
    lfs.sent.clear()
    staged(settings, server.url("project"))
    for place in settings.mirrors.glob(f"*/lfs/objects/*/*/{oid}"):
        place.unlink()
        place.write_bytes(b"smalL\n")
    staged(settings, server.url("project"))
    assert [place.read_bytes() for place in settings.mirrors.glob(f"*/lfs/objects/*/*/{oid}")] == [b"small\n"]


def test_what_does_not_fit_is_told_before_it_is_fetched(
    settings: Settings, server: GitServer, lfs: LfsServer, project: Path
) -> None:
    pointer = lfs.add(b"huge").replace(b"size 4", b"size 99999999999999999")
    (project / "huge.bin").write_bytes(pointer)
    commit(project, "README.md", "two\n")
    refused(RepositoryError, settings, server.url("project"), "vm.disk")
    assert lfs.batches == []


@pytest.mark.usefixtures("project")
def test_a_host_without_git_lfs_says_so(
    settings: Settings, server: GitServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("git", "sh", "prlimit"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    refused(HostNotReady, settings, server.url("project"), "git-lfs is not installed", "sandbox doctor")


def test_over_ssh_the_server_says_where_its_contents_are(
    settings: Settings,
    server: GitServer,
    lfs: LfsServer,
    project: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if sshd_program() is None:
        pytest.skip("no sshd on this host, and no package of it to be had")
    tools = tmp_path / "tools"
    tools.mkdir()
    answer = f'{{"href": "{server.url("other.git/info/lfs")}"}}'
    (tools / "git-lfs-authenticate").write_text(f"#!/bin/sh\necho \"$*\" >{tmp_path}/asked\necho '{answer}'\n")
    (tools / "git-lfs-authenticate").chmod(0o755)
    with ssh_server(tmp_path / "ssh", project.parent, tools) as ssh:
        monkeypatch.setenv("CI_GIT_TOKEN", ssh.key)
        result = staged(settings, ssh.url("project"), REFERENCE, known_hosts=ssh.known_hosts)
    assert (extracted(result, tmp_path / "out") / "assets/a b.bin").read_bytes() == CONTENT
    assert (tmp_path / "asked").read_text() == f"{project} download\n"
    assert server.shown == []
    assert lfs.batches


def test_a_server_of_contents_that_is_away_may_come_back(settings: Settings, server: GitServer, project: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        commit(project, ".lfsconfig", f"[lfs]\n\turl = http://127.0.0.1:{taken.getsockname()[1]}/x\n")
        refused(RepositoryUnreachable, settings, server.url("project"), "Contents of git LFS", "cannot be reached")


def test_a_full_host_is_told_before_it_is_filled(
    settings: Settings, server: GitServer, lfs: LfsServer, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(project)
    monkeypatch.setattr("activities.repository.lfs.shutil.disk_usage", lambda _: usage._replace(free=1000))
    refused(RepositoryError, settings, server.url("project"), "of this host's disk are free")
    assert lfs.batches == []
