"""The workspace disk: made from a directory of the host, and read back from an image that the guest may have forged.

Reading back never mounts the image and never lets a name from it reach the host's file system calls unchecked: e2fsck
runs confined, the filesystem is read by inode number, and this module builds the tree.
"""

from __future__ import annotations

import heapq
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from foundation.errors import MachineError
from foundation.units import format_size
from guest.contract import AGENT_UID
from machines.disks.confinement import Confinement
from machines.disks.ext4 import ROOT_INODE, Ext4, Inode, Unreadable

LABEL = "workspace"
# Why a device node, a pipe or a socket is left out.
NO_FILE = "no regular file"

_SYMLINK_MAX = 4095
# The host cannot make longer paths below a directory of its own.
_PATH_MAX = 3800
# e2fsck: 1 and 2 mean that it mended what it found, 4 that something is left; reading may go well even so.
_FSCK_UNUSABLE = 8


class DiskUnreadable(MachineError):
    """Of a workspace disk nothing, or not even its root directory, can be read; trying again does not help."""

    code = "machine_error"
    retryable = False


@dataclass(frozen=True)
class Limits:
    """Most of what is read back from one disk. Sizes in bytes; ``path_bytes`` is the length of all paths together.

    ``seconds`` limits everything: checking and mending the disk, listing and reading it.
    """

    file_bytes: int = 2 * 2**30
    total_bytes: int = 8 * 2**30
    entries: int = 500_000
    path_bytes: int = 128 * 2**20
    seconds: float = 900


@dataclass(frozen=True)
class Entry:
    """One directory, regular file or symlink of a disk by its path. ``mtime`` in seconds."""

    path: str
    inode: int
    mode: int
    size: int
    mtime: int = 0


@dataclass
class Extraction:
    """What was read back: regular files and their bytes.

    ``left_out`` are files that were not read, ``unlisted`` directories of which an unknown part was not read (the root
    is the empty path); both by path, with the reason. ``whole_root`` is false when the root's own entries were cut.
    """

    files: int = 0
    total_bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    unlisted: dict[str, str] = field(default_factory=dict)
    repaired: bool = False
    whole_root: bool = True

    def reason(self, path: str) -> str | None:
        """Why a file that is not in the tree may be on the disk all the same; None when it is not there."""
        if path in self.left_out:
            return self.left_out[path]
        while path:
            path = path.rpartition("/")[0]
            if reason := self.unlisted.get(path) or self.left_out.get(path):
                return f"its directory was not read: {reason}"
        return None


