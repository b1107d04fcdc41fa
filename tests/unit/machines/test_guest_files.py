"""Files of a guest that lies: what it answers is an answer or an error, in bounded time and memory; and patterns."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from contextlib import closing, suppress
from fnmatch import fnmatchcase
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import ArchiveRefused, GuestUnreachable, TaskyardError
from machines.files import glob
from machines.files.archives import packed
from machines.files.guest_files import GuestFiles


class Lying:
    """A guest that answers just this to whatever it is asked, and then ends."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.eof_received = self.closed = False
        self.taken = 0
        self.channel = self

    def begin(self, *_: str) -> Any:
        return self

    def settimeout(self, _: float) -> None:
        return

    def recv_ready(self) -> bool:
        return False

    def send(self, data: bytes) -> int:
        self.taken += len(data)
        return len(data)

    def recv(self, most: int) -> bytes:
        data, self.answer = self.answer[:most], self.answer[most:]
        return data

    def close(self) -> None:
        self.closed = True


def frame(kind: str, *fields: bytes, length: int | None = None) -> bytes:
    data = b"\0".join(fields)
    return struct.pack(">cI", kind.encode(), len(data) if length is None else length) + data


def entry(path: bytes = b"a", mode: int = 0o100644, size: int = 3, **other: bytes) -> tuple[bytes, ...]:
    named = {
        "path": path, "mode": b"%d" % mode, "uid": b"0", "gid": b"0", "owner": b"root", "group": b"root",
        "size": b"%d" % size, "blocks": b"8", "modified": b"1.000000005", "born": b"", "links": b"1",
        "identity": b"1:2:3", "target": b"",
    }  # fmt: skip
    return tuple((named | other).values())


def read(files: GuestFiles) -> Any:
    with closing(files.read(b"a")) as file:
        return b"".join(file.pieces())


ANSWERS: dict[str, tuple[Callable[[GuestFiles], Any], bytes]] = {
    "nothing": (read, b""),
    "half of a head": (read, b"I\0"),
    "a frame without an end": (read, frame("I", b"x", length=100)),
    "a frame beyond all": (read, frame("I", length=2**32 - 1)),
    "another kind of frame": (read, frame("!", b"x")),
    "no facts": (read, frame("I", b"x")),
    "a size that is none": (read, frame("I", *entry(size=-3))),
    "a size beyond all": (read, frame("I", *entry(size=2**70))),
    "a time that is none": (read, frame("I", *entry(modified=b"now"))),
    "no range": (read, frame("I", *entry()) + frame("R", b"x", b"3")),
    "more than the file has": (read, frame("I", *entry()) + frame("R", b"0", b"3") + frame("D", b"x" * 4)),
    "a hole beyond the file": (read, frame("I", *entry()) + frame("R", b"0", b"3") + frame("H", length=2**31)),
    "less than the file has": (read, frame("I", *entry()) + frame("R", b"0", b"3") + frame("D", b"x") + frame("Z")),
    "an end in the middle": (read, frame("I", *entry()) + frame("R", b"0", b"3") + frame("D", b"x")),
    "another answer to a write": (lambda files: files.write(b"a", [b"x"]), frame("Z")),
    "facts of another form": (lambda files: files.stat([b"a"]), frame("I", *entry(), b"more")),
    "an archive's file is longer": (
        lambda files: b"".join(packed(files, b".", "tar")), frame("I", *entry()) + frame("D", b"xxxx"),
    ),
    "an archive ends early": (
        lambda files: b"".join(packed(files, b".", "zip")), frame("I", *entry()) + frame("D", b"x"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("ask", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_is_none_is_an_error_that_says_so(ask: Callable[[GuestFiles], Any], answer: bytes) -> None:
    guest = Lying(answer)
    with pytest.raises(GuestUnreachable):
        ask(GuestFiles(cast("Any", guest)))
    assert guest.closed


@given(st.binary(max_size=300))
def test_noise_is_an_answer_or_an_error_of_ours(noise: bytes) -> None:
    for begun in (b"", frame("I", *entry()), frame("I", *entry()) + frame("R", b"0", b"3")):
        for ask in (read, lambda files: list(files.listed(b".")), lambda files: list(packed(files, b".", "tar"))):
            # Some of it is an answer; nothing of it is an error of another kind, or without an end.
            with suppress(TaskyardError):
                ask(GuestFiles(cast("Any", Lying(begun + noise))))


@pytest.mark.parametrize("name", [b"../a", b"/etc/passwd", b"a/../../b", b".."])
@pytest.mark.parametrize("kind", ["I", "L"])
def test_names_that_the_guest_tells_do_not_lead_out_of_an_archive(name: bytes, kind: str) -> None:
    told = entry(name, size=0) if kind == "I" else entry(size=0, target=name)
    with pytest.raises(ArchiveRefused):
        b"".join(packed(GuestFiles(cast("Any", Lying(frame(kind, *told) + frame("Z")))), b".", "tar"))


def test_a_guest_that_complains_in_the_middle_of_a_write_is_heard() -> None:
    guest = Lying(frame("E", b"28", b"a"))
    guest.recv_ready = lambda: guest.taken > 500_000  # type: ignore[method-assign]

    def endless() -> Any:
        while True:
            yield b"x" * 65536

    with pytest.raises(TaskyardError, match="no room"):
        GuestFiles(cast("Any", guest)).write(b"a", endless())
    assert guest.taken < 10**6


def test_times_beyond_the_calendar_are_its_ends() -> None:
    for told, year in ((b"9223372036854775807.0", 9999), (b"-9223372036854775807.0", 1)):
        guest = Lying(frame("I", *entry(modified=told)) + frame("Z"))
        assert GuestFiles(cast("Any", guest)).stat([b"a"])[0].modified_at.year == year


NAMES = st.text(st.sampled_from("ab.*?[]!-^\\/ü\n"), max_size=8)
SIMPLE = st.text(st.sampled_from("ab.*?ü"), min_size=1, max_size=8).filter(lambda text: "**" not in text)


@given(SIMPLE, NAMES.filter(lambda name: "/" not in name))
def test_a_simple_pattern_matches_what_it_matches_elsewhere(pattern: str, name: str) -> None:
    assert bool(_matches(pattern, name)) is fnmatchcase(name, pattern)


@given(st.text(max_size=20), NAMES)
def test_every_pattern_is_an_expression_or_refused(pattern: str, name: str) -> None:
    try:
        expression = glob.expression(pattern)
    except TaskyardError:
        return
    assert expression.isascii()
    assert "'" not in expression
    _matches(pattern, name)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("**/*.py", "a.py", True), ("**/*.py", "a/b/c.py", True), ("a/**", "a/b/c", True), ("a/**", "a", False),
        ("a/**/b", "a/b", True), ("a/**/b", "a/x/y/b", True), ("a/*/b", "a/x/y/b", False), ("[!a]x", "bx", True),
        ("[!a]x", "/x", False), ("[a-c]", "b", True), ("[]]", "]", True), ("[", "[", True), ("\\*", "*", True),
        ("\\*", "a", False), ("a**b", "a/x/b", True), ("ü?", "ü\U0001f680", True),
    ],
)  # fmt: skip
def test_patterns(pattern: str, path: str, matches: bool) -> None:
    assert bool(_matches(pattern, path)) is matches


def _matches(pattern: str, name: str) -> re.Match[str] | None:
    """As perl reads the expression, whose way to write a character Python has not."""
    expression = re.sub(r"\\x\{([0-9a-f]+)\}", lambda match: f"\\U{int(match[1], 16):08x}", glob.expression(pattern))
    return re.fullmatch(expression, name, re.DOTALL)
