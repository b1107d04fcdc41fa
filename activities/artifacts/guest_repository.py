"""The git repository of a guest's workspace as it lies on the disk: what its refs name, and its objects.

It is hostile. Its files are read as data, within limits; only objects are copied, and they are used only after git has
checked them in a repository of ours.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path

from foundation.units import format_size
from guest.contract import WORKSPACE
from machines.disks.workspace import Entry, WorkspaceDisk
from storage.names import as_text

_OBJECTS_BYTES = 2 * 2**30
_OBJECT_FILES = 200_000
_REF_BYTES = 4096
_TABLE_BYTES = 64 * 2**20
_LOG_BYTES = 8 * 2**20
_REFS_MOST = 200_000
_PACK = re.compile(r"^\.git/objects/pack/(pack-[0-9a-f]{40,64}\.pack)$")
_LOOSE = re.compile(r"^\.git/objects/([0-9a-f]{2})/([0-9a-f]{38}|[0-9a-f]{62})$")
_WORKTREE = re.compile(r"^\.git/worktrees/([^/]+)/(HEAD|gitdir)$")
_GITDIR = re.compile(r"gitdir: (?:[^\n\0]*/)?\.git/worktrees/([^/\n\0]+)")
_LEFT = re.compile(r"^[0-9a-f]+ [0-9a-f]+ .*\tcheckout: moving from ([0-9a-f]{40}|[0-9a-f]{64}) to ", re.MULTILINE)
_BAD_REF = re.compile(r"[\x00-\x20~^:?*\[\\\x7f]|\.\.|@\{|//|/\.|\.lock(?:/|$)|[./]$")


@dataclass(frozen=True)
class Tip:
    """One commit (or tag) that the guest names: the ref under which a bundle has it, and in words what it is."""

    ref: str
    object_id: str
    what: str


@dataclass(frozen=True)
class Worktree:
    """A further work tree of the guest's repository. ``path`` is relative to the workspace, None outside of it."""

    name: str
    head: str | None
    path: str | None
    place: str


@dataclass
class GuestRepository:
    """What the guest's repository names. ``checked_out`` is the ref or commit of the workspace itself."""

    tips: list[Tip] = field(default_factory=list)
    worktrees: list[Worktree] = field(default_factory=list)
    checked_out: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def head(self) -> str | None:
        """The commit that the workspace has checked out, as far as the repository says so."""
        ref = self.checked_out if self.checked_out.startswith("refs/") else "refs/detached/HEAD"
        return next((tip.object_id for tip in self.tips if tip.ref == ref), None)


def worktree_paths(disk: WorkspaceDisk) -> dict[str, str]:
    """Directories of the listed disk that are further work trees of its repository, with the names git has for them."""
    found: dict[str, str] = {}
    for entry in disk.entries:
        directory, slash, name = entry.path.rpartition("/")
        if slash and name == ".git" and stat.S_ISREG(entry.mode):
            content = disk.content(entry, _REF_BYTES) or b""
            match = _GITDIR.fullmatch(os.fsdecode(content).rstrip("\r\n"))
            # A second directory of one name is no work tree that git knows of.
            if match and match[1] not in found.values():
                found[directory] = match[1]
    return found


def read_repository(disk: WorkspaceDisk, base: str, places: dict[str, str]) -> GuestRepository:
    """The refs, stashes and work trees of the listed disk's repository. ``places`` is from ``worktree_paths``."""
    return _Refs(disk, base, places).read()


def copy_objects(disk: WorkspaceDisk, mirror: Path, into: Path) -> list[str]:
    """Copy the guest's packs and loose objects, but the packs that the mirror has, into the new directory ``into``.

    Returns notes about what was left out.
    """
    (into / "pack").mkdir(parents=True)
    left, count, missing = _OBJECTS_BYTES, 0, 0
    wanted: list[tuple[Entry, Path]] = []
    for entry in disk.entries:
        if not stat.S_ISREG(entry.mode):
            continue
        if (pack := _PACK.match(entry.path)) and not (mirror / "objects" / "pack" / pack[1]).exists():
            wanted.append((entry, into / "pack" / pack[1]))
        elif (loose := _LOOSE.match(entry.path)) and not (mirror / "objects" / loose[1] / loose[2]).exists():
            wanted.append((entry, into / loose[1] / loose[2]))
    # Small ones first: what an agent commits is small.
    for entry, target in sorted(wanted, key=lambda each: each[0].size):
        count += 1
        left -= entry.size
        if left < 0 or count > _OBJECT_FILES:
            missing += 1
            continue
        target.parent.mkdir(exist_ok=True)
        missing += not disk.copy(entry, target)
    if not missing:
        return []
    return [f"{missing} object files of the guest's repository were not read (most: {format_size(_OBJECTS_BYTES)})."]


