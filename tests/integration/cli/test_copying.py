"""`sandbox task cp` with real trees on both sides: things go where `docker cp` puts them, and none goes elsewhere."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.task import commands
from cli.task.files import copying
from foundation.archives import Member, gzipped, head
from foundation.errors import ArchiveRefused, FileNotFound, TaskyardError, WrongFileType
from foundation.service.files import FileInfo
from machines.files.archives import packed, unpack
from machines.files.guest_files import GuestFiles, Written
from machines.processes.guard import GuestPrograms
from tests.stand_ins.local_sshd import LocalGuestServer

USER = str(os.getuid())


class Here:
    """The client's methods over a guest that is this host."""

    def __init__(self, files: GuestFiles, spool: Path) -> None:
        self.files = files
        self.spool = spool

    def file_info(self, _: str, path: bytes, *, follow: bool, **__: Any) -> FileInfo:
        return self.files.stat([path], follow=follow)[0]

    def read_file(self, _: str, path: bytes, **__: Any) -> Iterator[bytes]:
        return self.files.read(path).pieces()

    def write_file(self, _: str, path: bytes, content: Any, *, mode: str, modified_ns: int, **__: Any) -> FileInfo:
        return self.files.write(path, content, Written(mode=mode, modified_ns=modified_ns))

    def download_archive(self, _: str, path: bytes, form: Any, **__: Any) -> Iterator[bytes]:
        return packed(self.files, path, form)

    def upload_archive(
        self, _: str, path: bytes, content: Any, form: Any = None, *, keep_owners: bool = False, **__: Any
    ) -> Any:
        pieces = [content] if isinstance(content, bytes) else content
        source = content if hasattr(content, "read") else copying.Pieces(pieces)
        return unpack(self.files, path, source, form, spool=self.spool, keep_owners=keep_owners)


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalGuestServer]:
    server = LocalGuestServer(tmp_path_factory.mktemp("guest"))
    yield server
    server.close()


class Ends:
    """This host's directory and the machine's, and the command between them."""

    def __init__(self, directory: Path, guest: LocalGuestServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.here, self.there = directory / "here", directory / "there"
        self.here.mkdir()
        self.there.mkdir()
        self.client = Here(GuestFiles(GuestPrograms(guest.shell), USER), directory / "spool")

        @contextmanager
        def opened(_: Any) -> Iterator[Here]:
            yield self.client

        monkeypatch.setattr(copying, "open_client", opened)
        monkeypatch.chdir(self.here)

    def cp(self, *words: str, data: bytes = b"") -> bytes:
        """Copy; 'in:PATH' is in the machine. What was written to stdout."""
        given = [word.replace("in:", f"run-1:{self.there}/") for word in words]
        done = CliRunner().invoke(commands.app, ["cp", *given], input=data, standalone_mode=False)
        if done.exception is not None:
            raise done.exception
        return done.stdout_bytes


@pytest.fixture
def ends(tmp_path: Path, guest: LocalGuestServer, monkeypatch: pytest.MonkeyPatch) -> Ends:
    return Ends(tmp_path, guest, monkeypatch)


def tree_at(directory: Path) -> None:
    """Names of all kinds, modes, links, holes, times."""
    raw = os.fsencode(directory)
    (directory / "sub/empty").mkdir(parents=True)
    (directory / "sub/run").write_text("#!/bin/sh\n")
    (directory / "sub/run").chmod(0o750)
    for name in (b"odd \xff\xfe", b"new\nline", "ü'\"$(id)".encode(), b"-rf", b".hidden", b"x" * 255):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(name)
    os.link(directory / ".hidden", directory / "sub/same")
    (directory / "link").symlink_to("sub/run")
    (directory / "absolute").symlink_to("/etc/passwd")
    (directory / "nowhere").symlink_to(os.fsdecode(b"\xff/nowhere"))
    with (directory / "sparse").open("wb") as file:
        file.seek(30_000_000)
        file.write(os.urandom(10))
        file.truncate(50_000_000)
    (directory / "closed").mkdir()
    (directory / "closed/in").write_text("in")
    (directory / "closed").chmod(0o555)
    for place in (directory / "sub/run", directory / "sub/empty", directory / "closed"):
        os.utime(place, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))