def build_workspace(tree: Path, image: Path, size_bytes: int) -> None:
    """Make a sparse ext4 image of ``size_bytes`` that holds the tree, every file owned by the guest's agent.

    The tree is left as it is: the image is written in a namespace in which its owner has the agent's id.
    An existing image is replaced in one step; an interrupted call leaves the old one or none. Raises MachineError when
    the tree does not fit.
    """
    draft = Path(tempfile.mkdtemp(prefix=f".{image.name}.", dir=image.parent))
    try:
        with (draft / "image").open("wb") as file:
            file.truncate(size_bytes)
        inside = Confinement(readable={"/tree": tree}, writable={"/draft": draft}, file_bytes=size_bytes)
        options = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={AGENT_UID}:{AGENT_UID}"
        made = inside.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-L", LABEL, "-E", options, "-d", "/tree", "/draft/image"],
            check=False,
        )
        if made.returncode:
            reason = made.stderr.decode("utf-8", "replace").strip()
            raise MachineError(
                f"The workspace does not fit on a disk of {format_size(size_bytes)}; give more in vm.disk. ({reason})"
                if b"allocate" in made.stderr or b"too small" in made.stderr or b"No space" in made.stderr
                else f"The workspace disk could not be made: {reason}"
            )
        inside.run(["debugfs", "-w", "-R", "rmdir lost+found", "/draft/image"])
        (draft / "image").rename(image)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def opened(image: Path, beside: Path, *, dirty: bool, limits: Limits | None = None) -> Iterator[WorkspaceDisk]:
    """A workspace image, to be read while the block runs. The image is not changed.

    ``dirty`` says that its guest died: the journal is replayed on a sparse copy; the same is done with an image that
    does not pass a check. Copies lie in the directory ``beside`` while the block runs.
    Raises MachineError when there is no readable filesystem.
    """
    limits = limits or Limits()
    deadline = time.monotonic() + limits.seconds
    scratch = Path(tempfile.mkdtemp(prefix=".disk.", dir=beside))
    try:
        consistent = _consistent(image, scratch, deadline, dirty=dirty)
        damaged = _unread(image, limits, deadline) if consistent != image else Extraction()
        with Ext4(consistent, deadline) as filesystem:
            yield WorkspaceDisk(filesystem, limits, damaged, repaired=consistent != image)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class WorkspaceDisk:
    """A disk that is listed first and then read, so that its reader chooses what the limits are spent on.

    Device nodes, entries with impossible names, second entries of one name, and what exceeds the limits are left out;
    ``result`` tells them.
    """

    def __init__(
        self, filesystem: Ext4, limits: Limits, damaged: Extraction | None = None, *, repaired: bool = False
    ) -> None:
        self._filesystem = filesystem
        self._limits = limits
        self._entries_left = limits.entries
        self._path_bytes_left = limits.path_bytes
        self._damaged = damaged or Extraction()
        self.entries: list[Entry] = []
        self.result = Extraction(repaired=repaired)

    def list_entries(
        self, *, rank: Callable[[str], int] = lambda _: 0, skip: Callable[[str], bool] = lambda _: False
    ) -> None:
        """List the disk into ``entries``, parents before their children: directories of a low ``rank`` first.

        Raises MachineError when the root directory cannot be read at all.
        """
        try:
            root = self._filesystem.inode(ROOT_INODE)
            next(self._filesystem.names(root), None)
        except Unreadable as error:
            raise DiskUnreadable(f"The workspace disk has no readable root directory: {error}.") from None
        waiting = [(0, 0, "", root)]
        seen = {ROOT_INODE}
        count = 0
        while waiting:
            _, _, prefix, directory = heapq.heappop(waiting)
            try:
                for entry, inode in self._entries(prefix, directory, skip):
                    if stat.S_ISDIR(entry.mode):
                        if entry.inode in seen:
                            self.result.unlisted[entry.path] = "a directory linked from two places"
                            continue
                        seen.add(entry.inode)
                        count += 1
                        heapq.heappush(waiting, (rank(entry.path), count, entry.path, inode))
                    self.entries.append(entry)
            except Unreadable as error:
                self.result.unlisted[prefix] = str(error)
                self.result.whole_root &= bool(prefix)
        found = {entry.path for entry in self.entries}
        self.result.unlisted = self._damaged.unlisted | self.result.unlisted
        for path, reason in self._damaged.left_out.items():
            if path not in found and not skip(path):
                self.result.left_out.setdefault(path, reason)

    def content(self, entry: Entry, most: int) -> bytes | None:
        """The content of a regular file of at most ``most`` bytes, None when it is larger or cannot be read."""
        if not stat.S_ISREG(entry.mode) or entry.size > most:
            return None
        with tempfile.TemporaryFile() as file:
            try:
                self._filesystem.copy(self._inode(entry), file.fileno())
            except (Unreadable, OSError):
                return None
            return file.read()

    def copy(self, entry: Entry, target: Path) -> bool:
        """Copy a regular file to the new path ``target``. False, and noted in ``result``, when it cannot be read."""
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self.result.left_out[entry.path] = f"its path cannot be made: {error.strerror}"
            return False
        try:
            self._filesystem.copy(self._inode(entry), descriptor)
            if entry.mode & stat.S_IXUSR:
                os.fchmod(descriptor, 0o755)
        except (Unreadable, OSError) as error:
            target.unlink()
            self.result.left_out[entry.path] = (
                f"it could not be written: {error.strerror}" if isinstance(error, OSError) else str(error)
            )
            return False
        finally:
            os.close(descriptor)
        return True

    def read(self, entries: Iterable[Entry], into: Path) -> None:
        """Make the tree of the entries in the new directory ``into``; the limits go to the first of them."""
        entries = list(entries)
        into.mkdir(parents=True)
        for entry in entries:
            if stat.S_ISDIR(entry.mode):
                try:
                    (into / entry.path).mkdir(mode=0o755)
                except OSError as error:
                    self.result.unlisted[entry.path] = f"its path cannot be made: {error.strerror}"
        for entry in entries:
            if stat.S_ISREG(entry.mode) and self._within_limits(entry) and self.copy(entry, into / entry.path):
                self.result.files += 1
        # Symlinks come last, so that no path above was ever resolved through one.
        for entry in entries:
            if stat.S_ISLNK(entry.mode):
                self._link(entry, into / entry.path)

    def _entries(self, prefix: str, directory: Inode, skip: Callable[[str], bool]) -> Iterator[tuple[Entry, Inode]]:
        names: set[bytes] = set()
        for name, number in self._filesystem.names(directory):
            path = os.path.join(prefix, os.fsdecode(name))  # noqa: PTH118 -- pathlib would normalise a forged name
            self._entries_left -= 1
            self._path_bytes_left -= len(path)
            if self._entries_left < 0 or self._path_bytes_left < 0:
                raise Unreadable(f"the disk holds more than {self._limits.entries} entries, or too long paths")
            if skip(path) or (self.result.repaired and path == "lost+found"):
                continue
            if not name or b"/" in name or b"\0" in name:
                # What the entry was called before, nobody knows.
                self.result.left_out[path] = self.result.unlisted[prefix] = "an impossible name"
                continue
            if name in names:
                self.result.left_out[path] = "a second entry of this name"
                continue
            names.add(name)
            try:
                inode = self._filesystem.inode(number)
                reason = _unwanted(path, inode)
            except Unreadable as error:
                reason = str(error)
            if reason:
                self.result.left_out[path] = reason
            else:
                yield Entry(path, number, inode.mode, inode.size, inode.mtime), inode

    def _inode(self, entry: Entry) -> Inode:
        inode = self._filesystem.inode(entry.inode)
        if (inode.mode, inode.size) != (entry.mode, entry.size):
            raise Unreadable("it changed while it was read")
        return inode

    def _within_limits(self, entry: Entry) -> bool:
        limits, result = self._limits, self.result
        if entry.size > limits.file_bytes:
            reason = f"{format_size(entry.size)}, larger than {format_size(limits.file_bytes)}"
        elif result.total_bytes + entry.size > limits.total_bytes:
            reason = f"beyond the {format_size(limits.total_bytes)} read back from one disk"
        else:
            result.total_bytes += entry.size
            return True
        result.left_out[entry.path] = reason
        return False

    def _link(self, entry: Entry, path: Path) -> None:
        try:
            path.symlink_to(os.fsdecode(self._filesystem.link_target(self._inode(entry))))
        except Unreadable as error:
            self.result.left_out[entry.path] = str(error)
        except (OSError, ValueError):
            self.result.left_out[entry.path] = "a symlink that cannot be made"


