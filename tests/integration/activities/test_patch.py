"""Patches from forged and from honest trees; what is made applies to the base commit with git itself.

Above 400 lines: each kind of tree is made by hand before it is compared.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from foundation.errors import MachineError
from machines.disks.workspace import Limits
from tests.integration.activities.agent_project import Project, git


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_commits_new_files_binaries_renames_modes_and_links_are_in_the_patch(project: Project) -> None:
    tree = project.tree
    (tree / "app.py").write_text("one\n2\nthree\n")
    git(tree, "commit", "--quiet", "--all", "--message", "by the agent")
    (tree / "old name.txt").rename(tree / "new ä \udce4 name.txt")
    (tree / "gone").unlink()
    (tree / "picture").write_bytes(bytes(reversed(range(256))) * 3)
    (tree / "link").unlink()
    (tree / "link").symlink_to("picture")
    (tree / "app.py").chmod(0o755)
    (tree / "REPORT.md").write_text("no newline at end")
    (tree / "new dir" / "sub").mkdir(parents=True)
    (tree / "new dir" / "sub" / "data").write_bytes(os.urandom(1000))
    (tree / "debug.log").write_text("ignored")
    (tree / "quote\"'\t$(x)").write_text("odd\n")

    changes = project.changes()

    clone = project.applied()
    expected = {
        str(path.relative_to(tree)) for path in tree.rglob("*") if ".git" not in path.parts and not path.is_dir()
    }
    found = {
        str(path.relative_to(clone)) for path in clone.rglob("*") if ".git" not in path.parts and not path.is_dir()
    }
    assert found == expected - {"debug.log"}
    for name in found:
        assert (clone / name).read_bytes() == (tree / name).read_bytes()
    assert (clone / "link").readlink() == Path("picture")
    assert os.access(clone / "app.py", os.X_OK)
    assert changes.untracked == sorted(["REPORT.md", "new dir/sub/data", "new ä \udce4 name.txt", "quote\"'\t$(x)"])
    assert changes.files == 9
    assert changes.left_out == {}


def test_nothing_changed_is_an_empty_patch(project: Project) -> None:
    changes = project.changes()

    assert project.patch.read_bytes() == b""
    assert (changes.files, changes.insertions, changes.deletions, changes.untracked) == (0, 0, 0, [])


def test_what_the_agent_tracks_is_not_untracked_and_counts_though_ignored(project: Project) -> None:
    (project.tree / "kept.log").write_text("tracked by force\n")
    (project.tree / "other.log").write_text("ignored\n")
    (project.tree / "added.txt").write_text("added\n")
    (project.tree / "loose.txt").write_text("loose\n")
    git(project.tree, "add", "--force", "kept.log", "added.txt")

    changes = project.changes()

    assert changes.untracked == ["loose.txt"]
    clone = project.applied()
    assert (clone / "kept.log").read_text() == "tracked by force\n"
    assert (clone / "added.txt").exists()
    assert not (clone / "other.log").exists()


@pytest.mark.parametrize("index", [b"", b"DIRC\0\0\0\2\xff\xff\xff\xff" + os.urandom(200), b"link:/etc/passwd"])
def test_a_forged_index_is_told_and_left_aside(project: Project, index: bytes) -> None:
    (project.tree / "new.txt").write_text("new\n")
    (project.tree / ".git" / "index").write_bytes(index)

    changes = project.changes()

    assert changes.untracked == ["new.txt"]
    assert project.reading.notes


def test_nothing_of_the_guests_git_is_used(project: Project, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    command = f"touch {trap}"
    for name, value in {
        "core.fsmonitor": command,
        "core.hooksPath": ".",
        "diff.external": command,
        "filter.evil.clean": command,
        "filter.evil.smudge": command,
        "filter.evil.process": command,
        "diff.evil.textconv": command,
        "diff.evil.command": command,
        "core.pager": command,
        "core.worktree": "/etc",
        "core.attributesFile": "/etc/passwd",
        "alias.diff-index": f"!{command}",
    }.items():
        git(project.tree, "config", name, value)
    with (project.tree / ".git" / "config").open("a") as config:
        config.write("[include]\n\tpath = /etc/passwd\n")
    (project.tree / ".gitattributes").write_text("* filter=evil diff=evil merge=evil\n")
    (project.tree / "app.py").write_text("changed\n")
    nested = project.tree / "nested"
    nested.mkdir()
    git(nested, "init", "--quiet")
    (nested / "inner.txt").write_text("inner\n")
    (project.tree / "pointer").mkdir()
    (project.tree / "pointer" / ".git").write_text("gitdir: /etc\n")
    (project.tree / "pointer" / "beside").write_text("beside\n")

    changes = project.changes()

    assert not trap.exists()
    assert {"nested/inner.txt", "pointer/beside", ".gitattributes"} == set(changes.untracked)
    shutil.rmtree(nested)
    assert (project.applied() / "nested" / "inner.txt").read_text() == "inner\n"


def test_links_are_not_followed(project: Project, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("host secret")
    (project.tree / "escape").symlink_to(tmp_path / "secret")
    (project.tree / "passwd").symlink_to("/etc/passwd")

    changes = project.changes()

    assert "host secret" not in project.patch.read_text()
    assert "root:" not in project.patch.read_text()
    assert changes.untracked == ["escape", "passwd"]


def test_a_file_that_contradicts_its_encoding_does_not_stop_the_patch(project: Project) -> None:
    (project.tree / ".gitattributes").write_text("*.txt working-tree-encoding=UTF-16\n")
    (project.tree / "broken.txt").write_bytes(b"\xff\xfeodd")

    changes = project.changes()

    assert changes.notes
    assert "broken.txt" in changes.untracked


@pytest.mark.parametrize(
    "name", ["git~1/config", "GIT~1", ".git. ./x", "a/.git.", ".Git:stream", "x\\.git\\y", "gitmodules"]
)
def test_what_git_refuses_is_named_and_spoils_nothing_else(project: Project, name: str) -> None:
    if name == "gitmodules":
        (project.tree / ".gitmodules").symlink_to("app.py")
        name = ".gitmodules"
    else:
        (project.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (project.tree / name).write_text("odd\n")
    (project.tree / "app.py").write_text("changed\n")
    (project.tree / "gone").unlink()

    changes = project.changes()

    assert list(changes.left_out) == [name]
    assert changes.unread == {}
    clone = project.applied()
    assert (clone / "app.py").read_text() == "changed\n"
    assert not (clone / "gone").exists()


def test_large_new_files_are_named_but_not_in_the_patch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.artifacts.patch.FILE_MAX", 1000)
    (project.tree / "big.bin").write_bytes(os.urandom(2000))
    (project.tree / "small.txt").write_text("small\n")

    changes = project.changes()

    assert changes.untracked == ["big.bin", "small.txt"]
    assert "larger than" in changes.left_out["big.bin"]
    assert not (project.applied() / "big.bin").exists()


def test_submodules_of_the_base_stay_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    library = Project(tmp_path / "library")
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    git(project.tree, "submodule", "--quiet", "add", str(library.tree), "vendor")
    git(project.tree, "commit", "--quiet", "--message", "with a submodule")
    project.base = git(project.tree, "rev-parse", "HEAD")
    git(project.mirror, "fetch", "--quiet", "origin")
    shutil.rmtree(project.tree / "vendor")
    (project.tree / "vendor").mkdir()
    (project.tree / "app.py").write_text("changed\n")

    changes = project.changes()

    assert changes.files == 1
    assert b"vendor" not in project.patch.read_bytes()


@pytest.mark.parametrize(
    "mode", [["--no-cone", "/app.py"], ["--cone", "elsewhere"], ["--cone", "--sparse-index", "elsewhere"]]
)
@pytest.mark.parametrize("in_worktree", [False, True])
def test_what_a_sparse_checkout_leaves_away_is_not_deleted(
    project: Project, mode: list[str], in_worktree: bool
) -> None:
    (project.tree / "deep" / "er").mkdir(parents=True)
    (project.tree / "deep" / "er" / "file.txt").write_text("deep\n")
    git(project.tree, "add", "--all")
    git(project.tree, "commit", "--quiet", "--message", "deep")
    project.base = git(project.tree, "rev-parse", "HEAD")
    git(project.mirror, "fetch", "--quiet", str(project.tree), "+refs/heads/*:refs/heads/*")
    tree = project.tree
    if in_worktree:
        tree = project.tree / "one"
        git(project.tree, "worktree", "add", "--quiet", str(tree), "-b", "one")
    git(tree, "sparse-checkout", "set", *mode)
    assert not (tree / "deep").exists()
    (tree / "app.py").unlink()
    (tree / "new.txt").write_text("new\n")

    changes = project.changes()

    if in_worktree:
        assert changes.files == 0
        rows = git(project.fetched(), "diff", "--name-status", project.base, "refs/agent/worktrees/one")
    else:
        assert "deep/er/file.txt" in changes.unread
        clone = project.applied()
        git(clone, "add", "--all")
        rows = git(clone, "diff", "--cached", "--name-status", project.base)
    assert rows.splitlines() == ["D\tapp.py", "A\tnew.txt"]


@pytest.mark.parametrize(
    "form", [["--split-index"], ["--index-version=4", "--untracked-cache"]], ids=lambda form: form[0]
)
def test_the_guests_index_is_read_in_every_form(project: Project, form: list[str]) -> None:
    git(project.tree, "update-index", *form)
    (project.tree / "kept.log").write_text("kept\n")
    git(project.tree, "add", "--force", "kept.log")

    changes = project.changes()

    assert (changes.files, changes.untracked, project.reading.notes) == (1, [], [])
    assert (project.applied() / "kept.log").read_text() == "kept\n"


@pytest.mark.parametrize("attributes", ["", "* -diff\n", "* binary\n", "* -text -diff\n"], ids=repr)
def test_a_secret_does_not_hide_in_what_git_takes_for_binary(project: Project, attributes: str) -> None:
    project.secret = "canary-2f6b1c0a"
    holding = b"\0" * (2**20 - 5) + project.secret.encode()
    (project.tree / ".gitattributes").write_text(attributes)
    (project.tree / "new").write_bytes(holding)
    (project.tree / "picture").write_bytes(bytes(range(256)) + project.secret.encode())
    (project.tree / "harmless").write_bytes(b"\0harmless")
    (project.tree / "gone").unlink()
    (project.tree / "gone").symlink_to(project.secret)
    if attributes:
        (project.tree / "app.py").write_text(f"token = '{project.secret}'\n")

    changes = project.changes()

    clone = project.applied()
    kept = {"picture", "app.py"} if attributes else {"picture"}
    assert (set(changes.unread), list(changes.left_out)) == (kept, ["new"])
    assert (clone / "harmless").exists()
    assert not (clone / "new").exists()
    for name in kept:
        assert project.secret.encode() not in (clone / name).read_bytes()


def test_a_base_commit_that_the_mirror_lost_is_an_error(project: Project) -> None:
    project.base = "0" * 39 + "1"

    with pytest.raises(MachineError):
        project.changes()


def test_limits_are_spent_on_tracked_files_first_and_on_ignored_ones_last(project: Project) -> None:
    tree = project.tree
    (tree / "a.log").write_bytes(b"ignored" * 1000)
    (tree / ":(glob)x").write_text("")
    (tree / "-n").write_text("")
    (tree / "build").mkdir()
    (tree / "build" / "out").write_bytes(b"built" * 1000)
    (tree / "b-new.txt").write_text("new\n" * 500)
    (tree / "zz.txt").write_text("forced\n")
    (tree / "app.py").write_text("changed\n")
    git(tree, "add", "zz.txt")
    budget = sum((tree / name).stat().st_size for name in git(tree, "ls-files").splitlines() if name != "link")

    changes = project.changes(Limits(total_bytes=budget + (tree / "b-new.txt").stat().st_size))

    assert set(project.reading.extraction.left_out) == {"a.log", "build/out"}
    assert changes.unread == {}
    assert (project.applied() / "app.py").read_text() == "changed\n"

    changes = project.changes(Limits(total_bytes=budget))

    assert set(project.reading.extraction.left_out) == {"a.log", "build/out", "b-new.txt"}
    assert changes.untracked == ["-n", ":(glob)x"]
    assert (project.applied() / "zz.txt").read_text() == "forced\n"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(total_bytes=0),
        Limits(file_bytes=100),
        Limits(entries=4),
        Limits(entries=12),
        Limits(path_bytes=20),
        Limits(path_bytes=60),
    ],
    ids=str,
)
def test_what_a_limit_leaves_unread_is_as_in_the_base_and_named(project: Project, limits: Limits) -> None:
    for number in range(3):
        (project.tree / f"deep{number}" / "er").mkdir(parents=True)
        (project.tree / f"deep{number}" / "er" / "file.txt").write_text("deep\n" * 50)
    git(project.tree, "add", "--all")
    git(project.tree, "commit", "--quiet", "--message", "deep")
    project.base = git(project.tree, "rev-parse", "HEAD")
    git(project.mirror, "fetch", "--quiet", "origin")
    (project.tree / "old name.txt").write_text("changed\n" * 100)

    changes = project.changes(limits)

    assert changes.deletions == 0 or (changes.deletions == 50 and not changes.unread.get("old name.txt"))
    assert changes.unread
    clone = project.applied()
    for name in git(project.tree, "ls-tree", "-r", "--name-only", project.base).splitlines():
        assert os.path.lexists(clone / name)
        if name in changes.unread and name != "link":
            assert (clone / name).read_bytes() == git_bytes(project.tree, "show", f"{project.base}:{name}")


def git_bytes(directory: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", "-C", directory, *arguments], capture_output=True, check=True).stdout


def test_line_endings_that_only_rules_would_change_are_no_changes(project: Project) -> None:
    tree = project.tree
    raw = {
        "notes.txt": b"one\r\ntwo\r\n",
        "data.csv": b"a,b\r\n1,2\r\n",
        "auto.dat": b"a\r\nb\r\n",
        "mixed.mix": b"a\r\nb\nc\r\n",
        "same.txt": b"kept\r\n",
        "run.bat": b"echo\n",
    }
    for name, content in raw.items():
        (tree / name).write_bytes(content)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "raw")
    rules = "*.txt text\n*.csv text eol=lf\n*.dat text=auto\n*.mix text eol=crlf\n*.bat text eol=crlf\n"
    (tree / ".gitattributes").write_text(rules)
    git(tree, "add", ".gitattributes")
    git(tree, "commit", "--quiet", "--message", "rules")
    project.base = git(tree, "rev-parse", "HEAD")
    git(project.mirror, "fetch", "--quiet", "origin")
    shutil.rmtree(tree)
    git(project.root, "clone", "--quiet", str(project.mirror), str(tree))
    assert (tree / "run.bat").read_bytes() == b"echo\r\n"

    assert project.changes().files == 0
    assert project.patch.read_bytes() == b""

    for name in ("notes.txt", "data.csv", "auto.dat", "run.bat"):
        (tree / name).write_bytes((tree / name).read_bytes() + b"more\r\n")
    (tree / "new.txt").write_bytes(b"new\r\n")
    (tree / "new.bat").write_bytes(b"new\r\n")
    (tree / "same.txt").chmod(0o755)

    changes = project.changes()

    assert (changes.files, changes.insertions, changes.deletions) == (7, 6, 0)
    clone = project.applied()
    for name in ["notes.txt", "data.csv", "auto.dat", "run.bat", "new.txt", "new.bat"]:
        assert (clone / name).read_bytes() == (tree / name).read_bytes(), name
    assert os.access(clone / "same.txt", os.X_OK)


def test_files_below_a_submodules_path_and_in_nested_repositories_are_in_the_patch(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    library = Project(tmp_path / "library")
    (tmp_path / "project").mkdir()
    project = Project(tmp_path / "project")
    git(project.tree, "submodule", "--quiet", "add", str(library.tree), "vendor/lib")
    git(project.tree, "commit", "--quiet", "--message", "with a submodule")
    project.base = git(project.tree, "rev-parse", "HEAD")
    git(project.mirror, "fetch", "--quiet", "origin")
    shutil.rmtree(project.tree / "vendor" / "lib")
    (project.tree / "vendor" / "lib" / "deep").mkdir(parents=True)
    (project.tree / "vendor" / "lib" / "deep" / "lib.h").write_text("#define VERSION 2\n")
    nested = project.tree / "pkg" / "new"
    nested.mkdir(parents=True)
    git(nested, "init", "--quiet")
    (nested / "mod.py").write_text("x = 1\n")
    git(nested, "add", "--all")
    git(nested, "commit", "--quiet", "--message", "nested")
    (project.tree / "build" / "cache").mkdir(parents=True)
    git(project.tree / "build" / "cache", "init", "--quiet")

    changes = project.changes()

    assert project.reading.repositories == ["pkg/new"]
    assert changes.untracked == ["pkg/new/mod.py", "vendor/lib/deep/lib.h"]
    clone = project.applied()
    assert (clone / "vendor" / "lib" / "deep" / "lib.h").read_text() == "#define VERSION 2\n"
    assert (clone / "pkg" / "new" / "mod.py").read_text() == "x = 1\n"
    assert b"Subproject" not in project.patch.read_bytes()
