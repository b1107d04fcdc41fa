"""Tar streams written and read piece by piece, where neither side trusts the other's names, sizes or ends."""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, Protocol, cast

from foundation.errors import ArchiveRefused, TaskyardError, error_of

#: A file's content: bytes, or the length of a hole, which reads as so many zeros.
Piece = bytes | int
Kind = Literal["file", "directory", "symlink", "hardlink"]

PIECE_BYTES = 64 * 1024
BLOCK = 512
END = bytes(2 * BLOCK)
_ZEROS = bytes(PIECE_BYTES)
# Shorter ones are cheaper to send than to leave out.
_HOLE_LEAST = 32 * 1024
_HOLE = bytes(_HOLE_LEAST)
# Headers are read whole; none has a reason to be longer.
_HEADER_MOST = 256 * 1024
# A machine's disk is read faster than this level packs it; a higher one is slower than the way to most clients.
_LEVEL = 1
_GZIP_WINDOW = 31
_PADDING_MOST = 2**20
_TIME_MOST = 2**40
_FAILURE = "TASKYARD.error"
# Names are bytes; as text they are as Python has them of its own file system.
_CODING, _ERRORS = "utf-8", "surrogateescape"
_TYPES: dict[Kind, bytes] = {
    "file": tarfile.REGTYPE,
    "directory": tarfile.DIRTYPE,
    "symlink": tarfile.SYMTYPE,
    "hardlink": tarfile.LNKTYPE,
}
# All that tarfile is known to raise on what is no archive, or one that was made to hurt.
_UNREADABLE = (
    tarfile.TarError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, RecursionError, EOFError,
    zlib.error, OSError,
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """One member of an archive. ``modified_ns`` is in nanoseconds since the epoch; ``target`` is that of a link."""

    kind: Kind
    name: bytes
    mode: int
    modified_ns: int
    size: int = 0
    target: bytes = b""
    uid: int = 0
    gid: int = 0
    owner: str = ""
    group: str = ""


class Source(Protocol):
    """What an archive is read from."""

    def read(self, size: int, /) -> bytes: ...


def inside(name: bytes) -> bytes:
    """The name of a member without what changes nothing; ``.`` for the directory itself. Raises ArchiveRefused."""
    parts = [part for part in name.split(b"/") if part not in {b"", b"."}]
    if name.startswith(b"/") or b".." in parts or b"\0" in name:
        raise ArchiveRefused(f"The archive has a member that would leave its directory: {shown(name)}")
    return b"/".join(parts) or b"."


def shown(name: bytes) -> str:
    """A name as sentences show it."""
    return repr(name.decode(errors="backslashreplace"))


def head(member: Member) -> bytes:
    """What stands before a member's content; ``padding`` of its size stands behind it."""
    info = tarfile.TarInfo(_text(member.name))
    info.type = _TYPES[member.kind]
    info.mode = member.mode & 0o7777
    info.uid, info.gid, info.uname, info.gname = member.uid, member.gid, member.owner, member.group
    info.size = member.size if member.kind == "file" else 0
    info.linkname = _text(member.target)
    seconds, rest = divmod(member.modified_ns, 10**9)
    info.mtime = seconds
    if rest:
        info.pax_headers = {"mtime": f"{Decimal(member.modified_ns) / 10**9:.9f}"}
    return info.tobuf(tarfile.PAX_FORMAT, _CODING, _ERRORS)


def padding(size: int) -> bytes:
    """What fills a member's last block."""
    return bytes(-size % BLOCK)


def failure(error: TaskyardError) -> bytes:
    """The end of a stream that could not be finished: a header that other programs ignore and ours raise."""
    told = json.dumps({"error": error.code, "message": error.message})
    return tarfile.TarInfo.create_pax_global_header({_FAILURE: told})


def zeros(length: int) -> Iterator[bytes]:
    """So many zeros, in pieces."""
    while length > 0:
        part = min(length, PIECE_BYTES)
        yield _ZEROS[:part]
        length -= part


def with_holes(data: bytes) -> Iterator[Piece]:
    """The data, long runs of zeros told by their length."""
    start = 0
    for at in range(0, len(data) - _HOLE_LEAST + 1, _HOLE_LEAST):
        if data.startswith(_HOLE, at):
            if at > start:
                yield data[start:at]
            yield _HOLE_LEAST
            start = at + _HOLE_LEAST
    if start < len(data):
        yield data[start:] if start else data


class Members:
    """The members of a tar stream, one after another: ``content`` is that of the last one given.

    Raises ArchiveRefused for what is no tar archive, and for one whose end is missing; the error that stands in the
    stream where whoever made it could not finish. ``skipped`` has names of members that are no files, at most 100.
    """

    _SKIPPED_SHOWN = 100

    def __init__(self, source: Source) -> None:
        self._source = _Forward(source)
        self._info: tarfile.TarInfo | None = None
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        with _readable():
            # Its type wants of a file what reading one does not need, and does not know its list of members.
            tar: Any = tarfile.TarFile(fileobj=cast("Any", self._source), mode="r", encoding=_CODING, errors=_ERRORS)
        while True:
            try:
                with _readable():
                    info = tar.next()
            except TaskyardError:
                # That the stream is cut off is what follows from it.
                raise_failure(tar.pax_headers)
                raise
            raise_failure(tar.pax_headers)
            # It would remember all of them.
            tar.members = []
            tar.pax_headers = {}
            if info is None:
                break
            with _readable():
                member = _member(info)
            if member is None:
                if len(self.skipped) < self._SKIPPED_SHOWN:
                    self.skipped.append(info.name.encode("utf-8", "replace").decode())
                continue
            self._info = info
            yield member
        self._source.drain(_PADDING_MOST)

    def content(self) -> Iterator[Piece]:
        """The content of the member that was given last, if it is a file; to be read before the next one."""
        info = self._info
        if info is None or not info.isreg():
            return
        at = 0
        parts: list[tuple[int, int]] = cast("Any", info).sparse or [(0, info.size)]
        for start, length in parts:
            if start < at or length < 0 or start + length > info.size:
                raise ArchiveRefused(f"The archive's map of {shown(_raw(info.name))} is none")
            if start > at:
                yield start - at
            at = start + length
            left = length
            while left:
                piece = self._source.read(min(left, PIECE_BYTES))
                if not piece:
                    raise ArchiveRefused("The archive ends in the middle of a file")
                left -= len(piece)
                yield from with_holes(piece)
        if info.size > at:
            yield info.size - at


def gzipped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The pieces as a gzip stream. When they break off, what came before can be read of it."""
    packer = zlib.compressobj(_LEVEL, wbits=_GZIP_WINDOW)
    try:
        for piece in pieces:
            if packed := packer.compress(piece):
                yield packed
    except TaskyardError:
        yield packer.flush(zlib.Z_SYNC_FLUSH)
        raise
    yield packer.flush()


class Gunzipped:
    """The content of a gzip stream, as something to read from. Raises ArchiveRefused for a damaged one."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._unpacker = zlib.decompressobj(_GZIP_WINDOW)
        self._over = False

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""
        while not self._over and size > 0:
            waiting = self._unpacker.unconsumed_tail or self._source.read(PIECE_BYTES)
            if not waiting:
                raise ArchiveRefused("The archive ends in the middle")
            try:
                data = self._unpacker.decompress(waiting, size)
            except zlib.error as error:
                raise ArchiveRefused(f"The archive is damaged ({error})") from error
            # What may stand behind its end is none of it.
            self._over = self._unpacker.eof
            if data:
                return data
        return b""


def raise_failure(headers: Mapping[str, str]) -> None:
    """Raise the error that an archive's maker has put into it."""
    told = headers.get(_FAILURE)
    if told is None:
        return
    try:
        facts = json.loads(told)
        error, message = error_of(str(facts["error"])), str(facts["message"])
    except (ValueError, LookupError, TypeError):
        error, message = None, "The archive could not be finished"
    raise (error or TaskyardError)(message)


class _Forward:
    """A stream as tarfile wants a file: with places, of which only later ones can be gone to."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._place = 0

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _HEADER_MOST:
            raise ArchiveRefused("The archive has a header that is longer than any needs to be")
        pieces, left = [], size
        while left and (piece := self._source.read(left)):
            pieces.append(piece)
            left -= len(piece)
        data = b"".join(pieces)
        self._place += len(data)
        return data

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, _whence: int = 0, /) -> int:
        if place < self._place:
            raise ArchiveRefused("The archive has sizes that lead back into it")
        while self._place < place:
            if not self.read(min(place - self._place, PIECE_BYTES)):
                raise ArchiveRefused("The archive ends in the middle of a file")
        return place

    def drain(self, most: int) -> None:
        while most > 0 and (piece := self.read(PIECE_BYTES)):
            most -= len(piece)


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except TaskyardError:
        raise
    except _UNREADABLE as error:
        raise ArchiveRefused(f"This is no tar archive, or a damaged one ({error or type(error).__name__})") from error


def _member(info: tarfile.TarInfo) -> Member | None:
    """The member of an entry; None for what is neither a file, a directory nor a link."""
    if info.isdir():
        kind: Kind = "directory"
    elif info.issym():
        kind = "symlink"
    elif info.islnk():
        kind = "hardlink"
    elif info.isreg():
        kind = "file"
    else:
        return None
    if info.size < 0:
        raise ValueError("a negative size")
    name = inside(_raw(info.name))
    target = _raw(info.linkname) if kind in {"symlink", "hardlink"} else b""
    if kind == "hardlink":
        target = inside(target)
    if b"\0" in target or (kind != "directory" and name == b"."):
        raise ArchiveRefused(f"The archive has a member that is none: {shown(_raw(info.name))}")
    return Member(
        kind=kind, name=name, mode=info.mode & 0o7777, modified_ns=_nanoseconds(info),
        size=info.size if kind == "file" else 0, target=target, uid=_id(info.uid), gid=_id(info.gid),
        owner=info.uname, group=info.gname,
    )  # fmt: skip


def _nanoseconds(info: tarfile.TarInfo) -> int:
    told = info.pax_headers.get("mtime", "")
    try:
        seconds = Decimal(told) if len(told) < 40 else Decimal(info.mtime)  # noqa: PLR2004 -- longer than any time
    except (InvalidOperation, ValueError):
        seconds = Decimal(int(info.mtime))
    if not seconds.is_finite() or abs(seconds) > _TIME_MOST:
        return 0
    return int(seconds * 10**9)


def _id(number: int) -> int:
    return number if 0 <= number < 2**32 - 1 else 0


def _text(name: bytes) -> str:
    return name.decode(_CODING, _ERRORS)


def _raw(name: str) -> bytes:
    return name.encode(_CODING, _ERRORS)
