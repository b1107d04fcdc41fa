"""Tar streams: what is written is read again, and nothing that is read leaves its directory, takes memory or hangs."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation import archives
from foundation.archives import Member, Members
from foundation.errors import ArchiveRefused, GuestDiskFull

PARTS = st.binary(min_size=1, max_size=120).map(lambda raw: raw.replace(b"/", b"-").replace(b"\0", b"-"))
NAMES = (
    st.lists(PARTS.filter(lambda part: part not in {b".", b".."}), min_size=1, max_size=6)
    .map(b"/".join)
    .filter(lambda name: name == archives.inside(name))
)
TIMES = st.integers(-(2**40) * 10**9, 2**40 * 10**9)
FILES = st.builds(
    lambda name, mode, when, data: (Member("file", name, mode, when, size=len(data), uid=7, gid=2**31), data),
    *(NAMES, st.integers(0, 0o7777), TIMES, st.binary(max_size=2000) | st.integers(0, 70_000).map(bytes)),
)
OTHERS = st.builds(
    lambda kind, name, mode, when, target: (
        Member(kind, name, mode, when, target=b"" if kind == "directory" else target),
        b"",
    ),
    *(st.sampled_from(["directory", "symlink", "hardlink"]), NAMES, st.integers(0, 0o7777), TIMES, NAMES),
)


def tar(members: list[tuple[Member, bytes]]) -> bytes:
    return b"".join(archives.head(m) + data + archives.padding(m.size) for m, data in members) + archives.END


def read(data: bytes) -> list[tuple[Member, bytes]]:
    members = Members(io.BytesIO(data))
    return [(member, contents(members)) for member in members]


def contents(members: Members) -> bytes:
    return b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in members.content())


@settings(deadline=None)
@given(st.lists(FILES | OTHERS, max_size=5))
def test_what_is_written_is_read_again_whatever_the_names_and_times(members: list[tuple[Member, bytes]]) -> None:
    assert read(tar(members)) == members


@given(st.lists(st.binary(max_size=100) | st.integers(0, 200_000).map(bytes), max_size=4).map(b"".join))
def test_zeros_become_holes_and_are_the_same_bytes(data: bytes) -> None:
    pieces = list(archives.with_holes(data))
    assert b"".join(piece if isinstance(piece, bytes) else bytes(piece) for piece in pieces) == data


@given(st.binary(max_size=3000), st.integers(0, 2**32))
@settings(deadline=None, max_examples=300)
def test_bytes_that_are_no_archive_are_refused_or_have_members_that_stay_inside(noise: bytes, seed: int) -> None:
    whole = bytearray(tar([(Member("file", b"a/b", 0o644, 5, size=3000), noise.ljust(3000)), *SOME]))
    chance = random.Random(seed)
    for _ in range(chance.randrange(1, 20)):
        whole[chance.randrange(len(whole))] = chance.randrange(256)
    for data in (bytes(whole), bytes(whole[: chance.randrange(len(whole))]), noise):
        try:
            for member, _ in read(data):
                assert b".." not in member.name.split(b"/")
                assert not member.name.startswith(b"/")
        except ArchiveRefused:
            pass


SOME = [(Member("symlink", b"l", 0o777, 0, target=b"a"), b""), (Member("directory", b"x" * 300, 0o755, 1), b"")]


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def pax(name: bytes, length: int) -> bytes:
    """A header that says that it is so long."""
    info = tarfile.TarInfo(name.decode())
    info.type, info.size = tarfile.XHDTYPE, length
    return info.tobuf(tarfile.USTAR_FORMAT)


def sized(size: bytes) -> bytes:
    head = bytearray(entry("a"))
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


SPARSE = {"GNU.sparse.size": "9"}
HOSTILE: dict[str, bytes] = {
    "up": entry("../a"),
    "up in the middle": entry("a/../../b"),
    "up and down": entry("a/.."),
    "absolute": entry("/etc/passwd"),
    "a NUL": entry("x", pax_headers={"path": "a\0b"}),
    "a hard link to outside": entry("a", tarfile.LNKTYPE, linkname="../b"),
    "a hard link to an absolute name": entry("a", tarfile.LNKTYPE, linkname="/etc/shadow"),
    "a link with a NUL": entry("a", tarfile.SYMTYPE, pax_headers={"linkpath": "a\0b"}),
    "a file that is the directory itself": entry("./"[:1]),
    "a link that is the directory itself": entry(".", tarfile.SYMTYPE, linkname="/"),
    "a negative size": sized(b"\xff" * 12),
    "a size beyond all": sized(b"\x80" + b"\x7f" * 11),
    "a header without an end": pax(b"a", 2**32) + bytes(4096),
    "a header that is too long": pax(b"a", 2**20) + bytes(2**20),
    "headers without an end": pax(b"a", 512) * 3 + b"10 path=a\n" * 100,
    "only half of a file": entry("a", size=5000) + b"x" * 2000,
    "no archive": b"hello" * 1000,
    "very many headers": (pax(b"a", 512) + b"11 path=aa\n".ljust(512, b"\0")) * 5000,
    "a map that leads back": entry(
        "a", size=512, pax_headers={"GNU.sparse.map": "512,100,0,100", "GNU.sparse.size": "9"}
    ),
    "a map that is none": entry("a", size=512, pax_headers={"GNU.sparse.map": "x", "GNU.sparse.size": "9"})
    + bytes(512),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_archive_is_refused(data: bytes) -> None:
    with pytest.raises(ArchiveRefused):
        read(data + archives.END)


def test_members_that_are_no_files_are_left_out_and_named() -> None:
    kinds = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
    members = Members(io.BytesIO(b"".join(entry(f"d{at}", kind) for at, kind in enumerate(kinds)) + archives.END))
    assert (list(members), members.skipped) == ([], ["d0", "d1", "d2"])


def test_a_sparse_member_as_gnu_tar_writes_it_has_its_holes() -> None:
    info = entry("s", size=1536, pax_headers={
        "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "1000000",
    })  # fmt: skip
    sparse = b"2\n500000\n3\n999990\n10\n".ljust(512, b"\0") + b"abc".ljust(3, b"\0") + b"0123456789"
    members = Members(io.BytesIO(info + sparse.ljust(1536, b"\0") + archives.END))
    assert next(iter(members)).size == 1_000_000
    assert contents(members) == bytes(500_000) + b"abc" + bytes(499_987) + b"0123456789"


@pytest.mark.parametrize("ending", [b"", archives.END])
def test_the_error_of_who_could_not_finish_is_raised(ending: bytes) -> None:
    data = tar([(Member("file", b"a", 0, 0), b"")])[:512] + archives.failure(GuestDiskFull("No room."))
    members = iter(Members(io.BytesIO(data + ending)))
    assert next(members).name == b"a"
    with pytest.raises(GuestDiskFull, match=r"No room\."):
        next(members)


def test_a_stream_that_never_ends_is_not_held_in_memory() -> None:
    class Endless:
        def __init__(self) -> None:
            self.left = [archives.head(Member("file", b"a", 0, 0, size=2**50))]
            self.given = 0

        def read(self, size: int, /) -> bytes:
            if self.left:
                data = self.left.pop()
                head, rest = data[:size], data[size:]
                if rest:
                    self.left.append(rest)
                return head
            self.given += size
            return b"x" * size

    source = Endless()
    members = Members(source)
    assert next(iter(members)).size == 2**50
    for _, piece in zip(range(1000), members.content(), strict=False):
        assert isinstance(piece, bytes)
    assert source.given < 1002 * archives.PIECE_BYTES
