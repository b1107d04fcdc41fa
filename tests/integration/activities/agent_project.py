"""A repository that an agent works on, collected from a real disk image without a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from activities.artifacts.bundle import Bundle, write_bundle
from activities.artifacts.changes import Changes
from activities.artifacts.confined_git import ConfinedGit
from activities.artifacts.guest_repository import copy_objects, read_repository
from activities.artifacts.patch import write_patch
from activities.artifacts.reading import Reading, base_entries, read_tree, submodules
from activities.artifacts.tree import set_aside
from machines.disks.workspace import Limits, build_workspace, opened
from storage.redaction import Redactor

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
    """A repository, its mirror, and the work tree that an agent changes.

    ``reading`` and ``bundle`` are what the last look at its changes found.
    """

    reading: Reading
    bundle: Bundle
    secret = ""

    def __init__(self, root: Path, object_format: str = "sha1") -> None:
        self.root = root
        self.mirror = root / "mirror"
        self.tree = root / "tree"
        self.patch = root / "patch"
        self.tree.mkdir()
        git(self.tree, "init", "--quiet", "--initial-branch=main", f"--object-format={object_format}")
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

    def changes(self, limits: Limits | None = None) -> Changes:
        """The changes of the tree as it comes back from a disk."""
        image, back, scratch = self.root / "image", self.root / "back", self.root / "scratch"
        for directory in (back, scratch):
            shutil.rmtree(directory, ignore_errors=True)
        scratch.mkdir()
        build_workspace(self.tree, image, 256 * 2**20)
        git = ConfinedGit(self.mirror, scratch, time.monotonic() + 600)
        git.init(self.base)
        base = base_entries(git, self.base)
        with opened(image, self.root, dirty=False, limits=limits) as disk:
            self.reading = read_tree(disk, back, base, git)
            guest = read_repository(disk, self.base, self.reading.worktrees)
            guest.notes += copy_objects(disk, git.mirror, scratch / "guest")
        unread, worktrees = self.reading.reason, self.reading.worktrees
        places = {path: self.root / f"aside-{number}" for number, path in enumerate(worktrees)}
        redactor = Redactor({"TOKEN": self.secret}) if self.secret else None
        with set_aside(back, places) as aside:
            changes = write_patch(
                git,
                self.base,
                back,
                self.patch,
                tracked=self.reading.tracked,
                unread=unread,
                links=submodules(base),
                redactor=redactor,
            )
            trees = {worktrees[path]: places[path] for path in aside}
            self.bundle = write_bundle(git, self.base, guest, trees, unread, redactor)
        return changes

    def applied(self) -> Path:
        """The base commit with the patch applied by plain git, in a fresh clone."""
        clone = self.root / "clone"
        shutil.rmtree(clone, ignore_errors=True)
        git(self.root, "clone", "--quiet", str(self.mirror), str(clone))
        git(clone, "checkout", "--quiet", self.base)
        git(clone, "apply", "--allow-empty", "--whitespace=nowarn", str(self.patch))
        return clone

    def fetched(self) -> Path:
        """A fresh clone into which the last bundle was fetched."""
        clone = self.root / "fetched"
        shutil.rmtree(clone, ignore_errors=True)
        git(self.root, "clone", "--quiet", str(self.mirror), str(clone))
        git(clone, "fetch", "--quiet", str(self.bundle.path))
        git(clone, "fetch", "--quiet", str(self.bundle.path), "refs/*:refs/agent/*")
        git(clone, "fsck", "--strict")
        return clone
