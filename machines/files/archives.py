"""Archives of a guest's files: made of what the guest tells, laid out in it member by member.

The guest makes and reads none itself: what compresses and what checks is the host's, which is quicker at it, and
believes neither side.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Literal

from foundation import archives
from foundation.archives import Member, Members, Piece, Source
from foundation.errors import GuestUnreachable, TaskyardError
from foundation.service.files import ArchiveFormat, Extracted
from machines.files import zip as zip_archives
from machines.files.entry import Entry
from machines.files.exchange import LONG_SECONDS, Exchange, fields
from machines.files.guest_files import GuestFiles

_GATHERED = 128 * 1024
_GZIP, _ZIP = b"\x1f\x8b", b"PK"
_KINDS: dict[str, Literal["file", "directory", "symlink"]] = {
    "file": "file", "directory": "directory", "symlink": "symlink",
}  # fmt: skip


def packed(files: GuestFiles, path: bytes, form: ArchiveFormat) -> Iterator[bytes]:
    """What is at a path as an archive, its names relative to it: of a directory all that is in it, of a file itself.

    What is neither a file, a directory nor a link is left out. The first piece comes when the guest has found the path.
    An error later on is raised; a tar archive has it in its end before, for whom the raising does not reach.
    """
    entries = files.walk(path, hard_links=form != "zip")
    first = next(entries, None)
    if form == "zip":
        return _gathered(zip_archives.written(_members(first, entries)))
    pieces = _tar(_members(first, entries))
    return _gathered(pieces if form == "tar" else archives.gzipped(pieces))


def unpack(
    files: GuestFiles, path: bytes, source: Source, form: ArchiveFormat | None, *, spool: Path, keep_owners: bool
) -> Extracted:
    """Lay out an archive below a directory, which is made. Without ``form`` it is the one that it begins like.

    Each file is whole or not there; into a directory that was not there, everything goes or nothing. ``spool`` is where
    a zip lies meanwhile. Raises ArchiveRefused, and whatever reading the source raises.
    """
    begun = _Begun(source)
    form = form or _form_of(begun.beginning)
    if form == "zip":
        with zip_archives.spooled(begun, spool) as file:
            return _laid_out(files, path, zip_archives.ZipMembers(file), keep_owners=keep_owners)
    opened: Source = archives.Gunzipped(begun) if form == "tar.gz" else begun
    return _laid_out(files, path, Members(opened), keep_owners=keep_owners)


def _laid_out(
    files: GuestFiles, path: bytes, members: Members | zip_archives.ZipMembers, *, keep_owners: bool
) -> Extracted:
    with files.extract(path, keep_owners=keep_owners) as exchange:
        for member in members:
            exchange.put("M", _words(member))
            if member.kind == "file":
                exchange.put_pieces(members.content())
                exchange.put("Z")
        exchange.put("Z")
        exchange.flush()
        return _result(exchange, members.skipped)


def _result(exchange: Exchange, skipped: list[str]) -> Extracted:
    kind, content = exchange.frame(LONG_SECONDS)
    words = content.split(b"\0") if isinstance(content, bytes) else []
    if kind != "Z" or len(words) != 2 or not all(word.isdigit() and len(word) < 20 for word in words):  # noqa: PLR2004 -- two counts
        raise GuestUnreachable("The guest does not say what it has laid out; look at it")
    return Extracted(files=int(words[0]), size_bytes=int(words[1]), skipped=skipped)


def _words(member: Member) -> bytes:
    letter = {"file": "f", "directory": "d", "symlink": "l", "hardlink": "h"}[member.kind]
    time = f"{member.modified_ns // 10**9}.{member.modified_ns % 10**9:09d}"
    return fields([letter, member.name, member.mode, member.uid, member.gid, time, member.target])


def _members(
    first: tuple[str, Entry, Iterator[Piece]] | None, others: Iterator[tuple[str, Entry, Iterator[Piece]]]
) -> Iterator[tuple[Member, Iterator[Piece]]]:
    following = first
    while following is not None:
        kind, entry, content = following
        if entry.type != "other":
            # The guest names what it sends, and a name goes where somebody unpacks it.
            name = archives.inside(entry.path)
            hard = kind == "L"
            yield (
                Member(
                    kind="hardlink" if hard else _KINDS[entry.type],
                    name=name,
                    mode=entry.mode & 0o7777,
                    modified_ns=entry.modified_ns,
                    size=entry.size if entry.type == "file" and not hard else 0,
                    target=archives.inside(entry.target) if hard else entry.target,
                    uid=entry.uid,
                    gid=entry.gid,
                    owner=entry.owner,
                    group=entry.group,
                ),
                content,
            )
        following = next(others, None)


def _tar(members: Iterable[tuple[Member, Iterator[Piece]]]) -> Iterator[bytes]:
    try:
        for member, content in members:
            yield archives.head(member)
            for piece in content:
                yield from archives.zeros(piece) if isinstance(piece, int) else (piece,)
            yield archives.padding(member.size)
    except TaskyardError as error:
        yield archives.failure(error)
        raise
    yield archives.END


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """The same in pieces that are worth a hand-over each; what waits when something is raised is given before."""
    gathered = bytearray()
    with closing(pieces):  # type: ignore[type-var]
        try:
            for piece in pieces:
                gathered += piece
                if len(gathered) >= _GATHERED:
                    yield bytes(gathered)
                    gathered.clear()
        except TaskyardError:
            if gathered:
                yield bytes(gathered)
            raise
    if gathered:
        yield bytes(gathered)


def _form_of(beginning: bytes) -> ArchiveFormat:
    if beginning.startswith(_GZIP):
        return "tar.gz"
    return "zip" if beginning.startswith(_ZIP) else "tar"


class _Begun:
    """A source whose first bytes have been looked at."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.beginning = b""
        while len(self.beginning) < len(_GZIP) and (piece := source.read(len(_GZIP) - len(self.beginning))):
            self.beginning += piece
        self._left = self.beginning

    def read(self, size: int, /) -> bytes:
        if not self._left:
            return self._source.read(size)
        given, self._left = self._left[:size], self._left[size:]
        return given
