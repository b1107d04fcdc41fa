"""The files of one guest, as one of its users: what can be done with them, each through one program in the guest.

Everything here blocks, and is safe in any number of threads. What it raises is in ``foundation.errors``: FileError and
its kinds, GuestUnreachable, MachineLost, InvalidParameter for a user or a pattern that is none.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass

from foundation.archives import Piece, zeros
from foundation.errors import GuestUnreachable
from foundation.service.files import (
    LISTED_MOST,
    Change,
    Changed,
    FileInfo,
    MakeDirectory,
    Move,
    Remove,
    Replace,
    SetAccess,
)
from guest.contract import AGENT_USER
from machines.files import glob
from machines.files.entry import Entry, entry_from
from machines.files.exchange import LONG_SECONDS, Exchange, Programs, Request, fields

# What an archive has at most.
_WALKED_MOST = 2**31
_GATHERED_BYTES = 192 * 1024


@dataclass(frozen=True)
class Written:
    """How a file is to be written. What is not given stays as it is with a file that is there already.

    ``mode`` is octal; ``modified_ns`` in nanoseconds since the epoch. ``new``: nothing may be there yet.
    """

    mode: str | None = None
    owner: str | None = None
    group: str | None = None
    modified_ns: int | None = None
    parents: bool = True
    new: bool = False


@dataclass(frozen=True)
class Unreadable:
    """A directory that a list or a search could not look into."""

    path: bytes


class OpenFile:
    """A file that is being read: ``length`` bytes from ``offset``, of ``info.size``; None when that is not known.

    ``pieces`` gives them once. To be closed.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        try:
            self.info = entry_from(_expected(exchange, "I")).info()
            offset, length = _numbers(_expected(exchange, "R"))
        except BaseException:
            exchange.close()
            raise
        self.offset = offset or 0
        self.length = length

    def pieces(self) -> Iterator[bytes]:
        """The bytes, in pieces: each costs those who pass it on as much, whether it is small or large."""
        gathered = bytearray()
        for piece in self._pieces():
            gathered += piece
            if len(gathered) >= _GATHERED_BYTES:
                yield bytes(gathered)
                gathered.clear()
        if gathered:
            yield bytes(gathered)

    def _pieces(self) -> Iterator[bytes]:
        most = self.info.size if self.length is None else self.length
        for kind, content in self._exchange.frames():
            if kind not in "DH":
                break
            size = content if isinstance(content, int) else len(content)
            most -= size
            if most < 0:
                raise GuestUnreachable("The guest sends more than the file has")
            yield from zeros(content) if isinstance(content, int) else (content,)
        if self.length is not None and most:
            raise GuestUnreachable("The guest sends less than the file has")

    def close(self) -> None:
        """End the reading."""
        self._exchange.close()


