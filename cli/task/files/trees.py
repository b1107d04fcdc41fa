"""Files of this host on their way into a machine and out of it: trees as tar streams, laid out whole and in place.

What comes out of a machine was made by whoever works in it: no name leads out of the directory that it is laid into, or
through a link. A file is there whole, or as it was before.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from foundation import archives
from foundation.archives import Member, Members, Piece
from foundation.errors import ArchiveRefused, Conflict

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Told = Callable[[int], None]
"""Called with the bytes that have been dealt with since the last call."""


def packed(source: bytes, told: Told, left_out: Callable[[bytes], None]) -> Iterator[bytes]:
    """A directory and all below it as a tar stream, names relative to it. A file has the length that it begins with.

    ``left_out`` is called with what is neither a file, a directory nor a link. Raises OSError for what cannot be read.
    """
    first: dict[tuple[int, int], bytes] = {}

    def entries(path: bytes, name: bytes) -> Iterator[bytes]:
        found = os.lstat(path)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            yield archives.head(_member("directory", name, found))
            for below in sorted(os.listdir(path)):
                yield from entries(os.path.join(path, below), below if name == b"." else name + b"/" + below)
        elif kind == stat.S_IFLNK:
            yield archives.head(replace(_member("symlink", name, found), target=os.readlink(path)))
        elif kind != stat.S_IFREG:
            left_out(path)
        elif (before := first.setdefault((found.st_dev, found.st_ino), name)) != name and found.st_nlink > 1:
            yield archives.head(replace(_member("hardlink", name, found), target=before))
        else:
            with _opened(path) as number:
                found = os.fstat(number)
                yield archives.head(replace(_member("file", name, found), size=found.st_size))
                yield from _read(number, found.st_size, told)
                yield archives.padding(found.st_size)

    yield from entries(source, b".")
    yield archives.END


def one_link(name: bytes, path: bytes) -> bytes:
    """A tar stream of one link of this host, under another name."""
    return archives.head(replace(_member("symlink", name, os.lstat(path)), target=os.readlink(path))) + archives.END


def file_pieces(path: bytes, told: Told) -> Iterator[bytes]:
    """The bytes of a file, as long as it is at first."""
    with _opened(path, follow=True) as number:
        yield from _read(number, os.fstat(number).st_size, told)


def renamed(members: Members, base: bytes) -> Iterator[bytes]:
    """The members as a tar stream, each below ``base``, if there is one."""

    def below(name: bytes) -> bytes:
        return name if not base else base if name == b"." else base + b"/" + name

    for member in members:
        name = below(member.name)
        target = below(member.target) if member.kind == "hardlink" else member.target
        yield archives.head(replace(member, name=name, target=target))
        for piece in members.content():
            yield from archives.zeros(piece) if isinstance(piece, int) else (piece,)
        yield archives.padding(member.size)
    yield archives.END


def lay_out(members: Members, root: bytes, told: Told, *, keep_owners: bool) -> None:
    """Lay the members out below a directory. One that was not there is there when all of them are.

    Raises ArchiveRefused, OSError.
    """
    made = None if os.path.isdir(root) else os.path.join(os.path.dirname(root) or b".", _draft())
    if made is not None:
        os.mkdir(made, 0o700)
    try:
        tree = _Tree(made or root, told, own_root=made is not None, keep_owners=keep_owners)
        try:
            for member in members:
                tree.add(member, members.content())
            tree.finish()
        finally:
            tree.close()
        if made is not None:
            os.rename(made, root)
    except BaseException:
        if made is not None:
            shutil.rmtree(made, ignore_errors=True)
        raise


def write_file(path: bytes, pieces: Iterable[bytes], told: Told, *, mode: int, modified_ns: int) -> None:
    """Write a file whole; what a link names. Raises OSError."""
    path = os.path.realpath(path)
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        holes = (piece for data in pieces for piece in archives.with_holes(data))
        _place_file(directory, os.path.basename(path), holes, told, (mode, modified_ns, None))
    finally:
        os.close(directory)


def make_link(path: bytes, target: bytes) -> None:
    """Make a link, in the place of a file or link that is there."""
    draft = os.path.join(os.path.dirname(path) or b".", _draft())
    os.symlink(target, draft)
    try:
        os.rename(draft, path)
    except BaseException:
        os.unlink(draft)
        raise


class _Tree:
    """A directory into which members are laid, each from a directory that was entered from the one above it."""

    def __init__(self, root: bytes, told: Told, *, own_root: bool, keep_owners: bool) -> None:
        self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._own_root = own_root
        self._told = told
        self._keep_owners = keep_owners
        self._entered: tuple[bytes, int] | None = None
        self._directories: list[Member] = []

    def add(self, member: Member, content: Iterable[Piece]) -> None:
        """Lay out a member."""
        if member.name == b".":
            self._directories += [member] if self._own_root else []
            return
        above, _, name = member.name.rpartition(b"/")
        if member.kind == "hardlink":
            target_above, _, target_name = member.target.rpartition(b"/")
            source = os.dup(self._enter(target_above))
            try:
                self._place(above, name, lambda to, draft: os.link(
                    target_name, draft, src_dir_fd=source, dst_dir_fd=to, follow_symlinks=False
                ))  # fmt: skip
            finally:
                os.close(source)
        elif member.kind == "symlink":
            self._place(above, name, lambda to, draft: self._link(member, to, draft))
        elif member.kind == "directory":
            self._make_directory(member, self._enter(above), name)
        else:
            access = (member.mode & self._modes, member.modified_ns, self._owner(member))
            _place_file(self._enter(above), name, content, self._told, access)

    def finish(self) -> None:
        """Give directories what they have, the deepest first: until now they had to be written to."""
        for member in reversed(self._directories):
            number = self._enter(b"" if member.name == b"." else member.name)
            if (owner := self._owner(member)) is not None:
                os.chown(number, *owner)
            os.chmod(number, member.mode & self._modes)
            with suppress(OverflowError):
                os.utime(number, ns=(member.modified_ns, member.modified_ns))

    def close(self) -> None:
        """Leave it."""
        self._leave()
        os.close(self._root)

    @property
    def _modes(self) -> int:
        return 0o7777 if self._keep_owners else 0o1777

    def _owner(self, member: Member) -> tuple[int, int] | None:
        return (member.uid, member.gid) if self._keep_owners else None

    def _link(self, member: Member, to: int, draft: bytes) -> None:
        os.symlink(member.target, draft, dir_fd=to)
        if (owner := self._owner(member)) is not None:
            os.chown(draft, *owner, dir_fd=to, follow_symlinks=False)
        with suppress(OverflowError):
            os.utime(draft, ns=(member.modified_ns, member.modified_ns), dir_fd=to, follow_symlinks=False)

    def _make_directory(self, member: Member, above: int, name: bytes) -> None:
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=above)
        if not stat.S_ISDIR(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode):
            raise Conflict(f"{archives.shown(member.name)} is there already, and is no directory.")
        self._directories.append(member)

    def _place(self, above: bytes, name: bytes, make: Callable[[int, bytes], None]) -> None:
        to, draft = self._enter(above), _draft()
        try:
            make(to, draft)
            os.rename(draft, name, src_dir_fd=to, dst_dir_fd=to)
        finally:
            # Also of another name of the same file, which is not renamed.
            with suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=to)

    def _enter(self, path: bytes) -> int:
        if self._entered is not None and self._entered[0] == path:
            return self._entered[1]
        self._leave()
        number = os.dup(self._root)
        for part in path.split(b"/") if path else ():
            try:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o777, dir_fd=number)
                below = os.open(part, _DIRECTORY, dir_fd=number)
            except OSError as error:
                raise ArchiveRefused(
                    f"{archives.shown(path)} would go through what is no directory of its own ({error.strerror})."
                ) from error
            finally:
                os.close(number)
            number = below
        self._entered = (path, number)
        return number

    def _leave(self) -> None:
        if self._entered is not None:
            os.close(self._entered[1])
            self._entered = None


def _place_file(
    directory: int, name: bytes, pieces: Iterable[Piece], told: Told, access: tuple[int, int, tuple[int, int] | None]
) -> None:
    mode, modified_ns, owner = access
    draft = _draft()
    number = os.open(draft, _NEW, 0o600, dir_fd=directory)
    try:
        try:
            at = 0
            for piece in pieces:
                at += piece if isinstance(piece, int) else len(piece)
                if isinstance(piece, int):
                    os.lseek(number, piece, os.SEEK_CUR)
                else:
                    rest = memoryview(piece)
                    while rest:
                        rest = rest[os.write(number, rest) :]
                told(piece if isinstance(piece, int) else len(piece))
            os.ftruncate(number, at)
            if owner is not None:
                os.fchown(number, *owner)
            os.fchmod(number, mode)
            with suppress(OverflowError):
                os.utime(number, ns=(modified_ns, modified_ns))
        finally:
            os.close(number)
        os.rename(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(draft, dir_fd=directory)
        raise


@contextmanager
def _opened(path: bytes, *, follow: bool = False) -> Iterator[int]:
    number = os.open(path, _OLD & ~os.O_NOFOLLOW if follow else _OLD)
    try:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise Conflict(f"'{os.fsdecode(path)}' is no file.")
        yield number
    finally:
        os.close(number)


def _read(number: int, size: int, told: Told) -> Iterator[bytes]:
    left = size
    while left:
        piece = os.read(number, min(left, archives.PIECE_BYTES))
        if not piece:
            # As in a machine: what it has lost meanwhile is zeros.
            yield from archives.zeros(left)
            return
        left -= len(piece)
        told(len(piece))
        yield piece


def _member(kind: archives.Kind, name: bytes, found: os.stat_result) -> Member:
    return Member(kind, name, stat.S_IMODE(found.st_mode), found.st_mtime_ns, uid=found.st_uid, gid=found.st_gid)


def _draft() -> bytes:
    return b".taskyard-" + secrets.token_hex(6).encode()
