"""Files through a server and the host's service, the guest being this host: real sockets, real programs."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import ArchiveRefused, FileNotFound, RangeNotSatisfiable, TaskyardError
from foundation.service.files import (
    ARCHIVE,
    CHANGED,
    CONTENT,
    INFO,
    LISTED,
    REQUEST,
    AllChanged,
    ChangeFiles,
    Changes,
    Extracted,
    FileInfo,
    FileList,
    Files,
    ListFiles,
    LookAt,
    PackArchive,
    ReadFile,
    UnpackArchive,
    WriteFile,
)
from foundation.settings import Settings
from tests.stand_ins.host_site import MACHINE, HostSite, host_site
from tests.stand_ins.local_sshd import LocalGuestServer
from tests.waiting import until

USER = str(os.getuid())


@pytest.fixture
def home() -> Iterator[Path]:
    # A socket's name is short.
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        yield Path(directory)


@pytest.fixture
async def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[HostSite]:
    async with host_site(Settings(home=home, host_name="host-a")) as running:
        guest = LocalGuestServer(tmp_path_factory.mktemp("guest"))
        running.machines.shells[MACHINE] = guest.shell
        yield running
        await asyncio.to_thread(guest.close)


async def ask(site: HostSite, method: str, parts: tuple[str, ...], asked: Any, content: Any = None) -> bytes:
    params = {REQUEST: asked.model_dump_json(exclude_none=True)}
    async with site.hosts.asked(site.found(), "files", method, parts, params=params, content=content) as response:
        return await response.aread()


async def in_pieces(data: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def below(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


async def test_a_file_is_written_read_listed_and_removed(site: HostSite, tmp_path: Path) -> None:
    path, data = os.fsencode(tmp_path / "a/ü\n"), os.urandom(3_000_000) + bytes(2_000_000)
    asked = WriteFile(path=path, user=USER, mode="600")
    info = FileInfo.model_validate_json(await ask(site, "PUT", CONTENT, asked, in_pieces(data)))
    assert (info.size, info.mode, info.type) == (len(data), "0600", "file")
    assert await ask(site, "GET", CONTENT, ReadFile(path=path, user=USER)) == data
    assert await ask(site, "GET", CONTENT, ReadFile(path=path, user=USER, first=5, last=9)) == data[5:10]
    with pytest.raises(RangeNotSatisfiable) as refused:
        await ask(site, "GET", CONTENT, ReadFile(path=path, user=USER, first=len(data)))
    assert refused.value.details == {"size_bytes": len(data)}

    root = os.fsencode(tmp_path)
    listed = FileList.model_validate_json(await ask(site, "GET", LISTED, ListFiles(path=root, user=USER, depth=0)))
    assert [each.path for each in listed.files] == ["a", "a/ü\n"]
    assert not listed.truncated
    cut = FileList.model_validate_json(await ask(site, "GET", LISTED, ListFiles(path=root, user=USER, depth=0, most=1)))
    assert (len(cut.files), cut.truncated) == (1, True)

    changes = Changes.model_validate({"changes": [{"operation": "remove", "path": path}]})
    answer = await ask(site, "POST", CHANGED, ChangeFiles(user=USER), changes.model_dump_json().encode())
    assert AllChanged.model_validate_json(answer).changed[0].removed is True
    with pytest.raises(FileNotFound, match="There is no"):
        await ask(site, "GET", INFO, LookAt(paths=[path], user=USER))

    # What is done by a program of the guest's own.
    (tmp_path / "a/deep/er").mkdir(parents=True)
    all_of_it = {"operation": "remove", "path": str(tmp_path / "a"), "directories": "recursive"}
    changes = Changes.model_validate({"changes": [all_of_it]})
    answer = await ask(site, "POST", CHANGED, ChangeFiles(user=USER), changes.model_dump_json().encode())
    assert AllChanged.model_validate_json(answer).changed[0].removed is True
    assert below(tmp_path) == {}


async def test_an_archive_goes_out_and_in(site: HostSite, tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_bytes(os.urandom(300_000))
    (tmp_path / "a/link").symlink_to("b/c")
    for form in ("tar", "tar.gz", "zip"):
        source, target = os.fsencode(tmp_path / "a"), os.fsencode(tmp_path / form)
        packed = await ask(site, "GET", ARCHIVE, PackArchive(path=source, user=USER, format=form))
        asked = UnpackArchive(path=target, user=USER)
        laid = Extracted.model_validate_json(await ask(site, "PUT", ARCHIVE, asked, in_pieces(packed)))
        assert (laid.files, laid.skipped) == (2, [])
        assert (tmp_path / form / "b/c").read_bytes() == (tmp_path / "a/b/c").read_bytes()
        assert (tmp_path / form / "link").readlink() == Path("b/c")


async def test_a_refusal_in_the_middle_of_a_body_is_told(site: HostSite, tmp_path: Path) -> None:
    hostile = io.BytesIO()
    with tarfile.open(fileobj=hostile, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("../out"))
        whole = tarfile.TarInfo("large")
        whole.size = 20_000_000
        tar.addfile(whole, io.BytesIO(bytes(whole.size)))
    with pytest.raises(ArchiveRefused, match="would leave"):
        await ask(
            site, "PUT", ARCHIVE, UnpackArchive(path=os.fsencode(tmp_path / "in"), user=USER),
            in_pieces(hostile.getvalue()),
        )  # fmt: skip
    assert below(tmp_path) == {}


async def test_who_leaves_in_the_middle_changes_nothing(site: HostSite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("before")

    async def broken() -> AsyncIterator[bytes]:
        yield os.urandom(200_000)
        raise RuntimeError

    with pytest.raises((RuntimeError, TaskyardError)):
        await ask(site, "PUT", CONTENT, WriteFile(path=os.fsencode(tmp_path / "file"), user=USER), broken())
    await until(lambda: below(tmp_path) == {"file": "before"}, "the draft to go")


async def test_a_name_that_is_no_text_is_told_so_that_it_can_be_asked_for(site: HostSite, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/\xff"
    await ask(site, "PUT", CONTENT, WriteFile(path=odd, user=USER), b"")
    answer = Files.model_validate_json(await ask(site, "GET", INFO, LookAt(paths=[odd], user=USER)))
    assert answer.files[0].path.endswith("\N{REPLACEMENT CHARACTER}")
    again = LookAt.model_validate({"paths": [{"base64": answer.files[0].path_base64}], "user": USER})
    assert again.paths == [odd]
