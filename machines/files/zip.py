"""Zip archives: written as a stream, read from a file of the host that nobody else sees."""

from __future__ import annotations

import calendar
import stat
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, cast

from foundation.archives import PIECE_BYTES, Member, Piece, Source, inside, shown, with_holes, zeros
from foundation.errors import ArchiveRefused, InsufficientResources, PayloadTooLarge, TaskyardError

#: A zip is read from its end, so that all of it must have come; a tar archive has no such limit.
SPOOLED_MOST = 4 * 2**30
_MEMBERS_MOST = 100_000
# The directory at its end is read whole, as is the target of a link.
_DIRECTORY_MOST = 16 * 2**20
_TARGET_MOST = 4096
_UNIX = 3
_UTF8 = 0x800
_TIME_FIELD = 0x5455
_FIRST, _LAST = (1980, 1, 1, 0, 0, 0), (2107, 12, 31, 23, 59, 58)
_LEVEL = 1
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, LookupError, struct.error, NotImplementedError,
               RuntimeError, OverflowError, UnicodeError)  # fmt: skip


def written(members: Iterable[tuple[Member, Iterable[Piece]]]) -> Iterator[bytes]:
    """The members as a zip archive. Raises ArchiveRefused for more than 100,000 of them: their list is kept until then.

    Links are stored as programs for Unix do, hard links not at all: their members have to be files.
    """
    sink = _Sink()
    # Its type wants a name, which only errors would show.
    with zipfile.ZipFile(cast("IO[bytes]", sink), "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        for count, (member, pieces) in enumerate(members):
            if member.name == b".":
                continue
            if count > _MEMBERS_MOST:
                raise ArchiveRefused(f"There are more than {_MEMBERS_MOST} files; take a tar archive")
            info = _info(member)
            content: Iterable[Piece] = [member.target] if member.kind == "symlink" else pieces
            with archive.open(info, "w", force_zip64=True) as file:
                for piece in content:
                    for part in zeros(piece) if isinstance(piece, int) else (piece,):
                        file.write(part)
                        yield from sink.taken()
            yield from sink.taken()
    yield from sink.taken()


def spooled(source: Source, directory: Path, most: int = SPOOLED_MOST) -> IO[bytes]:
    """The source as a file that has no name, and is gone when it is closed, or whoever holds it has ended.

    Raises PayloadTooLarge, and InsufficientResources when the host's disk is full.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 -- the caller's to close
    try:
        while (piece := source.read(PIECE_BYTES)) and file.tell() <= most:
            file.write(piece)
        size = file.tell()
        file.seek(0)
    except OSError as error:
        file.close()
        raise InsufficientResources(
            f"The host has no room for the archive ({error.strerror}); send it as a tar archive"
        ) from error
    except BaseException:
        file.close()
        raise
    if size > most:
        file.close()
        raise PayloadTooLarge(f"A zip archive may have {most} bytes; send it as a tar archive")
    return file


class ZipMembers:
    """The members of a zip archive in a file, as ``foundation.archives.Members`` has those of a tar archive."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = _Bounded(file)
        self._archive: zipfile.ZipFile | None = None
        self._info: zipfile.ZipInfo | None = None
        self.skipped: list[str] = []

    def __iter__(self) -> Iterator[Member]:
        try:
            self._archive = zipfile.ZipFile(self._file)
            infos = self._archive.infolist()
        except TaskyardError:
            raise
        except (*_UNREADABLE, OSError) as error:
            raise ArchiveRefused(f"This is no zip archive, or a damaged one ({error})") from error
        for info in infos:
            member = self._member(info)
            if member is None:
                self.skipped.append(info.filename.encode(errors="replace").decode())
                del self.skipped[100:]
                continue
            self._info = info
            yield member

    def content(self) -> Iterator[Piece]:
        """The content of the member that was given last."""
        if self._archive is None or self._info is None:
            return
        left = self._info.file_size
        try:
            with self._archive.open(self._info) as file:
                while piece := file.read(PIECE_BYTES):
                    left -= len(piece)
                    yield from with_holes(piece)
        except TaskyardError:
            raise
        except _UNREADABLE as error:
            raise ArchiveRefused(f"{self._info.filename!r} of the archive cannot be read ({error})") from error
        if left:
            raise ArchiveRefused(f"{self._info.filename!r} of the archive is of another size than it says")

    def _member(self, info: zipfile.ZipInfo) -> Member | None:
        raw = info.filename.encode() if info.flag_bits & _UTF8 else info.filename.encode("cp437", "replace")
        name = inside(raw)
        unix = info.external_attr >> 16 if info.create_system == _UNIX else 0
        kind = stat.S_IFMT(unix)
        when = _time(info)
        if info.is_dir():
            return Member("directory", name, stat.S_IMODE(unix) or 0o755, when)
        if name == b".":
            raise ArchiveRefused(f"The archive has a member that is none: {shown(raw)}")
        if kind == stat.S_IFLNK:
            if info.file_size > _TARGET_MOST:
                raise ArchiveRefused(f"The archive has a link with a target that is none: {shown(raw)}")
            self._info = info
            target = b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in self.content())
            if not target or b"\0" in target:
                raise ArchiveRefused(f"The archive has a link with a target that is none: {shown(raw)}")
            return Member("symlink", name, 0o777, when, target=target)
        if kind not in {0, stat.S_IFREG}:
            return None
        return Member("file", name, stat.S_IMODE(unix) or 0o644, when, size=info.file_size)


