"""Reads the work tree from a run's disk: tracked and changed files first, untracked ones next, ignored ones last."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from activities.artifacts.confined_git import ConfinedGit, null_separated
from activities.artifacts.guest_repository import worktree_paths
from foundation.errors import MachineError
from machines.disks.workspace import Entry, Extraction, WorkspaceDisk

_INDEX = ".git/index"
_SHARED_INDEX = re.compile(r"^\.git/sharedindex\.[0-9a-f]{40,64}$")
_INDEXES_MOST = 20
_INDEX_BYTES = 256 * 2**20
_IGNORE_BYTES = 2**20
_IGNORE_BYTES_ALL = 64 * 2**20
_IGNORE_FILES = 10_000
_LINK_MODE = "160000"


@dataclass(frozen=True)
class BaseEntry:
    """One entry of the base commit: ``mode`` in git's octal digits, size in bytes (0 for a submodule)."""

    mode: str
    object_id: str
    size: int


@dataclass
class Reading:
    """What was read. ``tracked`` are the names of the guest's index, None when it could not be read.

    ``sparse`` are files, and directories with a slash at the end, that the guest's sparse checkouts leave away.
    ``ignored`` are paths that git's ignore files name, as far as those are known and nothing tracks the path;
    ``repositories`` directories below the workspace with a git directory of their own, ignored ones left out;
    ``worktrees`` those that are further work trees of the workspace's own repository, with the names it has for them.
    """

    extraction: Extraction
    tracked: set[str] | None = None
    sparse: set[str] = field(default_factory=set)
    ignored: set[str] = field(default_factory=set)
    repositories: list[str] = field(default_factory=list)
    worktrees: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def reason(self, path: str) -> str | None:
        """Why a file that is not in the tree is not deleted; None when it is."""
        parts = path.split("/")
        if path in self.sparse or any("/".join(parts[:count]) + "/" in self.sparse for count in range(1, len(parts))):
            return "outside of the guest's sparse checkout"
        return self.extraction.reason(path)


def base_entries(git: ConfinedGit, base: str) -> dict[str, BaseEntry]:
    """Everything that the base commit holds, by path. Raises MachineError."""
    found = {}
    for row in null_separated(git.run("ls-tree", "-r", "-l", "-z", "--full-tree", base)):
        facts, _, path = row.partition("\t")
        mode, _, object_id, size = facts.split()
        found[path] = BaseEntry(mode, object_id, int(size) if size.isdigit() else 0)
    return found


def submodules(base: Mapping[str, BaseEntry]) -> list[str]:
    """Paths of the base at which it has a commit of another repository."""
    return [path for path, entry in base.items() if entry.mode == _LINK_MODE]


def read_tree(disk: WorkspaceDisk, tree: Path, base: dict[str, BaseEntry], git: ConfinedGit | None) -> Reading:
    """Read the disk's files into the new directory ``tree``, without what belongs to git itself.

    Without ``git`` (its scratch is the place for what is read before), nothing is known to be tracked or ignored.
    """
    known = _directories(base)
    disk.list_entries(rank=lambda path: 0 if path in known else 1 if _of_git(path) else 2, skip=_inside_nested_git)
    entries = [entry for entry in disk.entries if not _of_git(entry.path)]
    # A directory that the base has is none that git made for a work tree.
    worktrees = {path: name for path, name in worktree_paths(disk).items() if path not in known and path not in base}
    reading = Reading(disk.result, worktrees=worktrees)
    if git is not None:
        _read_indexes(disk, git, reading)
        mine = reading.tracked or set()
        others = [each for each in entries if each.path not in base and each.path not in mine]
        reading.ignored = _ignored(disk, git, others)
    for entry in disk.entries:
        directory, _, name = entry.path.rpartition("/")
        if name.lower() != ".git" or entry.path == ".git":
            continue
        if name != ".git":
            disk.result.left_out[entry.path] = "a name that git keeps for itself"
        elif directory not in reading.ignored and directory not in reading.worktrees:
            reading.repositories.append(directory)
    disk.read(sorted(entries, key=_order(base, reading)), tree)
    return reading


def _of_git(path: str) -> bool:
    return any(part.lower() == ".git" for part in path.split("/"))


