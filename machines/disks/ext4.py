"""Reads an ext4 filesystem out of an image file by block and inode number, without mounting it and without any text.

Directories are read as the records they are on the disk, so no name can be taken for anything but a name. Whoever made
the image may have forged every byte of it: each number is checked against the filesystem's size before it is used.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from foundation.errors import MachineError

ROOT_INODE = 2

_SUPERBLOCK_AT, _SUPERBLOCK_BYTES = 1024, 1024
_BLOCK_EXPONENT_MOST = 6
_INODE_BYTES_LEAST, _GROUP_BYTES_LEAST, _GROUP_BYTES_WIDE, _RECORD_BYTES_LEAST = 128, 32, 64, 8
_MAGIC = 0xEF53
_INCOMPAT_RECOVER = 0x4
_INCOMPAT_64BIT = 0x80
# File types, extents, 64 bits, multi-mount protection, flexible groups, large attributes, checksum seed, large
# directories, inline data (refused inode by inode), case folding: none of them moves what is read here.
_INCOMPAT_READ = 0x2 | _INCOMPAT_RECOVER | 0x40 | _INCOMPAT_64BIT | 0x100 | 0x200 | 0x400 | 0x2000 | 0x4000 | 0x28000
_FIRST_FILE_INODE = 11
_INODE_BYTES = 160
_EXTENTS_FLAG, _INLINE_FLAG, _ENCRYPTED_FLAG = 0x80000, 0x10000000, 0x800
_EXTENT_MAGIC = 0xF30A
_EXTENT_DEPTH_MOST = 5
_UNWRITTEN = 32768
_FAST_LINK_BYTES = 60
_COPY_BYTES = 2**20


class Unreadable(Exception):
    """One file or directory cannot be read; the message says why in a few words."""


@dataclass(frozen=True)
class Inode:
    """One inode: ``mode`` as of stat(2), size in bytes, modification time in seconds. ``places`` locate its content."""

    number: int
    mode: int
    size: int
    mtime: int
    flags: int
    places: bytes


class Ext4:
    """An open image; a context manager. No read begins after ``deadline`` (of time.monotonic).

    Raises MachineError when the image holds no ext4 filesystem that can be read.
    """

    def __init__(self, image: Path, deadline: float) -> None:
        self._deadline = deadline
        self._file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._read_superblock()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def inode(self, number: int) -> Inode:
        """The inode of a number. Raises Unreadable."""
        if not (number == ROOT_INODE or _FIRST_FILE_INODE <= number <= self._inodes):
            raise Unreadable("an impossible inode number")
        group, place = divmod(number - 1, self._inodes_per_group)
        table = self._inode_tables.get(group)
        if table is None:
            table = self._inode_tables[group] = self._inode_table(group)
        raw = self._pread(min(self._inode_bytes, _INODE_BYTES), table + place * self._inode_bytes)
        mode, _, low, _, _, mtime = struct.unpack_from("<HHIIII", raw)
        flags = struct.unpack_from("<I", raw, 32)[0]
        high = struct.unpack_from("<I", raw, 108)[0]
        return Inode(number, mode, low | high << 32, mtime, flags, raw[40:100])

    def names(self, directory: Inode) -> Iterator[tuple[bytes, int]]:
        """Name and inode number of each entry, without ``.`` and ``..``. Raises Unreadable, also half way through."""
        if not stat.S_ISDIR(directory.mode):
            raise Unreadable("no directory")
        blocks = -(-directory.size // self._block)
        for logical, physical, count in self._extents(directory):
            for number in range(min(count, blocks - logical)):
                yield from _records(self._pread(self._block, (physical + number) * self._block))

    def copy(self, inode: Inode, target: int) -> None:
        """Write the content of a regular file into the empty file of the descriptor ``target``; holes stay holes.

        Raises Unreadable; OSError of the target.
        """
        os.ftruncate(target, inode.size)
        for at, data in self._content(inode):
            if data.count(0) != len(data):
                os.pwrite(target, data, at)

    def link_target(self, inode: Inode) -> bytes:
        """Where a symbolic link points. Raises Unreadable."""
        if inode.size < _FAST_LINK_BYTES and not inode.flags & _EXTENTS_FLAG:
            return inode.places[: inode.size]
        target = bytearray(inode.size)
        for at, data in self._content(inode):
            target[at : at + len(data)] = data
        return bytes(target)

    @property
    def needs_recovery(self) -> bool:
        """Whether the journal holds what the filesystem itself does not hold yet."""
        return self._recover

    def _read_superblock(self) -> None:
        raw = os.pread(self._file, _SUPERBLOCK_BYTES, _SUPERBLOCK_AT)
        if len(raw) < _SUPERBLOCK_BYTES or struct.unpack_from("<H", raw, 56)[0] != _MAGIC:
            raise MachineError("The workspace disk holds no ext4 filesystem.")
        blocks_low, block_exponent = struct.unpack_from("<I", raw, 4)[0], struct.unpack_from("<I", raw, 24)[0]
        incompatible = struct.unpack_from("<I", raw, 96)[0]
        if incompatible & ~_INCOMPAT_READ or block_exponent > _BLOCK_EXPONENT_MOST:
            raise MachineError("The workspace disk holds an ext4 filesystem with features that are not read here.")
        wide = bool(incompatible & _INCOMPAT_64BIT)
        self._inodes = struct.unpack_from("<I", raw, 0)[0]
        self._inodes_per_group = struct.unpack_from("<I", raw, 40)[0]
        self._block: int = 1024 << block_exponent
        self._blocks = blocks_low | (struct.unpack_from("<I", raw, 336)[0] << 32 if wide else 0)
        self._first_block = struct.unpack_from("<I", raw, 20)[0]
        self._inode_bytes = struct.unpack_from("<H", raw, 88)[0]
        self._group_bytes = struct.unpack_from("<H", raw, 254)[0] if wide else _GROUP_BYTES_LEAST
        self._recover = bool(incompatible & _INCOMPAT_RECOVER)
        self._inode_tables: dict[int, int] = {}
        if (
            not self._inodes_per_group
            or not _INODE_BYTES_LEAST <= self._inode_bytes <= self._block
            or not _GROUP_BYTES_LEAST <= self._group_bytes <= self._block
            or self._first_block > 1
        ):
            raise MachineError("The superblock of the workspace disk makes no sense.")

    def _inode_table(self, group: int) -> int:
        """Where the inodes of a group begin in the image."""
        raw = self._pread(self._group_bytes, (self._first_block + 1) * self._block + group * self._group_bytes)
        block: int = struct.unpack_from("<I", raw, 8)[0]
        if self._group_bytes >= _GROUP_BYTES_WIDE:
            block |= int(struct.unpack_from("<I", raw, 40)[0]) << 32
        self._check(block, 1)
        return block * self._block

    def _content(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """Pieces of the content that are not holes, each with its offset."""
        blocks = -(-inode.size // self._block)
        for logical, physical, count in self._extents(inode):
            begin, end = logical * self._block, min((logical + min(count, blocks - logical)) * self._block, inode.size)
            source = physical * self._block - begin
            for at in range(begin, end, _COPY_BYTES):
                yield at, self._pread(min(_COPY_BYTES, end - at), source + at)

    def _extents(self, inode: Inode) -> Iterator[tuple[int, int, int]]:
        """First logical block, first physical block and count of each written extent below the inode's size."""
        if inode.flags & (_INLINE_FLAG | _ENCRYPTED_FLAG):
            raise Unreadable("its content lies in the inode or is encrypted")
        if not inode.size:
            return
        if not inode.flags & _EXTENTS_FLAG:
            raise Unreadable("its blocks are not mapped by extents")
        end = -(-inode.size // self._block)
        reached = 0
        for logical, physical, count in self._leaves(inode.places, None, 0, 2**32):
            if logical < reached:
                raise Unreadable("its map of blocks makes no sense")
            reached = logical + max(1, count % _UNWRITTEN if count > _UNWRITTEN else count)
            if logical >= end:
                return
            if count <= _UNWRITTEN:
                self._check(physical, count)
                yield logical, physical, count

    def _leaves(self, node: bytes, depth: int | None, low: int, high: int) -> Iterator[tuple[int, int, int]]:
        """Leaves below a node of the extent tree whose logical blocks are those from ``low`` to before ``high``.

        No two nodes may cover the same blocks and none but the root may be empty: a forged tree costs no more than its
        own size to read.
        """
        magic, entries, _, found = struct.unpack_from("<HHHH", node)
        if (
            magic != _EXTENT_MAGIC
            or 12 * (entries + 1) > len(node)
            or found != (min(found, _EXTENT_DEPTH_MOST) if depth is None else depth)
            or not (entries or depth is None)
        ):
            raise Unreadable("its map of blocks makes no sense")
        starts = [struct.unpack_from("<I", node, 12 * number)[0] for number in range(1, entries + 1)]
        ends = [*starts[1:], high] if starts else []
        if any(not low <= start < end <= high for start, end in zip(starts, ends, strict=True)):
            raise Unreadable("its map of blocks makes no sense")
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), 1):
            if found:
                below, below_high = struct.unpack_from("<IH", node, 12 * number + 4)
                block = below | below_high << 32
                self._check(block, 1)
                yield from self._leaves(self._pread(self._block, block * self._block), found - 1, start, end)
            else:
                count, upper, lower = struct.unpack_from("<HHI", node, 12 * number + 4)
                yield start, lower | upper << 32, count

    def _check(self, block: int, count: int) -> None:
        if not 0 < block <= block + count <= self._blocks:
            raise Unreadable("its blocks lie outside of the disk")

    def _pread(self, count: int, at: int) -> bytes:
        if time.monotonic() > self._deadline:
            raise Unreadable("the time for reading the disk was over")
        try:
            data = os.pread(self._file, count, at)
        except OSError as error:
            raise Unreadable(f"the disk cannot be read: {error.strerror}") from None
        if len(data) != count:
            raise Unreadable("its blocks lie outside of the disk")
        return data


def _records(block: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at < len(block):
        if at + _RECORD_BYTES_LEAST > len(block):
            raise Unreadable("its entries make no sense")
        number, length, name_bytes, _ = struct.unpack_from("<IHBB", block, at)
        length = length if length not in {0, 65535} else len(block)
        if (
            length < _RECORD_BYTES_LEAST
            or length % 4
            or at + length > len(block)
            or name_bytes > length - _RECORD_BYTES_LEAST
        ):
            raise Unreadable("its entries make no sense")
        name = block[at + 8 : at + 8 + name_bytes]
        if number and name not in {b".", b".."}:
            yield name, number
        at += length
