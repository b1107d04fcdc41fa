"""What a guest tells of one of its files."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime

from foundation.errors import GuestUnreachable
from foundation.service.files import FileInfo, FileType, exact, printable

_FIELDS = 13
_NAME_CHARS = 64
_TYPES: dict[int, FileType] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_SECTOR = 512


@dataclass(frozen=True)
class Entry:
    """A file as its guest tells of it. Times are in nanoseconds since the epoch; ``born_ns`` is None when unknown."""

    path: bytes
    mode: int
    uid: int
    gid: int
    owner: str
    group: str
    size: int
    blocks: int
    modified_ns: int
    born_ns: int | None
    links: int
    identity: str
    target: bytes

    @property
    def type(self) -> FileType:
        return _TYPES.get(stat.S_IFMT(self.mode), "other")

    def info(self) -> FileInfo:
        """The same as a message."""
        is_link = self.type == "symlink"
        return FileInfo(
            path=printable(self.path),
            path_base64=exact(self.path),
            type=self.type,
            size=self.size,
            mode=f"{stat.S_IMODE(self.mode):04o}",
            owner=self.owner or str(self.uid),
            group=self.group or str(self.gid),
            uid=self.uid,
            gid=self.gid,
            modified_at=_moment(self.modified_ns),
            created_at=None if self.born_ns is None else _moment(self.born_ns),
            allocated_bytes=self.blocks * _SECTOR,
            links=self.links,
            target=printable(self.target) if is_link else None,
            target_base64=exact(self.target) if is_link else None,
        )


def entry_from(content: bytes | int) -> Entry:
    """The entry of a frame. Raises GuestUnreachable for what is none."""
    try:
        path, mode, uid, gid, owner, group, size, blocks, modified, born, links, identity, target = (
            content.split(b"\0") if isinstance(content, bytes) else [b""] * _FIELDS
        )
        return Entry(
            path=path,
            mode=_number(mode, 2**16),
            uid=_number(uid),
            gid=_number(gid),
            owner=owner.decode(errors="replace")[:_NAME_CHARS],
            group=group.decode(errors="replace")[:_NAME_CHARS],
            size=_number(size, 2**63),
            blocks=_number(blocks, 2**54),
            modified_ns=_time(modified),
            born_ns=_time(born) if born else None,
            links=_number(links),
            identity=identity.decode("ascii")[:_NAME_CHARS],
            target=target,
        )
    except ValueError:
        raise GuestUnreachable("The guest tells of a file what cannot be; try again") from None


def _number(text: bytes, most: int = 2**32) -> int:
    if not text.isdigit() or len(text) > len(str(most)) or int(text) >= most:
        raise ValueError(text)
    return int(text)


def _time(text: bytes) -> int:
    seconds, _, part = text.partition(b".")
    number = _number(seconds.removeprefix(b"-"), 2**63)
    return (-number if seconds.startswith(b"-") else number) * 10**9 + _number(part, 10**9)


def _moment(nanoseconds: int) -> datetime:
    """The time, as near as a calendar has it: a guest sets what it likes."""
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC).replace(microsecond=nanoseconds % 10**9 // 1000)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC) if nanoseconds > 0 else datetime.min.replace(tzinfo=UTC)
