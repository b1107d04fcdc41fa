"""The workspace disk: made from a directory of the host, and read back from an image that the guest may have forged.

Reading back never mounts the image and never lets a name from it reach the host's file system calls unchecked: the
programs that parse it run confined, work by inode number, and write numbered files; this module then builds the tree.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from foundation.errors import MachineError
from foundation.units import format_size
from machines.confinement import GUEST_UID, Confinement

LABEL = "workspace"

_ROOT_INODE = 2
_BATCH = 2000
_BATCH_BYTES = 2**30
_SYMLINK_MAX = 4095
_LISTING_MAX = 512 * 2**20
# e2fsck: 1 and 2 mean that it mended what it found, 4 that something is left; reading may go well even so.
_FSCK_UNUSABLE = 8
_ENTRY = re.compile(rb"^/(\d+)/(\d+)/-?\d+/-?\d+/(.*?)/(\d*)/$", re.MULTILINE | re.DOTALL)
_ECHO = re.compile(rb"^debugfs: (?:ls -p|stat|dump) <(\d+)>.*$", re.MULTILINE)
_FAST_LINK = b'Fast link dest: "'


@dataclass(frozen=True)
class Limits:
    """Most of what is read back from one disk. Sizes in bytes."""

    file_bytes: int = 2 * 2**30
    total_bytes: int = 8 * 2**30
    entries: int = 500_000


@dataclass
class Extraction:
    """What was read back: regular files and their bytes, and by path what was left out, with the reason."""

    files: int = 0
    total_bytes: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    repaired: bool = False


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
        options = f"lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner={GUEST_UID}:{GUEST_UID}"
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


def extract_workspace(
    image: Path,
    into: Path,
    *,
    dirty: bool,
    skip: Callable[[str], bool] = lambda _: False,
    limits: Limits | None = None,
) -> Extraction:
    """Read the tree of a workspace image into the new directory ``into``: directories, regular files, symlinks.

    The image is not changed. ``dirty`` says that its guest died: the journal is replayed on a sparse copy; the same
    is done with an image that does not pass a check. ``skip`` names relative paths to pass over. Device nodes, entries
    with impossible names, second entries of one name, and what exceeds the limits are left out and told.
    Raises MachineError when there is no readable filesystem.
    """
    into.mkdir(parents=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{into.name}.", dir=into.parent))
    try:
        reader = _Reader(image, into, scratch, skip, limits or Limits())
        reader.make_consistent(dirty)
        reader.read()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return reader.result


@dataclass(frozen=True)
class _Entry:
    path: str
    inode: int
    mode: int
    size: int


class _Reader:
    def __init__(self, image: Path, into: Path, scratch: Path, skip: Callable[[str], bool], limits: Limits) -> None:
        self.image = image
        self.into = into
        self.scratch = scratch
        self.skip = skip
        self.limits = limits
        self.result = Extraction()

    def make_consistent(self, dirty: bool) -> None:
        if not dirty and self._fsck("-fn", self.image).returncode == 0:
            return
        copy = self.scratch / "copy"
        subprocess.run(["cp", "--reflink=auto", "--sparse=auto", "--", self.image, copy], check=True)
        copy.chmod(0o600)
        if self._fsck("-fy", copy).returncode >= _FSCK_UNUSABLE:
            raise MachineError("The workspace disk holds no ext4 filesystem that could be read or mended.")
        self.image = copy
        self.result.repaired = True

    def read(self) -> None:
        entries = list(self._walk())
        for entry in entries:
            if stat.S_ISDIR(entry.mode):
                self._place(entry, lambda path: path.mkdir(mode=0o755))
        files = [entry for entry in entries if stat.S_ISREG(entry.mode)]
        for batch in _batches(files):
            self._dump(batch)
        # Symlinks come last, so that no path above was ever resolved through one.
        self._link([entry for entry in entries if stat.S_ISLNK(entry.mode)])

    def _fsck(self, mode: str, image: Path) -> subprocess.CompletedProcess[bytes]:
        place = {"/image": image}
        confined = Confinement(readable=place) if mode == "-fn" else Confinement(writable=place)
        with tempfile.TemporaryFile(dir=self.scratch) as talk:
            return confined.run(["e2fsck", mode, "/image"], stdout=talk, check=False)

    def _debugfs(self, commands: Iterable[str], out: Path | None = None) -> bytes:
        """Output of debugfs for the commands, which name inodes by number only."""
        script = self.scratch / "commands"
        script.write_text("".join(f"{command}\n" for command in commands))
        confined = Confinement(
            readable={"/image": self.image, "/commands": script},
            writable={"/out": out} if out else {},
            file_bytes=max(self.limits.file_bytes, _LISTING_MAX),
        )
        with tempfile.TemporaryFile(dir=self.scratch) as talk:
            confined.run(["debugfs", "-f", "/commands", "/image"], stdout=talk)
            talk.seek(0)
            return talk.read(_LISTING_MAX)

    def _walk(self) -> Iterator[_Entry]:
        """Every entry that will be made, parents first and shallow ones first."""
        level = {_ROOT_INODE: ""}
        seen = {_ROOT_INODE}
        count = 0
        while level:
            below: dict[int, str] = {}
            listing = self._debugfs(f"ls -p <{inode}>" for inode in level)
            for directory, rows in _sections(listing):
                prefix = level.pop(directory, None)
                if prefix is None:
                    continue
                for entry in self._entries(prefix, rows):
                    if stat.S_ISDIR(entry.mode):
                        if entry.inode in seen:
                            self.result.left_out[entry.path] = "a directory linked from two places"
                            continue
                        seen.add(entry.inode)
                        below[entry.inode] = entry.path
                    count += 1
                    if count > self.limits.entries:
                        self.result.left_out[entry.path] = f"this and all further ones: over {self.limits.entries}"
                        return
                    yield entry
            if "" in level.values():
                raise MachineError("The workspace disk has no readable root directory.")
            level = below

    def _entries(self, prefix: str, rows: bytes) -> Iterator[_Entry]:
        names: set[bytes] = set()
        for row in _ENTRY.finditer(rows):
            inode, mode, name, size = int(row[1]), int(row[2], 8), row[3], int(row[4] or 0)
            if name in {b".", b".."} or not inode:
                continue
            path = os.path.join(prefix, os.fsdecode(name))  # noqa: PTH118 -- pathlib would normalise a forged name
            reason = None
            if not name or b"/" in name or b"\0" in name:
                reason = "an impossible name"
            elif name in names:
                reason = "a second entry of this name"
            elif self.skip(path) or (self.result.repaired and path == "lost+found"):
                continue
            elif not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
                reason = "no regular file"
            elif stat.S_ISREG(mode):
                reason = self._over_limit(size)
            elif stat.S_ISLNK(mode) and not 0 < size <= _SYMLINK_MAX:
                reason = "a symlink without a sensible target"
            names.add(name)
            if reason:
                self.result.left_out[path] = reason
            else:
                yield _Entry(path, inode, mode, size)

    def _over_limit(self, size: int) -> str | None:
        if size > self.limits.file_bytes:
            return f"{format_size(size)}, larger than {format_size(self.limits.file_bytes)}"
        if self.result.total_bytes + size > self.limits.total_bytes:
            return f"beyond the {format_size(self.limits.total_bytes)} read back from one disk"
        self.result.total_bytes += size
        return None

    def _dump(self, batch: list[_Entry]) -> None:
        out = self.scratch / "out"
        out.mkdir()
        self._debugfs((f"dump <{entry.inode}> /out/{number}" for number, entry in enumerate(batch)), out)
        for number, entry in enumerate(batch):
            part = out / str(number)
            if not part.is_file() or part.stat().st_size != entry.size:
                self.result.left_out[entry.path] = "its blocks could not be read"
                continue
            part.chmod(0o755 if entry.mode & stat.S_IXUSR else 0o644)
            self.result.files += self._place(entry, part.rename)
        shutil.rmtree(out)

    def _link(self, links: list[_Entry]) -> None:
        for start in range(0, len(links), _BATCH):
            batch = links[start : start + _BATCH]
            out = self.scratch / "out"
            out.mkdir()
            described = dict(_sections(self._debugfs(f"stat <{entry.inode}>" for entry in batch)))
            slow = [entry for entry in batch if _FAST_LINK not in described.get(entry.inode, b"")]
            self._debugfs((f"dump <{entry.inode}> /out/{entry.inode}" for entry in slow), out)
            for entry in batch:
                _, mark, rest = described.get(entry.inode, b"").partition(_FAST_LINK)
                part = out / str(entry.inode)
                target = rest[: entry.size] if mark else part.read_bytes() if part.is_file() else b""
                if len(target) != entry.size or b"\0" in target:
                    self.result.left_out[entry.path] = "a symlink without a sensible target"
                else:
                    self._place(entry, partial(_symlink, target))
            shutil.rmtree(out)

    def _place(self, entry: _Entry, make: Callable[[Path], object]) -> bool:
        """Make an entry below ``into``. Paths that the host cannot hold (too deep) are left out."""
        try:
            make(self.into / entry.path)
        except OSError as error:
            self.result.left_out[entry.path] = f"its path cannot be made: {error.strerror}"
            return False
        return True


def _symlink(target: bytes, path: Path) -> None:
    path.symlink_to(os.fsdecode(target))


def _sections(output: bytes) -> Iterator[tuple[int, bytes]]:
    """Output of debugfs by the inode number of each command."""
    echoes = list(_ECHO.finditer(output))
    ends = [echo.start() for echo in echoes[1:]] + [len(output)]
    for echo, end in zip(echoes, ends, strict=False):
        yield int(echo[1]), output[echo.end() : end]


def _batches(files: list[_Entry]) -> Iterator[list[_Entry]]:
    batch: list[_Entry] = []
    size = 0
    for entry in files:
        if batch and (len(batch) == _BATCH or size + entry.size > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.size
    if batch:
        yield batch
