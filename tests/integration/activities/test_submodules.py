"""Submodules in a workspace, when the manifest asks for them: real git and servers, and commits that are hostile."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from activities.repository import submodules as module
from activities.repository.mirror import evict
from activities.repository.staging import stage
from activities.repository.submodules import resolved
from foundation.errors import RefNotFound, RepositoryDenied, RepositoryError, RepositoryNotAllowed
from foundation.settings import Settings
from tests.git_servers import GitServer, commit, git, without_hosts_own
from tests.workspace_reading import extract_workspace
from workflows.runs.requests import StageRequest, StageResult
from workflows.specs.manifest import Repository, SecretReference

MACHINE = "vm-0123456789abcdef"
TOKEN = "canary-token-5d31c0ffee"
REFERENCE = SecretReference(name="GIT_TOKEN", source="env", key="CI_GIT_TOKEN")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GitServer]:
    with GitServer(tmp_path / "served") as running:
        yield running


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    without_hosts_own(monkeypatch)
    monkeypatch.setenv("CI_GIT_TOKEN", TOKEN)
    return Settings(home=tmp_path / "home")


def made(server: GitServer, name: str, file: str = "file.txt") -> Path:
    path = server.root / name
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=main")
    commit(path, file, f"of {name}\n")
    return path


def linked(path: Path, **links: tuple[str, str]) -> None:
    """Commit links to commits of other repositories: path to (URL, commit)."""
    modules = "".join(
        f'[submodule "{number}"]\n\tpath = {place}\n\turl = {url}\n'
        for number, (place, (url, _)) in enumerate(links.items())
    )
    (path / ".gitmodules").write_text(modules)
    git(path, "add", ".gitmodules")
    for row in git(path, "ls-files", "--stage").splitlines():
        if row.startswith("160000"):
            git(path, "rm", "--quiet", "--cached", row.partition("\t")[2])
    for place, (_, at) in links.items():
        git(path, "update-index", "--add", "--cacheinfo", f"160000,{at},{place}")
    git(path, "commit", "--quiet", "-m", "links")


def head(path: Path) -> str:
    return git(path, "rev-parse", "HEAD")


def staged(
    settings: Settings,
    url: str,
    reference: SecretReference | None = None,
    *,
    wanted: bool = True,
    disk: str = "64M",
) -> StageResult:
    repository = Repository(url=url, branch="main", submodules=wanted, credentials=reference and reference.name)
    shutil.rmtree(settings.staging / MACHINE, ignore_errors=True)
    request = StageRequest(task_id="t", machine_id=MACHINE, repository=repository, disk=disk, credentials=reference)
    return stage(settings, request, lambda _: None)


def refused(kind: type[RepositoryError], settings: Settings, url: str, *words: str, **more: object) -> None:
    with pytest.raises(kind) as caught:
        staged(settings, url, **more)  # type: ignore[arg-type]
    assert type(caught.value) is kind
    for word in words:
        assert word in caught.value.message


def test_submodules_of_submodules_lie_in_their_places(settings: Settings, server: GitServer, tmp_path: Path) -> None:
    inner, middle, top = made(server, "inner"), made(server, "middle"), made(server, "top")
    at = head(inner)
    commit(inner, "later.txt", "later\n")
    linked(middle, **{"deep/in ner": ("../inner", at)})
    linked(top, **{"lib/middle": (server.url("middle"), head(middle)), "other": ("./../inner", head(inner))})

    result = staged(settings, server.url("top"))

    assert [(each.path, each.url, each.commit) for each in result.submodules] == [
        ("lib/middle", server.url("middle"), head(middle)),
        ("other", server.url("inner"), head(inner)),
        ("lib/middle/deep/in ner", server.url("inner"), at),
    ]
    out = tmp_path / "out"
    extract_workspace(Path(result.workspace_image), out, dirty=False)
    assert (out / "lib/middle/deep/in ner/file.txt").read_text() == "of inner\n"
    assert not (out / "lib/middle/deep/in ner/later.txt").exists()
    assert git(out, "status", "--porcelain") == ""
    states = git(out, "submodule", "status", "--recursive").splitlines()
    # Git takes the first one's mark off with the output's white space: none is missing, none at another commit.
    assert [line.strip()[:1] in "+-U" for line in states] == [False] * 3
    assert git(out / "lib/middle", "remote", "get-url", "origin") == server.url("middle")
    assert subprocess.run(["grep", "-rl", str(settings.home), out], capture_output=True, check=False).stdout == b""
    # All of them are held for the run.
    assert evict(settings.model_copy(update={"mirror_limit": "1K"})) == []


def test_without_being_asked_for_they_stay_empty(settings: Settings, server: GitServer, tmp_path: Path) -> None:
    inner, top = made(server, "inner"), made(server, "top")
    linked(top, sub=("../inner", head(inner)))
    extract_workspace(
        Path(staged(settings, server.url("top"), wanted=False).workspace_image), tmp_path / "out", dirty=False
    )
    assert list((tmp_path / "out/sub").iterdir()) == []
    assert not [line for line in server.asked if "/inner" in line]


def test_the_secret_goes_to_its_own_server_alone(settings: Settings, server: GitServer, tmp_path: Path) -> None:
    inner, top = made(server, "inner"), made(server, "top")
    for name in ("inner", "top"):
        server.private[name] = {f"x-access-token:{TOKEN}"}
    with GitServer(tmp_path / "elsewhere") as other:
        free, closed = made(other, "free"), made(other, "closed")
        linked(top, a=("../inner", head(inner)), b=(other.url("free"), head(free)))
        assert len(staged(settings, server.url("top"), REFERENCE).submodules) == 2

        other.private["closed"] = {f"x-access-token:{TOKEN}"}
        linked(top, a=("../inner", head(inner)), b=(other.url("closed"), head(closed)))
        refused(
            RepositoryDenied, settings, server.url("top"), "Submodule b of", "wants credentials", reference=REFERENCE
        )
        assert other.asked
        assert other.shown == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("file:///etc", "names a directory of this host"),
        ("/srv/git/other", "must start with"),
        ("ext::sh -c touch% /tmp/x", "must start with"),
        ("--upload-pack=touch /tmp/x", "must start with"),
        ("-u./x", "must start with"),
        ("ssh://-oProxyCommand=touch/x", "no host"),
        ("git@-oProxyCommand=x:y", "must start with"),
        ("git://127.0.0.1/x", "must start with"),
        ("http://127.0.0.1/${TOKEN}", "taken as it stands"),
        ("../../../../etc", "above the server's own"),
        ("../../evil.example.org/x", "above the server's own"),
        ("http://127.0.0.1:1/x y", "no URL"),
    ],
)
def test_urls_that_lead_elsewhere(settings: Settings, server: GitServer, url: str, words: str) -> None:
    top = made(server, "top")
    linked(top, sub=(url, "1" * 40))
    refused(RepositoryNotAllowed, settings, server.url("top"), "Submodule sub of", words)


@pytest.mark.parametrize(
    ("above", "url", "found"),
    [
        ("https://h/org/app.git", "../lib.git", "https://h/org/lib.git"),
        ("https://h:8443/org/app/", "./../../x/lib", "https://h:8443/x/lib"),
        ("git@h:org/app.git", "../lib.git", "git@h:org/lib.git"),
        ("git@h:/srv/app.git", "../lib.git", "git@h:/srv/lib.git"),
        ("ssh://git@h:2222/org/app", "../lib", "ssh://git@h:2222/org/lib"),
        ("https://h/a", "https://user:pass@other/b", "https://other/b"),
        ("https://h/a", "git@other:b", "git@other:b"),
    ],
)
def test_urls_are_taken_as_git_does(above: str, url: str, found: str) -> None:
    assert resolved(above, url) == found


def test_links_without_a_url_or_commit_are_told(settings: Settings, server: GitServer) -> None:
    inner, top = made(server, "inner"), made(server, "top")
    linked(top, sub=("../inner", "1" * 40))
    refused(RefNotFound, settings, server.url("top"), "Submodule sub of", "has no commit 1111")
    git(top, "update-index", "--add", "--cacheinfo", f"160000,{head(inner)},lone")
    git(top, "commit", "--quiet", "-m", "lone")
    refused(RepositoryError, settings, server.url("top"), "Submodule lone of", "no URL for it")
    linked(top, sub=("../absent", head(inner)))
    refused(
        module.RepositoryError.__subclasses__()[0], settings, server.url("top"), "Submodule sub of", "does not exist"
    )


def test_there_is_an_end_to_their_number_depth_and_size(
    settings: Settings, server: GitServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A repository that is its own submodule never ends.
    top = made(server, "top")
    monkeypatch.setattr(module, "DEPTH_MOST", 1)
    for _ in range(3):
        linked(top, sub=("../top", head(top)))
    refused(RepositoryError, settings, server.url("top"), "Submodule sub/sub of", "deeper than")
    monkeypatch.setattr(module, "SUBMODULES_MOST", 2)
    inner = made(server, "inner")
    linked(top, **{name: ("../inner", head(inner)) for name in "abc"})
    refused(RepositoryError, settings, server.url("top"), "there are more than")
    (inner / "large").write_bytes(os.urandom(3 * 2**20))
    git(inner, "add", "large")
    git(inner, "commit", "--quiet", "-m", "large")
    linked(top, a=("../inner", head(inner)))
    refused(RepositoryError, settings, server.url("top"), "Submodule a of", "vm.disk", disk="2M")
    (inner / "large").write_bytes(b"x" * 3 * 2**20)
    git(inner, "add", "large")
    git(inner, "commit", "--quiet", "--amend", "-m", "large once it is checked out")
    linked(top, a=("../inner", head(inner)))
    refused(RepositoryError, settings, server.url("top"), "Submodule a of", "vm.disk", disk="2M")


def test_a_link_or_a_file_in_the_way_is_not_followed(settings: Settings, server: GitServer, tmp_path: Path) -> None:
    inner, top = made(server, "inner"), made(server, "top")
    outside = tmp_path / "outside"
    outside.mkdir()
    linked(top, **{"a/b": ("../inner", head(inner))})
    # A tree with two entries of one name, as git writes none: a link beside the directory of the submodule.
    link = (
        subprocess.run(
            ["git", "-C", top, "hash-object", "-w", "--stdin"],
            input=str(outside).encode(),
            capture_output=True,
            check=True,
        )
        .stdout.strip()
        .decode()
    )
    entries = [row.split(None, 3) for row in git(top, "ls-tree", "HEAD").splitlines()]
    rows = b"".join(f"{mode.lstrip('0')} {name}\0".encode() + bytes.fromhex(oid) for mode, _, oid, name in entries)
    rows = b"120000 a\0" + bytes.fromhex(link) + rows
    tree = (
        subprocess.run(
            ["git", "-C", top, "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
            input=rows,
            capture_output=True,
            check=True,
        )
        .stdout.strip()
        .decode()
    )
    forged = git(top, "commit-tree", "-m", "forged", tree)
    git(top, "update-ref", "refs/heads/main", forged)
    with pytest.raises(RepositoryError):
        staged(settings, server.url("top"))
    assert list(outside.iterdir()) == []