def _unwanted(path: str, inode: Inode) -> str | None:
    if len(path) > _PATH_MAX:
        return "its path is too long"
    if stat.S_ISLNK(inode.mode):
        return None if 0 < inode.size <= _SYMLINK_MAX else "a symlink without a sensible target"
    return None if stat.S_ISDIR(inode.mode) or stat.S_ISREG(inode.mode) else NO_FILE


def _consistent(image: Path, scratch: Path, deadline: float, *, dirty: bool) -> Path:
    """The image, or a mended copy of it in the directory ``scratch``."""
    if not dirty:
        checked = _fsck("-fn", Confinement(readable={"/image": image}, seconds=_remaining(deadline)))
        if checked == 0 and not _needs_recovery(image, deadline):
            return image
    copy = scratch / "copy"
    Confinement(readable={"/image": image}, writable={"/out": scratch}, seconds=_remaining(deadline)).run(
        ["cp", "--reflink=auto", "--sparse=auto", "--", "/image", "/out/copy"]
    )
    copy.chmod(0o600)
    if _fsck("-fy", Confinement(writable={"/image": copy}, seconds=_remaining(deadline))) >= _FSCK_UNUSABLE:
        raise DiskUnreadable("The workspace disk holds no ext4 filesystem that could be read or mended.")
    return copy


def _fsck(mode: str, confined: Confinement) -> int:
    with Path(os.devnull).open("wb") as nothing:
        return confined.run(["e2fsck", mode, "/image"], stdout=nothing, check=False).returncode


def _remaining(deadline: float) -> float:
    return max(1.0, deadline - time.monotonic())


def _unread(image: Path, limits: Limits, deadline: float) -> Extraction:
    """What of a damaged image could not be read as it was. Mending gives such entries other names, or removes them."""
    try:
        with Ext4(image, deadline) as filesystem:
            disk = WorkspaceDisk(filesystem, limits)
            disk.list_entries()
    except MachineError:
        return Extraction(unlisted={"": "the disk was damaged"})
    return disk.result


def _needs_recovery(image: Path, deadline: float) -> bool:
    with Ext4(image, deadline) as filesystem:
        return filesystem.needs_recovery
