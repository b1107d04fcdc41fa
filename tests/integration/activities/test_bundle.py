"""The agent's work beside its work tree: what a fetch of the bundle gives, and what a forged repository cannot do.

Above 400 lines: each place for work, and each forgery, is a row with the code that makes it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from machines.disks.workspace import Limits
from tests.integration.activities.agent_project import Project, git


@pytest.fixture(params=["sha1", "sha256"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> Project:
    return cloned(Project(tmp_path, request.param))


def cloned(project: Project) -> Project:
    """The work tree as a run has it: a clone of the mirror."""
    shutil.rmtree(project.tree)
    git(project.root, "clone", "--quiet", str(project.mirror), str(project.tree))
    return project


def commit(tree: Path, name: str, text: str = "text\n") -> str:
    (tree / name).write_text(text)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", f"add {name}")
    return git(tree, "rev-parse", "HEAD")


def on_a_branch(tree: Path) -> str:
    git(tree, "checkout", "--quiet", "-b", "fix/side")
    made = commit(tree, "side.txt")
    git(tree, "checkout", "--quiet", "main")
    return made


def on_a_packed_branch(tree: Path) -> str:
    made = on_a_branch(tree)
    git(tree, "gc", "--quiet", "--prune=now")
    return made


def in_a_stash(tree: Path) -> str:
    (tree / "stashed.txt").write_text("stashed\n")
    git(tree, "add", "stashed.txt")
    git(tree, "stash", "--quiet")
    return git(tree, "rev-parse", "refs/stash")


def in_an_older_stash(tree: Path) -> str:
    made = in_a_stash(tree)
    (tree / "app.py").write_text("newer\n")
    git(tree, "stash", "--quiet")
    return made


def on_a_detached_head_that_was_left(tree: Path) -> str:
    git(tree, "checkout", "--quiet", "--detach")
    made = commit(tree, "detached.txt")
    git(tree, "checkout", "--quiet", "main")
    return made


def in_a_worktree(tree: Path) -> str:
    git(tree, "worktree", "add", "--quiet", ".tool/worktrees/one", "-b", "one")
    return commit(tree / ".tool" / "worktrees" / "one", "there.txt")


def under_a_tag(tree: Path) -> str:
    made = on_a_branch(tree)
    git(tree, "tag", "-a", "-m", "tagged", "v1", made)
    git(tree, "branch", "--quiet", "-D", "fix/side")
    return made


WAYS: list[Callable[[Path], str]] = [
    on_a_branch,
    on_a_packed_branch,
    in_a_stash,
    in_an_older_stash,
    on_a_detached_head_that_was_left,
    in_a_worktree,
    under_a_tag,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_work_beside_the_work_tree_is_in_the_bundle_and_not_in_the_patch(
    project: Project, way: Callable[[Path], str]
) -> None:
    made = way(project.tree)

    changes = project.changes()

    assert (changes.files, changes.untracked) == (0, [])
    assert project.bundle.beside_patch
    clone = project.fetched()
    assert git(clone, "cat-file", "-t", made) == "commit"
    assert git(clone, "for-each-ref", f"--contains={made}", "refs/agent")


def test_without_further_work_there_is_no_bundle(project: Project) -> None:
    (project.tree / "app.py").write_text("changed\n")
    (project.tree / "new.txt").write_text("new\n")
    git(project.tree, "branch", "same")

    project.changes()

    assert (project.bundle.path, project.bundle.refs, project.bundle.notes) == (None, {}, [])


def test_commits_of_the_branch_that_is_checked_out_are_in_both(project: Project) -> None:
    made = commit(project.tree, "new.txt")

    changes = project.changes()

    assert changes.files == 1
    assert project.bundle.refs == {"refs/heads/main": "branch main"}
    assert project.bundle.beside_patch == []
    assert git(project.fetched(), "rev-parse", "refs/agent/heads/main") == made


def test_what_a_worktree_did_not_commit_is_a_commit_and_no_mass_of_new_files(project: Project) -> None:
    place = project.tree / ".tool" / "worktrees" / "one"
    git(project.tree, "worktree", "add", "--quiet", str(place), "-b", "one")
    head = commit(place, "committed.txt")
    (place / "app.py").write_text("changed there\n")
    (place / "gone").unlink()
    (place / "new.txt").write_text("new there\n")
    (place / "ignored.log").write_text("ignored\n")
    (project.tree / "app.py").write_text("changed here\n")

    changes = project.changes()

    assert (changes.files, changes.untracked) == (1, [])
    clone = project.fetched()
    assert git(clone, "rev-parse", "refs/agent/worktrees/one^") == head
    rows = git(clone, "diff", "--name-status", "refs/agent/worktrees/one^", "refs/agent/worktrees/one")
    assert rows.splitlines() == ["M\tapp.py", "D\tgone", "A\tnew.txt"]
    assert git(clone, "show", "refs/agent/worktrees/one:app.py") == "changed there"


def test_worktrees_within_worktrees_are_told_apart(tmp_path: Path) -> None:
    project = cloned(Project(tmp_path))
    outer = project.tree / "trees" / "outer"
    git(project.tree, "worktree", "add", "--quiet", str(outer), "-b", "outer-branch")
    git(project.tree, "worktree", "add", "--quiet", str(outer / "in" / "inner"), "-b", "inner-branch")
    (outer / "o.txt").write_text("outer\n")
    (outer / "in" / "inner" / "i.txt").write_text("inner\n")

    changes = project.changes()

    assert (changes.files, changes.untracked) == (0, [])
    clone = project.fetched()
    assert git(clone, "diff", "--name-status", "main", "refs/agent/worktrees/outer") == "A\to.txt"
    assert git(clone, "diff", "--name-status", "main", "refs/agent/worktrees/inner") == "A\ti.txt"
    assert (project.root / "back" / "trees" / "outer" / "in" / "inner" / "i.txt").read_text() == "inner\n"


def test_directories_that_only_claim_to_be_worktrees_lose_nothing(tmp_path: Path) -> None:
    project = cloned(Project(tmp_path))
    (project.tree / "src").mkdir()
    project.base = commit(project.tree, "src/calc.py")
    git(project.tree, "push", "--quiet", "origin", "main")
    git(project.tree, "worktree", "add", "--quiet", "--detach", str(project.tree / "one"))
    for name in ("src", "two", "three"):
        (project.tree / name).mkdir(exist_ok=True)
        claimed = "one" if name == "two" else name
        (project.tree / name / ".git").write_text(f"gitdir: /workspace/.git/worktrees/{claimed}\n")
        (project.tree / name / "new.txt").write_text(f"{name}\n")
    (project.tree / "one" / "new.txt").write_text("one\n")

    changes = project.changes()

    contained = set(changes.untracked)
    clone = project.fetched()
    for ref in git(clone, "for-each-ref", "--format=%(refname)", "refs/agent").split():
        directory = ref.rpartition("/")[2]
        contained |= {f"{directory}/{name}" for name in git(clone, "ls-tree", "-r", "--name-only", ref).splitlines()}
    assert {"src/new.txt", "one/new.txt", "two/new.txt", "three/new.txt"} <= contained
    assert changes.deletions == 0


def test_a_worktree_outside_of_the_workspace_is_named(project: Project, tmp_path: Path) -> None:
    git(project.tree, "worktree", "add", "--quiet", str(tmp_path / "elsewhere"), "-b", "other")
    commit(tmp_path / "elsewhere", "there.txt")

    project.changes()

    assert "refs/heads/other" in project.bundle.refs
    assert any("elsewhere" in note for note in project.bundle.notes)


def test_limits_do_not_show_files_of_a_worktree_as_deleted(project: Project) -> None:
    place = project.tree / "one"
    git(project.tree, "worktree", "add", "--quiet", str(place), "-b", "one")
    (place / "old name.txt").write_text("changed\n" * 100)
    (place / "app.py").write_text("x\n")

    project.changes(Limits(file_bytes=300))

    rows = git(project.fetched(), "diff", "--name-status", "main", "refs/agent/worktrees/one")
    assert rows.splitlines() == ["M\tapp.py"]


def test_a_secret_in_a_commit_keeps_the_bundle_away(project: Project) -> None:
    project.secret = "canary-2f6b1c0a"
    git(project.tree, "checkout", "--quiet", "-b", "side")
    commit(project.tree, "key.txt", f"token={project.secret}\n")
    git(project.tree, "checkout", "--quiet", "main")

    project.changes()

    assert project.bundle.path is None
    assert any("secret" in note and "side" in note for note in project.bundle.notes)


# What a guest can forge in its repository. Each gets a good branch beside it, which must come through.


def corrupt_object(tree: Path, made: str) -> None:
    path = tree / ".git" / "objects" / made[:2] / made[2:]
    path.chmod(0o644)
    path.write_bytes(b"\0" * 100)


def object_of_another_name(tree: Path, made: str) -> None:
    path = tree / ".git" / "objects" / made[:2] / made[2:]
    path.chmod(0o644)
    text = b"tree 4b825dc642cb6eb9a060e54bf8d69288fbee4904\nauthor a <a> 0 +0000\ncommitter a <a> 0 +0000\n\nforged\n"
    path.write_bytes(zlib.compress(b"commit %d\0" % len(text) + text))


def object_that_claims_a_huge_size(tree: Path, made: str) -> None:
    path = tree / ".git" / "objects" / made[:2] / made[2:]
    path.chmod(0o644)
    path.write_bytes(zlib.compress(b"commit 99999999999\0" + b"x" * 1000))


def missing_object(tree: Path, made: str) -> None:
    (tree / ".git" / "objects" / made[:2] / made[2:]).unlink()


def noise_for_a_pack(tree: Path, made: str) -> None:
    missing_object(tree, made)
    name = tree / ".git" / "objects" / "pack" / f"pack-{'ab' * 20}"
    name.with_suffix(".pack").write_bytes(b"PACK\0\0\0\2\xff\xff\xff\xff" + os.urandom(500))
    name.with_suffix(".idx").write_bytes(os.urandom(2000))


@pytest.mark.parametrize(
    "forge",
    [corrupt_object, object_of_another_name, object_that_claims_a_huge_size, missing_object, noise_for_a_pack],
    ids=lambda forge: forge.__name__,
)
def test_a_damaged_object_is_told_and_takes_nothing_else_along(
    tmp_path: Path, forge: Callable[[Path, str], None]
) -> None:
    project = cloned(Project(tmp_path))
    good = on_a_branch(project.tree)
    git(project.tree, "checkout", "--quiet", "-b", "bad")
    bad = commit(project.tree, "bad.txt")
    git(project.tree, "checkout", "--quiet", "main")
    forge(project.tree, bad)

    project.changes()

    assert project.bundle.refs == {"refs/heads/fix/side": "branch fix/side"}
    assert any("branch bad" in note for note in project.bundle.notes)
    assert git(project.fetched(), "rev-parse", "refs/agent/heads/fix/side") == good


def test_nothing_but_objects_of_the_guests_repository_is_used(tmp_path: Path) -> None:
    project = cloned(Project(tmp_path))
    tree, trap = project.tree, tmp_path / "trap"
    good = on_a_branch(tree)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    git(hidden, "init", "--quiet")
    secret = commit(hidden, "secret.txt", "host secret\n")
    inside = tree / ".git"
    for name in ("core.fsmonitor", "core.pager", "uploadpack.packObjectsHook", "core.sshCommand", "gpg.program"):
        git(tree, "config", name, f"touch {trap}")
    (inside / "hooks").mkdir(exist_ok=True)
    for name in ("post-index-change", "reference-transaction", "pre-auto-gc"):
        (inside / "hooks" / name).write_text(f"#!/bin/sh\ntouch {trap}\n")
        (inside / "hooks" / name).chmod(0o755)
    (inside / "objects" / "info").mkdir(exist_ok=True)
    (inside / "objects" / "info" / "alternates").write_text(f"{hidden}/.git/objects\n")
    (inside / "info" / "grafts").write_text(f"{good} {secret}\n")
    (inside / "refs" / "heads" / "stolen").write_text(f"{secret}\n")
    (inside / "refs" / "replace").mkdir()
    (inside / "refs" / "replace" / project.base).write_text(f"{good}\n")
    (inside / "refs" / "heads" / "link").symlink_to("/etc/passwd")
    for name in ("new\nline", "back\\slash", "dot.lock", "--upload-pack=touch", "sp ace", "x" * 250):
        (inside / "refs" / "heads" / name).write_text(f"{good}\n")
    (inside / "packed-refs").write_text(f"garbage\n{good} refs/heads/packed\n{good} ../../escape\n{good} HEAD\n")

    project.changes()

    assert not trap.exists()
    assert "refs/heads/fix/side" in project.bundle.refs
    assert "refs/heads/stolen" not in project.bundle.refs
    clone = project.fetched()
    assert git(clone, "rev-parse", "refs/agent/heads/fix/side") == good
    found = subprocess.run(["git", "-C", clone, "cat-file", "-e", secret], check=False, capture_output=True)
    assert found.returncode != 0


# Names and places that a guest may give its work. The work is in the bundle, or a note says that it is not.


def a_name_that_is_no_text(tree: Path, made: str) -> None:
    (tree / ".git" / "packed-refs").write_bytes(made.encode() + b" refs/heads/caf\xe9\n")


def a_name_with_a_separator_of_lines(tree: Path, made: str) -> None:
    (tree / ".git" / "packed-refs").write_text(f"{made} refs/heads/main\u2028{made}\n")


def names_within_names(tree: Path, made: str) -> None:
    (tree / ".git" / "packed-refs").write_text(f"{made} refs/heads/a\n{made} refs/heads/a/b\n")


def a_name_like_an_option(tree: Path, made: str) -> None:
    (tree / ".git" / "refs" / "heads" / "--all").write_text(f"{made}\n")


def a_tree_under_a_tag(tree: Path, made: str) -> None:
    (tree / ".git" / "refs" / "tags" / "tree").write_text(git(tree, "rev-parse", f"{made}^{{tree}}") + "\n")


def among_many_packed_refs(tree: Path, made: str) -> None:
    others = "".join(f"{git(tree, 'rev-parse', 'main')} refs/heads/a{number}\n" for number in range(2))
    (tree / ".git" / "packed-refs").write_text(f"{others * 200_000}{made} refs/heads/late\n")


def in_a_table_that_is_too_large(tree: Path, made: str) -> None:
    with (tree / ".git" / "packed-refs").open("w") as table:
        table.write(f"{made} refs/heads/side\n")
        table.truncate(2**30)


def in_a_repository_that_is_gone(tree: Path, made: str) -> None:
    assert made
    shutil.rmtree(tree / ".git")


def in_a_reftable(tree: Path, made: str) -> None:
    (tree / ".git" / "reftable").mkdir()
    (tree / ".git" / "reftable" / "tables.list").write_text(f"{made}\n")


@pytest.mark.parametrize(
    "place",
    [
        a_name_that_is_no_text,
        a_name_with_a_separator_of_lines,
        names_within_names,
        a_name_like_an_option,
        a_tree_under_a_tag,
        among_many_packed_refs,
        in_a_table_that_is_too_large,
        in_a_repository_that_is_gone,
        in_a_reftable,
    ],
    ids=lambda place: place.__name__,
)
def test_work_is_in_the_bundle_or_told_wherever_it_is_named(tmp_path: Path, place: Callable[[Path, str], None]) -> None:
    project = cloned(Project(tmp_path))
    made = on_a_branch(project.tree)
    git(project.tree, "branch", "--quiet", "-D", "fix/side")
    place(project.tree, made)

    project.changes()

    bundled = bool(project.bundle.path) and git(project.fetched(), "for-each-ref", "refs/agent")
    assert bundled or any("not collected" in note or "not read" in note for note in project.bundle.notes)


@pytest.mark.parametrize("name", [b"caf\xe9", b"a\0b", b"..", b"x.lock", b"-x", b" ", b"a\xe2\x80\xa8b"])
def test_whatever_a_worktree_is_called_its_files_are_kept(tmp_path: Path, name: bytes) -> None:
    project = cloned(Project(tmp_path))
    place = project.tree / "there"
    place.mkdir()
    (place / ".git").write_bytes(b"gitdir: /workspace/.git/worktrees/" + name + b"\n")
    (place / "new.txt").write_text("new\n")

    changes = project.changes()

    if changes.untracked != ["there/new.txt"]:
        ref = git(project.fetched(), "for-each-ref", "--format=%(objectname)", "refs/agent")
        assert git(project.root / "fetched", "show", f"{ref}:new.txt") == "new"


def test_a_secret_in_the_name_of_a_branch_does_not_leave_in_a_bundle(tmp_path: Path) -> None:
    project = cloned(Project(tmp_path))
    project.secret = "canary-2f6b1c0a"
    git(project.tree, "checkout", "--quiet", "-b", f"{'b' * 190}{project.secret}")
    made = commit(project.tree, "side.txt")
    git(project.tree, "checkout", "--quiet", "main")

    project.changes()

    assert project.bundle.path
    assert project.secret.encode() not in project.bundle.path.read_bytes()
    assert git(project.fetched(), "for-each-ref", f"--contains={made}", "refs/agent")


def test_a_bundle_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("activities.artifacts.bundle.BUNDLE_MAX", 1000)
    project = cloned(Project(tmp_path))
    git(project.tree, "checkout", "--quiet", "-b", "large")
    (project.tree / "noise").write_bytes(os.urandom(5000))
    commit(project.tree, "beside.txt")
    git(project.tree, "checkout", "--quiet", "main")

    project.changes()

    assert project.bundle.path is None
    assert any("branch large" in note for note in project.bundle.notes)