def _inside_nested_git(path: str) -> bool:
    """True for what lies in a git directory that is not the workspace's own."""
    *above, _ = path.split("/")
    return any(part.lower() == ".git" for part in above) and above[0] != ".git"


def _directories(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        above = path.rpartition("/")[0]
        while above and above not in found:
            found.add(above)
            above = above.rpartition("/")[0]
    return found


def _order(base: dict[str, BaseEntry], reading: Reading) -> Callable[[Entry], tuple[int, int]]:
    """Sort key: directories as they came, then by class; what differs from the base for certain first, newest first."""
    tracked = reading.tracked or set()

    def key(entry: Entry) -> tuple[int, int]:
        if stat.S_ISDIR(entry.mode):
            return 0, 0
        path = _within_worktree(entry.path, reading.worktrees)
        if path in base or path in tracked:
            known = base.get(path)
            return (1 if known is None or known.size != entry.size else 2), -entry.mtime
        return (4 if entry.path in reading.ignored and path == entry.path else 3), -entry.mtime

    return key


def _within_worktree(path: str, worktrees: Collection[str]) -> str:
    """The path as the innermost work tree that holds it has it."""
    above = path.rpartition("/")[0]
    while above:
        if above in worktrees:
            return path[len(above) + 1 :]
        above = above.rpartition("/")[0]
    return path


def _read_indexes(disk: WorkspaceDisk, git: ConfinedGit, reading: Reading) -> None:
    """What the index of the workspace and those of its further work trees say of their files."""
    places = {f".git/worktrees/{name}/index": f"{path}/" for path, name in reading.worktrees.items()}
    entries = {entry.path: entry for entry in disk.entries if entry.path == _INDEX or entry.path in places}
    shared = (entry for entry in disk.entries if _SHARED_INDEX.match(entry.path))
    for entry in islice(shared, _INDEXES_MOST):
        (git.scratch / "git" / entry.path.rpartition("/")[2]).write_bytes(disk.content(entry, _INDEX_BYTES) or b"")
    # The workspace's own first.
    for path in sorted(entries, key=len)[:_INDEXES_MOST]:
        rows = _index_rows(disk.content(entries[path], _INDEX_BYTES), git)
        above = places.get(path, "")
        if rows is None:
            # A further work tree's says nothing but what its sparse checkout leaves away.
            if not above:
                reading.notes.append("The guest's git index could not be read; every new file counts as untracked.")
            continue
        if not above:
            reading.tracked = {row[2:] for row in rows}
        reading.sparse |= {above + row[2:] for row in rows if row.startswith("S ")}


def _index_rows(index: bytes | None, git: ConfinedGit) -> list[str] | None:
    """Each entry's letter (``S`` for one that the work tree need not have), a blank and its path."""
    try:
        (git.scratch / "index").write_bytes(index or b"unreadable")
        # Directories of a sparse index stay as they are: their trees need not be among the objects that git has here.
        listing = git.run(
            "ls-files", "-z", "-t", "--cached", "--sparse", environment={"GIT_INDEX_FILE": "/scratch/index"}
        )
    except MachineError:
        return None
    return null_separated(listing)


def _ignored(disk: WorkspaceDisk, git: ConfinedGit, candidates: Iterable[Entry]) -> set[str]:
    """Which of the paths the ignore files of the tree name. They are read first, for nothing but this."""
    rules = git.scratch / "rules"
    rules.mkdir()
    found = [entry for entry in disk.entries if entry.path.rpartition("/")[2] == ".gitignore"]
    left = _IGNORE_BYTES_ALL
    for entry in found[:_IGNORE_FILES]:
        left -= entry.size
        if left < 0:
            break
        content = disk.content(entry, _IGNORE_BYTES)
        if content is not None and not _of_git(entry.path):
            path = rules / entry.path
            with suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
    # With "./" before it, no name is taken for a pattern.
    listing = b"".join(
        b"./" + os.fsencode(entry.path) + (b"/\0" if stat.S_ISDIR(entry.mode) else b"\0") for entry in candidates
    )
    try:
        matched = git.run(
            "check-ignore", "-z", "--stdin", "--no-index", work_tree="/scratch/rules", input=listing, check=False
        )
    except MachineError:
        return set()
    return {path.removeprefix("./").removesuffix("/") for path in null_separated(matched)}