class GuestFiles:
    """What can be done with the files of a guest. ``user`` is a name or a number, or either with ``:group``."""

    def __init__(self, programs: Programs, user: str = AGENT_USER) -> None:
        self._programs = programs
        self._user = user

    def stat(self, paths: Sequence[bytes], *, follow: bool = False) -> list[FileInfo]:
        """What is known of these; with ``follow``, of what links lead to. Raises FileNotFound for the first missing."""
        request: Request = [self._user, "stat", _flag(follow), *paths]
        with Exchange(self._programs, "files-walk", request=request) as exchange:
            return [entry_from(content).info() for kind, content in exchange.frames() if kind == "I"]

    def listed(
        self, path: bytes, *, depth: int = 1, most: int = LISTED_MOST
    ) -> Generator[FileInfo | Unreadable, None, bool]:
        """What is in a directory, by name, each directory before what is in it; ``depth`` 0 is without an end.

        Paths are relative to it. Gives back whether there was more than ``most``.
        """
        return self._found(path, depth, "", most)

    def search(
        self, path: bytes, pattern: str, *, depth: int = 0, files_only: bool = False, most: int = LISTED_MOST
    ) -> Generator[FileInfo | Unreadable, None, bool]:
        """What is below a directory and matches the pattern, which is for names, or, with a slash in it, for paths."""
        return self._found(path, depth, pattern, most, "f" if files_only else "")

    def read(self, path: bytes, first: int | None = None, last: int | None = None) -> OpenFile:
        """A file, from one byte to another, both included; without ``first``, the last ``last`` bytes.

        Raises RangeNotSatisfiable, WrongFileType for what is no regular file.
        """
        return self._opened(path, first, last, None, None)

    def read_lines(self, path: bytes, first: int = 1, count: int | None = None) -> OpenFile:
        """Lines of a file with their ends, the first of which is 1."""
        return self._opened(path, None, None, first, count)

    def write(self, path: bytes, pieces: Iterable[Piece], how: Written = Written()) -> FileInfo:
        """Write a file whole: until it is, what was there before is. A link is followed. Holes stay holes.

        When the pieces raise, nothing has changed.
        """
        time = "" if how.modified_ns is None else f"{how.modified_ns // 10**9}.{how.modified_ns % 10**9:09d}"
        access = _access(how.mode, how.owner, how.group)
        request: Request = [self._user, path, *access, time, _flag(how.parents), _flag(how.new)]
        with Exchange(self._programs, "files-draft", "files-write", request=request) as exchange:
            exchange.put_pieces(pieces)
            exchange.put("Z")
            exchange.flush()
            return entry_from(_expected(exchange, "I", LONG_SECONDS)).info()

    def change(self, changes: Sequence[Change]) -> list[Changed]:
        """Make these changes in their order. The first that fails raises, and undoes none of those before."""
        done: list[Changed] = []
        with Exchange(self._programs, "files-draft", "files-change", request=[self._user]) as exchange:
            for change in changes:
                exchange.put("O", fields(_words(change)))
                exchange.flush()
                answer = _expected(exchange, "A", LONG_SECONDS)
                done.append(_changed(change, answer))
        return done

    def walk(self, path: bytes, *, hard_links: bool) -> Iterator[tuple[str, Entry, Iterator[Piece]]]:
        """All that is at or below a path with its content, which must be read before the next one.

        A directory is ``.`` and first. With ``hard_links``, a further name of a file is of kind L and has the first
        one as its target.
        """
        request: Request = [self._user, "walk", path, 0, "", 0, "", _WALKED_MOST, 1, _flag(hard_links)]
        with Exchange(self._programs, "files-walk", request=request) as exchange:
            kind, content = exchange.frame()
            while kind in "IL":
                entry = entry_from(content)
                has_content = kind == "I" and entry.type == "file"
                reading = _content(exchange, entry.size if has_content else 0)
                yield kind, entry, reading
                for _ in reading:
                    pass
                kind, content = exchange.frame()

    def extract(self, path: bytes, *, keep_owners: bool) -> Exchange:
        """The program that lays out members below a path; ``machines.files.archives`` feeds it."""
        return Exchange(self._programs, "files-draft", "files-extract", request=[self._user, path, _flag(keep_owners)])

    def _opened(
        self, path: bytes, first: int | None, last: int | None, line: int | None, lines: int | None
    ) -> OpenFile:
        numbers = ("" if number is None else number for number in (first, last, line, lines))
        request: Request = [self._user, path, *numbers]
        return OpenFile(Exchange(self._programs, "files-read", request=request))

    def _found(
        self, path: bytes, depth: int, pattern: str, most: int, kinds: str = ""
    ) -> Generator[FileInfo | Unreadable, None, bool]:
        wanted = glob.expression(pattern) if pattern else ""
        request: Request = [self._user, "walk", path, depth, wanted, _flag(glob.is_path(pattern)), kinds, most, "", ""]
        with Exchange(self._programs, "files-walk", request=request) as exchange:
            for kind, content in exchange.frames():
                if kind == "I":
                    yield entry_from(content).info()
                elif kind == "W" and isinstance(content, bytes):
                    yield Unreadable(content.partition(b"\0")[2])
                elif kind == "Z":
                    return content == b"more"
        return False


def _content(exchange: Exchange, size: int) -> Iterator[Piece]:
    while size > 0:
        kind, content = exchange.frame()
        size -= content if isinstance(content, int) else len(content)
        if kind not in "DH" or size < 0:
            raise GuestUnreachable("The guest sends another content than it said")
        yield content


def _expected(exchange: Exchange, kind: str, patience: float | None = None) -> bytes:
    came, content = exchange.frame() if patience is None else exchange.frame(patience)
    if came != kind or isinstance(content, int):
        raise GuestUnreachable("The guest answers with what is no answer; try again")
    return content


def _numbers(content: bytes) -> list[int | None]:
    words = content.split(b"\0")
    if len(words) != 2 or not all(word.isdigit() or not word for word in words) or len(content) > 64:  # noqa: PLR2004 -- offset and length
        raise GuestUnreachable("The guest answers with what is no answer; try again")
    return [int(word) if word else None for word in words]


def _words(change: Change) -> Request:
    match change:
        case MakeDirectory():
            access = _access(change.mode, change.owner, change.group)
            return ["directory", change.path, *access, _flag(change.parents)]
        case Move():
            return ["move", change.source, change.destination, _flag(change.overwrite)]
        case Remove():
            return ["remove", change.path, change.directories, _flag(change.missing_ok)]
        case SetAccess():
            return ["access", change.path, *_access(change.mode, change.owner, change.group)]
        case Replace():
            return ["replace", change.path, change.old, change.new, "" if change.most is None else change.most]


def _changed(change: Change, answer: bytes) -> Changed:
    match change:
        case Replace():
            count = int(answer) if answer.isdigit() and len(answer) < 20 else 0  # noqa: PLR2004 -- no count has more
            return Changed(operation=change.operation, replaced=count)
        case Remove():
            return Changed(operation=change.operation, removed=answer == b"1")
    return Changed(operation=change.operation)


def _access(mode: str | None, owner: str | None, group: str | None) -> list[str]:
    return ["" if mode is None else str(int(mode, 8)), owner or "", group or ""]


def _flag(value: bool) -> str:
    return "1" if value else ""