class _Refs:
    def __init__(self, disk: WorkspaceDisk, base: str, places: dict[str, str]) -> None:
        self._disk = disk
        self._places = {name: path for path, name in places.items()}
        self._entries = {
            entry.path: entry
            for entry in disk.entries
            if entry.path.startswith(".git/") and not stat.S_ISDIR(entry.mode)
        }
        self._id = re.compile(rf"^[0-9a-f]{{{len(base)}}}$")
        self._found = GuestRepository()
        self._unread: list[str] = []

    def read(self) -> GuestRepository:
        found = self._found
        # What the agent made or moved is loose, as long as nothing packs it: a limit is spent on that first.
        loose = self._loose()
        refs = loose | {name: object_id for name, object_id in self._packed().items() if name not in loose}
        if len(refs) > _REFS_MOST:
            found.notes.append(f"The guest's repository has {len(refs)} refs; {_REFS_MOST} were looked at.")
        head = self._text(".git/HEAD", _REF_BYTES).strip()
        found.checked_out = head.removeprefix("ref: ")
        for name, object_id in sorted(list(refs.items())[:_REFS_MOST]):
            if name != "refs/stash":
                self._add(name, object_id, _kind(name))
        self._stashes(refs.get("refs/stash"))
        self._worktrees()
        if self._id.match(head):
            self._add("refs/detached/HEAD", head, "the detached HEAD")
        for object_id in dict.fromkeys(_LEFT.findall(self._text(".git/logs/HEAD", _LOG_BYTES))):
            self._add(f"refs/detached/{object_id[:12]}", object_id, "a detached HEAD that was left")
        self._note_unread()
        return found

    def _note_unread(self) -> None:
        notes = self._found.notes
        if ".git/HEAD" not in self._entries:
            notes.append("The workspace has no git directory any more: what was committed or stashed is not collected.")
        if any(path.startswith(".git/reftable/") for path in self._entries):
            notes.append(
                "The guest's repository keeps its refs in a reftable, which is not read: no commits of its own."
            )
        if self._unread:
            more = f" and {len(self._unread) - 1} more" if len(self._unread) > 1 else ""
            notes.append(
                f"What {as_text(self._unread[0])}{more} in the guest's repository names is not collected: it is "
                "damaged or too large."
            )

    def _packed(self) -> dict[str, str]:
        rows = (line.split(" ", 1) for line in _lines(self._text(".git/packed-refs", _TABLE_BYTES)) if " " in line)
        return {name: object_id for object_id, name in rows if self._id.match(object_id)}

    def _loose(self) -> dict[str, str]:
        found = {}
        for path in self._entries:
            if path.startswith(".git/refs/"):
                object_id = self._text(path, _REF_BYTES).strip()
                if self._id.match(object_id):
                    found[path.removeprefix(".git/")] = object_id
        return found

    def _stashes(self, newest: str | None) -> None:
        log = [line.split(" ", 2)[1] for line in _lines(self._text(".git/logs/refs/stash", _LOG_BYTES)) if " " in line]
        stashes = [object_id for object_id in reversed(log) if self._id.match(object_id)]
        if newest and newest not in stashes:
            stashes.insert(0, newest)
        for number, object_id in enumerate(stashes):
            self._add(f"refs/stash/{number}", object_id, f"stash@{{{number}}}")

    def _worktrees(self) -> None:
        names = {match[1] for path in self._entries if (match := _WORKTREE.match(path))}
        for name in sorted(names | self._places.keys()):
            place = self._text(f".git/worktrees/{name}/gitdir", _REF_BYTES).strip().removesuffix("/.git")
            path = self._places.get(name)
            head = self._text(f".git/worktrees/{name}/HEAD", _REF_BYTES).strip()
            tip = next((tip.object_id for tip in self._found.tips if f"ref: {tip.ref}" == head), head)
            commit = tip if self._id.match(tip) else None
            if commit and commit == head:
                self._add(worktree_ref(name), commit, f"the detached HEAD of worktree {name}")
            if path is not None or not place.startswith(f"{WORKSPACE}/"):
                self._found.worktrees.append(Worktree(name, commit, path, place))

    def _add(self, ref: str, object_id: str, what: str) -> None:
        if _BAD_REF.search(ref) or not ref.startswith("refs/"):
            ref = f"refs/unnamed/{object_id[:12]}"
        self._found.tips.append(Tip(ref, object_id, what))

    def _text(self, path: str, most: int) -> str:
        entry = self._entries.get(path)
        if entry is None:
            return ""
        content = self._disk.content(entry, most)
        if content is None:
            self._unread.append(path)
        return os.fsdecode(content or b"")


def worktree_ref(name: str) -> str:
    """The ref under which a bundle has the work tree of this name."""
    return f"refs/worktrees/{name}"


def _lines(text: str) -> list[str]:
    """Lines as git has them; ``splitlines`` would cut names that hold other separators."""
    return text.split("\n")


def _kind(ref: str) -> str:
    for prefix, kind in (("refs/heads/", "branch"), ("refs/tags/", "tag")):
        if ref.startswith(prefix):
            return f"{kind} {ref.removeprefix(prefix)}"
    return f"ref {ref}"