def facts(directory: Path) -> dict[bytes, tuple[Any, ...]]:
    """All that is to be the same of a tree."""
    found: dict[bytes, tuple[Any, ...]] = {}
    for path in directory.rglob("*"):
        status = path.lstat()
        if path.is_symlink():
            content: Any = path.readlink()
        else:
            content = None if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[os.fsencode(path.relative_to(directory))] = (
            status.st_mode, status.st_mtime_ns, status.st_nlink, content,
        )  # fmt: skip
    return found


def test_a_tree_is_the_same_after_it_went_in_and_out(ends: Ends) -> None:
    tree_at(ends.here / "tree")
    ends.cp("tree", "in:tree")
    assert facts(ends.there / "tree") == facts(ends.here / "tree")
    ends.cp("in:tree", "back")
    assert facts(ends.here / "back") == facts(ends.here / "tree")
    blocks = [(side / "sparse").stat().st_blocks * 512 for side in (ends.there / "tree", ends.here / "back")]
    assert max(blocks) < 1_000_000


# What there is, what is copied where, and what there is then. Files are their content, directories dictionaries.
PLACES: dict[str, tuple[Any, Any, Any]] = {
    "a file to a new name": ({"a": "1"}, ("a", "b"), {"b": "1"}),
    "a file over a file": ({"a": "1"}, ("a", "old"), {"old": "1"}),
    "a file into a directory": ({"a": "1"}, ("a", "dir"), {"dir": {"a": "1"}}),
    "a file into a directory with a slash": ({"a": "1"}, ("a", "dir/"), {"dir": {"a": "1"}}),
    "a file to a directory that is not there": ({"a": "1"}, ("a", "new/"), FileNotFound),
    "a file below what is not there": ({"a": "1"}, ("a", "new/b"), TaskyardError),
    "a directory to a new name": ({"d": {"x": "1"}}, ("d", "new"), {"new": {"x": "1"}}),
    "a directory into a directory": ({"d": {"x": "1"}}, ("d", "dir"), {"dir": {"d": {"x": "1"}}}),
    "its contents into a directory": ({"d": {"x": "1"}}, ("d/.", "dir"), {"dir": {"x": "1"}}),
    "its contents to a new name": ({"d": {"x": "1"}}, ("d/.", "new"), {"new": {"x": "1"}}),
    "a directory over a file": ({"d": {"x": "1"}}, ("d", "old"), WrongFileType),
    "a directory below what is not there": ({"d": {"x": "1"}}, ("d", "new/er"), TaskyardError),
    "what is not there": ({}, ("a", "b"), TaskyardError),
    "a file as if it were a directory": ({"a": "1"}, ("a/.", "b"), TaskyardError),
    "an empty directory": ({"d": {}}, ("d", "new"), {"new": {}}),
    "a file with a colon": ({"a:b": "1"}, ("./a:b", "dir"), {"dir": {"a:b": "1"}}),
}


@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
@pytest.mark.parametrize(("made", "words", "then"), PLACES.values(), ids=PLACES)
def test_things_go_where_docker_puts_them(ends: Ends, made: Any, words: Any, then: Any, inward: bool) -> None:
    source, target = (ends.here, ends.there) if inward else (ends.there, ends.here)
    lay(source, made)
    lay(target, {"old": "0", "dir": {}})
    before = seen(target)
    named = (words[0], f"in:{words[1]}") if inward else (f"in:{words[0].removeprefix('./')}", f"./{words[1]}")
    if isinstance(then, type):
        with pytest.raises(then):
            ends.cp(*named)
        assert seen(target) == before
    else:
        ends.cp(*named)
        assert seen(target) == before | then


def lay(directory: Path, content: dict[str, Any]) -> None:
    for name, held in content.items():
        if isinstance(held, dict):
            (directory / name).mkdir(exist_ok=True)
            lay(directory / name, held)
        else:
            (directory / name).write_text(held)


def seen(directory: Path) -> dict[str, Any]:
    return {path.name: seen(path) if path.is_dir() else path.read_text() for path in directory.iterdir()}


