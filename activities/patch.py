"""What a run changed: the patch from its base commit to its work tree, made from a tree that a guest may have forged.

Git runs confined, on a git directory of its own: of the guest only file contents are used, never its configuration,
hooks or objects. The guest's index, if git can read it, tells which files the agent tracks.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from foundation.errors import MachineError
from foundation.units import format_size
from machines.confinement import Confinement

# New files above this size are named, but not put into the patch.
FILE_MAX = 100 * 2**20
PATCH_MAX = 4 * 2**30

_SECONDS = 600
_MEMORY = 32 * 2**30
_SHORTSTAT = re.compile(r"(\d+) (file|insertion|deletion)")


@dataclass
class Changes:
    """Figures of a patch. ``untracked`` are new files that the agent did not put under version control."""

    files: int = 0
    insertions: int = 0
    deletions: int = 0
    untracked: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def regular_files(tree: Path) -> dict[str, int]:
    """Size in bytes of every regular file of the tree by its relative path, symlinks not followed, sorted."""
    found: dict[str, int] = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = Path(directory, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                found[str(path.relative_to(tree))] = status.st_size
    return dict(sorted(found.items()))


def write_patch(mirror: Path, base: str, tree: Path, index: Path | None, scratch: Path, patch: Path) -> Changes:
    """Write the patch from commit ``base`` of the mirror to the tree, which holds no entry named ``.git``.

    Commits of the agent, new files and binary files are in it; ignored files are not, unless the guest's ``index``
    tracks them. ``scratch`` is an empty directory for git. Raises MachineError when git fails.
    """
    return _Comparison(mirror, base, tree, index, scratch).write(patch)


class _Comparison:
    def __init__(self, mirror: Path, base: str, tree: Path, index: Path | None, scratch: Path) -> None:
        self._base = base
        self._tree = tree
        self._index = index
        self._scratch = scratch
        self._readable = {"/mirror": mirror, "/tree": tree, **({"/index": index} if index else {})}

    def write(self, patch: Path) -> Changes:
        changes = Changes()
        self._git("init", "--quiet", "--template=")
        self._git("read-tree", self._base)
        self._add(changes)
        tracked = self._tracked_by_agent(changes)
        self._add_ignored(tracked)
        added = self._names("--diff-filter=A", "--no-renames")
        self._leave_out_large(added, changes)
        with patch.open("wb") as file:
            self._git("diff-index", *_PATCH, self._base, stdout=file)
        summary = os.fsdecode(self._git("diff-index", "--cached", "--shortstat", "--no-renames", self._base))
        figures = {word: int(count) for count, word in _SHORTSTAT.findall(summary)}
        changes.files = figures.get("file", 0)
        changes.insertions = figures.get("insertion", 0)
        changes.deletions = figures.get("deletion", 0)
        changes.untracked = sorted(name for name in added if name not in tracked)
        return changes

    def _add(self, changes: Changes) -> None:
        """Take the tree into the index as git would, its own attributes and ignore files counting."""
        try:
            self._git("add", "--all")
        except MachineError:
            # A file that contradicts its declared encoding stops git; then contents are taken as they are.
            info = self._scratch / "git" / "info"
            info.mkdir(exist_ok=True)
            (info / "attributes").write_text("* !working-tree-encoding\n")
            self._git("add", "--all")
            changes.notes.append("A file contradicts its working-tree-encoding; such files are in the patch as bytes.")

    def _tracked_by_agent(self, changes: Changes) -> set[str]:
        if self._index is None:
            return set()
        try:
            listing = self._git("ls-files", "-z", "--cached", environment={"GIT_INDEX_FILE": "/index"})
        except MachineError:
            changes.notes.append("The guest's git index could not be read; every new file counts as untracked.")
            return set()
        return set(_names(listing))

    def _add_ignored(self, tracked: set[str]) -> None:
        """Files that the agent tracks although they are ignored."""
        known = set(_names(self._git("ls-files", "-z", "--cached")))
        missing = sorted((tracked - known) & regular_files(self._tree).keys())
        self._update_index("--add", missing)

    def _leave_out_large(self, added: list[str], changes: Changes) -> None:
        large = [name for name in added if (self._tree / name).lstat().st_size > FILE_MAX]
        for name in large:
            size = format_size((self._tree / name).lstat().st_size)
            changes.left_out[name] = f"not in the patch: a new file of {size}, larger than {format_size(FILE_MAX)}"
        self._update_index("--force-remove", large)

    def _update_index(self, action: str, names: Iterable[str]) -> None:
        data = b"".join(os.fsencode(name) + b"\0" for name in names)
        if data:
            self._git("update-index", action, "-z", "--stdin", input=data)

    def _names(self, *options: str) -> list[str]:
        return _names(self._git("diff-index", "--cached", "--name-only", "-z", *options, self._base))

    def _git(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        input: bytes = b"",  # noqa: A002 -- the name subprocess gives it
        stdout: IO[bytes] | None = None,
    ) -> bytes:
        confined = Confinement(
            readable=self._readable,
            writable={"/scratch": self._scratch},
            environment=_ENVIRONMENT | dict(environment or {}),
            seconds=_SECONDS,
            file_bytes=PATCH_MAX,
            memory_bytes=_MEMORY,
        )
        return confined.run(["git", *_GUARDS, "-C", "/tree", *arguments], input=input, stdout=stdout).stdout


_PATCH = (
    "--cached",
    "--patch",
    "--binary",
    "--full-index",
    "--no-ext-diff",
    "--no-textconv",
    "--no-color",
    "--find-renames",
    "--src-prefix=a/",
    "--dst-prefix=b/",
)
_ENVIRONMENT = {
    "HOME": "/nonexistent",
    "GIT_DIR": "/scratch/git",
    "GIT_WORK_TREE": "/tree",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES": "/mirror/objects",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_ATTR_NOSYSTEM": "1",
    "GIT_OPTIONAL_LOCKS": "0",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "",
}
_SETTINGS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.attributesFile": "/dev/null",
    "core.excludesFile": "/dev/null",
    "core.fileMode": "true",
    "core.symlinks": "true",
    # Names that only other systems would mistake for .git are names like any other here.
    "core.protectNTFS": "false",
    "core.protectHFS": "false",
    "core.looseCompression": "0",
    "core.safecrlf": "false",
    "submodule.recurse": "false",
    "gc.auto": "0",
}
_GUARDS = [word for name, value in _SETTINGS.items() for word in ("-c", f"{name}={value}")]


def _names(listing: bytes) -> list[str]:
    return [os.fsdecode(name) for name in listing.split(b"\0") if name]
