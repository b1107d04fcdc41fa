"""Patches from forged and from honest trees; what is made applies to the base commit with git itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from activities.artifacts import _is_git_entry, _without_git
from activities.patch import Changes, write_patch
from foundation.errors import MachineError

IDENTITY = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}


def git(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", "-c", "protocol.file.allow=always", "-C", directory, *arguments],
        env=environment,
        capture_output=True,
        check=True,
    )
    return done.stdout.decode("utf-8", "surrogateescape").strip()


class Project:
    """A repository, its mirror, and the work tree that an agent changes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.mirror = root / "mirror"
        self.tree = root / "tree"
        self.patch = root / "patch"
        self.tree.mkdir()
        git(self.tree, "init", "--quiet", "--initial-branch=main")
        (self.tree / "app.py").write_text("one\ntwo\nthree\n")
        (self.tree / "old name.txt").write_text("".join(f"line {number}\n" for number in range(50)))
        (self.tree / "gone").write_text("to be deleted\n")
        (self.tree / "picture").write_bytes(bytes(range(256)))
        (self.tree / "link").symlink_to("app.py")
        (self.tree / ".gitignore").write_text("*.log\nbuild/\n")
        git(self.tree, "add", "--all")
        git(self.tree, "commit", "--quiet", "--message", "base")
        self.base = git(self.tree, "rev-parse", "HEAD")
        git(root, "clone", "--quiet", "--mirror", str(self.tree), str(self.mirror))

    def changes(self) -> Changes:
        """The changes of the tree as it comes back from a disk."""
        back, scratch = self.root / "back", self.root / "scratch"
        shutil.rmtree(back, ignore_errors=True)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()

        def skipped(directory: str, names: list[str]) -> set[str]:
            inside = Path(directory).relative_to(self.tree)
            return {name for name in names if _is_git_entry(str(inside / name))}

        shutil.copytree(self.tree, back, symlinks=True, ignore=skipped)
        index = _without_git(back, self.root / "index")
        return write_patch(self.mirror, self.base, back, index, scratch, self.patch)

    def applied(self) -> Path:
        """The base commit with the patch applied by plain git, in a fresh clone."""
        clone = self.root / "clone"
        shutil.rmtree(clone, ignore_errors=True)
        git(self.root, "clone", "--quiet", str(self.mirror), str(clone))
        git(clone, "checkout", "--quiet", self.base)
        git(clone, "apply", "--allow-empty", "--whitespace=nowarn", str(self.patch))
        return clone


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
    assert changes.notes


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


def test_large_new_files_are_named_but_not_in_the_patch(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.patch.FILE_MAX", 1000)
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


def test_a_base_commit_that_the_mirror_lost_is_an_error(project: Project) -> None:
    project.base = "0" * 39 + "1"

    with pytest.raises(MachineError):
        project.changes()