def test_a_link_is_copied_as_one_unless_it_is_to_be_followed(ends: Ends) -> None:
    for side in (ends.here, ends.there):
        (side / "real").write_text("real")
        (side / "link").symlink_to("real")
    ends.cp("link", "in:a")
    ends.cp("in:link", "a")
    ends.cp("-L", "link", "in:b")
    ends.cp("-L", "in:link", "b")
    for side in (ends.here, ends.there):
        assert (side / "a").readlink() == Path("real")
        assert (not (side / "b").is_symlink(), (side / "b").read_text()) == (True, "real")
    # What is there as a link is written through, as by any program.
    (ends.here / "new").write_text("new")
    ends.cp("new", "in:link")
    assert ((ends.there / "link").readlink(), (ends.there / "real").read_text()) == (Path("real"), "new")


def test_archives_pass_through_standard_streams(ends: Ends) -> None:
    lay(ends.there, {"d": {"x": "1"}, "f": "2"})
    assert names(ends.cp("in:d", "-")) == ["d", "d/x"]
    assert names(ends.cp("in:d/.", "-")) == [".", "x"]
    assert names(ends.cp("in:f", "-")) == ["f"]
    ends.cp("-", "in:d", data=ends.cp("in:f", "-"))
    assert seen(ends.there / "d") == {"x": "1", "f": "2"}
    for goal in ("in:f", "in:none"):
        with pytest.raises(WrongFileType):
            ends.cp("-", goal, data=b"")


def names(data: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return tar.getnames()


@pytest.mark.parametrize("words", [("a", "b"), ("x:a", "y:b"), (":a", "b"), ("-", "-"), ("", "x:b")])
def test_one_side_is_a_machine(ends: Ends, words: tuple[str, str]) -> None:
    with pytest.raises(TaskyardError):
        ends.cp(*words)


HOSTILE: dict[str, list[Member]] = {
    "through its own link": [
        Member("symlink", b"l", 0o777, 0, target=b".."), Member("file", b"l/out", 0o644, 0),
    ],
    "through a link that is there": [Member("file", b"there/out", 0o644, 0)],
    "a hard link through a link": [Member("hardlink", b"out", 0o644, 0, target=b"there/secret")],
    "a directory over a link": [Member("directory", b"there", 0o755, 0), Member("file", b"there/out", 0o644, 0)],
    "deep below a link": [Member("directory", b"there/a/b", 0o755, 0)],
    "over a directory": [Member("file", b"full", 0o644, 0)],
}  # fmt: skip


@pytest.mark.parametrize("inward", [True, False], ids=["in", "out"])
@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE)
def test_nothing_leaves_the_directory_that_it_is_laid_into(
    ends: Ends, members: list[Member], inward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = (ends.there if inward else ends.here) / "target"
    (target / "full").mkdir(parents=True)
    (target / "full/x").write_text("x")
    (target.parent / "secret").write_text("secret")
    (target / "there").symlink_to("..")
    data = b"".join(map(head, members))
    if inward:
        with pytest.raises(TaskyardError):
            ends.cp("-", "in:target", data=data)
    else:
        # The machine is hostile, and so are its names.
        (ends.there / "target").mkdir()
        monkeypatch.setattr(Here, "download_archive", lambda *_, **__: gzipped(iter([data])))
        with pytest.raises((TaskyardError, OSError)):
            ends.cp("in:target/.", "target")
    outside = {path.name for path in target.parent.iterdir()} - {"target", "secret"}
    assert (outside, (target.parent / "secret").stat().st_nlink) == (set(), 1)
    assert {path.name for path in target.iterdir()} <= {"full", "there", "l"}


def test_a_new_directory_is_there_whole_or_not(ends: Ends) -> None:
    broken = head(Member("file", b"a", 0o644, 0)) + head(Member("file", b"b", 0o644, 0, size=5000)) + b"x" * 2000
    with pytest.raises(ArchiveRefused):
        ends.client.upload_archive("", os.fsencode(ends.there / "new"), io.BytesIO(broken), "tar")
    assert list(ends.there.iterdir()) == []