class _Info(zipfile.ZipInfo):
    """A member whose name may be any bytes; those that are no UTF-8 are not said to be."""

    raw = b""

    def _encodeFilenameFlags(self) -> tuple[bytes, int]:  # noqa: N802 -- zipfile's own name
        try:
            self.raw.decode()
        except UnicodeDecodeError:
            return self.raw, self.flag_bits & ~_UTF8
        return self.raw, self.flag_bits | _UTF8


def _info(member: Member) -> zipfile.ZipInfo:
    seconds = member.modified_ns // 10**9
    try:
        moment = time.gmtime(seconds)[:6]
    except (ValueError, OverflowError, OSError):
        moment = _FIRST
    name = member.name + (b"/" if member.kind == "directory" else b"")
    info = _Info(name.decode("latin-1"), min(max(moment, _FIRST), _LAST))
    # zipfile ends a name at a NUL and turns backslashes elsewhere; none of that is wanted of bytes.
    info.raw = name
    info.create_system = _UNIX
    info.compress_type = zipfile.ZIP_DEFLATED if member.kind == "file" else zipfile.ZIP_STORED
    kind = {"directory": stat.S_IFDIR, "symlink": stat.S_IFLNK}.get(member.kind, stat.S_IFREG)
    info.external_attr = (kind | member.mode & 0o7777) << 16 | (0x10 if member.kind == "directory" else 0)
    if -(2**31) <= seconds < 2**31:
        info.extra = struct.pack("<HHBi", _TIME_FIELD, 5, 1, seconds)
    return info


def _time(info: zipfile.ZipInfo) -> int:
    extra = info.extra
    while len(extra) >= 4:  # noqa: PLR2004 -- the head of a field
        kind, length = struct.unpack_from("<HH", extra)
        if kind == _TIME_FIELD and length >= 5 and len(extra) >= 9 and extra[4] & 1:  # noqa: PLR2004 -- flags and time
            return int(struct.unpack_from("<i", extra, 5)[0]) * 10**9
        extra = extra[4 + length :]
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0)) * 10**9
    except (ValueError, OverflowError):
        return 0


class _Sink:
    """Where zipfile writes; it has no places to go back to."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._pieces.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def taken(self) -> Iterator[bytes]:
        pieces, self._pieces = self._pieces, []
        if pieces:
            yield b"".join(pieces)


class _Bounded:
    """A file of which nobody reads very much at once, whatever an archive says of itself."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, lambda: True, lambda: None

    def read(self, size: int = -1) -> bytes:
        wanted = size if 0 <= size <= _DIRECTORY_MOST else _DIRECTORY_MOST + 1
        data = self._file.read(wanted)
        if len(data) > _DIRECTORY_MOST:
            raise ArchiveRefused("The archive has a directory that is too long; send a tar archive")
        return data
