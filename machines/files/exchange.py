"""A program for files at work in a guest: the frames that it is sent and sends, and what it complains of.

The guest is believed nothing: neither that it goes on, nor sizes, nor that frames are such.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterable, Iterator
from typing import NoReturn, Protocol, Self

import paramiko

from foundation.archives import Piece
from foundation.errors import (
    ArchiveRefused,
    DirectoryNotEmpty,
    FileDenied,
    FileError,
    FileExists,
    FileNotFound,
    GuestDiskFull,
    GuestUnreachable,
    InvalidParameter,
    RangeNotSatisfiable,
    TaskyardError,
    WrongFileType,
)
from foundation.service.files import printable

_HEAD = struct.Struct(">cI")
# The largest that a program sends is a piece of a file; the rest are names and numbers.
_FRAME_MOST = 256 * 1024
_READ_BYTES = 256 * 1024
_SEND_BYTES = 32 * 1024
_HOLE_MOST = 2**30
SILENT_SECONDS = 60.0
#: For what says nothing while it works: a large tree that is removed or copied.
LONG_SECONDS = 600.0
_WORDS_SHOWN = 200

_DENIED = "The guest's user may not do this with {path}; root may"
_FULL = "The machine's disk has no room for {path}"
_BY_WORD: dict[str, tuple[type[FileError], str]] = {
    "type": (WrongFileType, "{path} is neither a file nor a directory"),
    "endless": (WrongFileType, "{path} tells no size, and does not end soon"),
    "link": (ArchiveRefused, "{path} of the archive would go through a link that is there"),
}
_BY_NUMBER: dict[int, tuple[type[FileError], str]] = {
    errno.ENOENT: (FileNotFound, "There is no {path} in the machine"),
    errno.ENOTDIR: (WrongFileType, "{path} is no directory, or leads through something that is none"),
    errno.EISDIR: (WrongFileType, "{path} is a directory"),
    errno.EEXIST: (FileExists, "{path} is there already"),
    errno.ENOTEMPTY: (DirectoryNotEmpty, "{path} is not empty"),
    errno.EACCES: (FileDenied, _DENIED),
    errno.EPERM: (FileDenied, _DENIED),
    errno.EROFS: (FileDenied, "{path} is on a file system that takes no writes"),
    errno.ENOSPC: (GuestDiskFull, _FULL),
    errno.EDQUOT: (GuestDiskFull, _FULL),
}


#: The fields of a frame: names, words and numbers.
Request = list[bytes | str | int]


class Running(Protocol):
    """A program that runs, and the channel that has its streams."""

    @property
    def channel(self) -> paramiko.Channel: ...

    def close(self) -> None: ...


class Programs(Protocol):
    """What starts programs of ``guest/commands`` in the guest, by their parts."""

    def begin(self, *parts: str) -> Running: ...


class Exchange:
    """A program of ``guest/commands``, made of these parts, that runs as root and acts as the user of its request.

    To be used as a context, whose end ends the program.
    """

    def __init__(self, programs: Programs, *parts: str, request: Request) -> None:
        self._came = bytearray()
        self._leaving = bytearray()
        self._running = programs.begin("files-base", *parts)
        self._channel = self._running.channel
        self._channel.settimeout(SILENT_SECONDS)
        try:
            self.put("R", fields(request))
            self.flush()
        except BaseException:
            self.close()
            raise

    def put(self, kind: str, data: bytes = b"") -> None:
        """Send a frame; it leaves with others, at the latest at ``flush``. Raises what the program complains of."""
        self._leaving += _HEAD.pack(kind.encode(), len(data))
        self._leaving += data
        if len(self._leaving) >= _SEND_BYTES:
            self.flush()

    def put_pieces(self, pieces: Iterable[Piece]) -> int:
        """Send content; how long it is."""
        size = 0
        for piece in pieces:
            if isinstance(piece, int):
                size += piece
                self._put_hole(piece)
                continue
            size += len(piece)
            for at in range(0, len(piece), _FRAME_MOST):
                self.put("D", piece[at : at + _FRAME_MOST])
        return size

    def flush(self) -> None:
        """Send what waits."""
        try:
            while self._leaving:
                # What complains takes no more, and would leave the sender waiting.
                if self._channel.recv_ready() or self._channel.eof_received or self._channel.closed:
                    self._complaint()
                self._channel.settimeout(SILENT_SECONDS)
                sent = self._channel.send(bytes(self._leaving[:_SEND_BYTES]))
                if not sent:
                    self._complaint()
                del self._leaving[:sent]
        except TimeoutError:
            raise GuestUnreachable(f"The guest has taken nothing for {SILENT_SECONDS:g} s; try again") from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            # It may have said why before its end.
            self._complaint()
            raise GuestUnreachable(f"The connection to the guest broke ({error})") from error

    def frames(self, patience: float = SILENT_SECONDS) -> Iterator[tuple[str, bytes | int]]:
        """Frames until the last one, Z, which is given too; a hole is its length. Raises what the program says."""
        kind = ""
        while kind != "Z":
            kind, content = self.frame(patience)
            yield kind, content

    def frame(self, patience: float = SILENT_SECONDS) -> tuple[str, bytes | int]:
        """The next frame; those that only say that the program goes on are left out."""
        while True:
            end = time.monotonic() + patience
            mark, length = _HEAD.unpack(self._take(_HEAD.size, end))
            kind = mark.decode("latin-1")
            if kind == "H":
                return kind, int(length)
            if kind not in "ADEIKLRWZ" or length > _FRAME_MOST:
                raise GuestUnreachable("The guest answers with what is no answer; try again")
            content = self._take(length, end)
            if kind == "E":
                _raise(content)
            if kind != "K":
                return kind, content

    def close(self) -> None:
        """End the program, whatever it does."""
        self._running.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _put_hole(self, length: int) -> None:
        while length > 0:
            part = min(length, _HOLE_MOST)
            self._leaving += _HEAD.pack(b"H", part)
            length -= part
        if len(self._leaving) >= _SEND_BYTES:
            self.flush()

    def _take(self, count: int, end: float) -> bytes:
        while len(self._came) < count:
            left = end - time.monotonic()
            if left <= 0:
                raise GuestUnreachable("The guest does not go on with this; try again")
            self._channel.settimeout(left)
            try:
                data = self._channel.recv(_READ_BYTES)
            except TimeoutError:
                continue
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise GuestUnreachable(f"The connection to the guest broke ({error})") from error
            if not data:
                raise GuestUnreachable("The guest ended in the middle of its answer; try again")
            self._came += data
        taken = bytes(self._came[:count])
        del self._came[:count]
        return taken

    def _complaint(self) -> NoReturn:
        """Raise what the program says before it has everything."""
        self.frame()
        raise GuestUnreachable("The guest answers before it has everything; try again")


def fields(values: Request) -> bytes:
    """The fields of a frame."""
    return b"\0".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


def _raise(content: bytes) -> NoReturn:
    reason, path, words = [*content.split(b"\0"), b"", b""][:3]
    raise _error(reason.decode(errors="replace"), printable(path), words.decode(errors="replace").strip())


def _error(reason: str, path: str, words: str) -> TaskyardError:
    name = f"'{path}'"
    if reason == "user":
        return InvalidParameter(f"The machine has no user or group {name}", field="user")
    if reason == "range":
        size = int(words) if words.isdecimal() and len(words) < 20 else 0  # noqa: PLR2004 -- no size has more
        return RangeNotSatisfiable(f"The range begins beyond the end; there are {size} bytes.", size_bytes=size)
    number = int(reason) if reason.isdecimal() and len(reason) < 6 else errno.EIO  # noqa: PLR2004 -- no error has more
    if found := _BY_WORD.get(reason) or _BY_NUMBER.get(number):
        error, sentence = found
        return error(sentence.replace("{path}", name), path=path)
    said = ": ".join(part for part in (os.strerror(number), words[:_WORDS_SHOWN]) if part)
    return FileError(f"The machine cannot do this with {name} ({said})", path=path)
