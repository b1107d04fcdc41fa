"""Downloads of both clients into files: whole or not there, over nothing, through nothing, and none stops another."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import aclosing, closing, contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from client import Artifact, AsyncTaskClient, Fetched, TaskClient
from foundation.errors import Conflict, ServiceUnavailable
from storage import artifacts
from storage.layout import TASKS
from tests.api_site import ApiSite

CONTENTS = {
    "a.txt": b"one\n",
    "deep/b.txt": b"two\n",
    "\ud7ff" * 60 + "/" + "%FF" * 255: b"three\n",
    "c.txt": b"four\n",
}


def tree(directory: Path) -> dict[str, bytes]:
    """What lies below a directory, links as what they point to."""
    return {
        str(path.relative_to(directory)): os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def download_all(kind: str, url: str, task_id: str, directory: Path, *, force: bool = False) -> list[Fetched]:
    if kind == "blocking":
        with TaskClient(url) as client:
            return list(client.download_all(task_id, directory, force=force))

    async def awaited() -> list[Fetched]:
        async with AsyncTaskClient(url) as client:
            return [fetched async for fetched in client.download_all(task_id, directory, force=force)]

    return asyncio.run(awaited())


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
async def test_all_that_can_be_had_is_had_and_nothing_is_overwritten(site: ApiSite, tmp_path: Path, kind: str) -> None:
    task_id = await site.submit()

    def calls() -> None:
        stored = [
            artifacts.store(site.bucket, TASKS.place(task_id), name, content) for name, content in CONTENTS.items()
        ]
        artifacts.write_index(site.bucket, TASKS.place(task_id), stored)
        directory = tmp_path / "out"

        fetched = download_all(kind, site.url, task_id, directory)
        assert [each.error for each in fetched] == [None] * len(CONTENTS)
        assert {each.artifact.name: each.path.read_bytes() for each in fetched} == CONTENTS
        assert sorted(tree(directory).values()) == sorted(CONTENTS.values())

        # Damaged, gone, in the way of something, and behind a link: all others are there.
        site.bucket.put(TASKS.place(task_id).artifact_key("deep/b.txt"), b"tw0\n")
        (directory / "a.txt").write_bytes(b"mine\n")
        (directory / "c.txt").unlink()
        (directory / "deep" / "b.txt").unlink()
        before = tree(directory)
        errors = {each.artifact.name: each.error for each in download_all(kind, site.url, task_id, directory)}
        assert isinstance(errors.pop("a.txt"), Conflict)
        assert "damaged" in str(errors.pop("deep/b.txt"))
        assert set(errors.values()) == {None}
        assert tree(directory) == before | {"c.txt": b"four\n"}

        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "kept").write_bytes(b"kept")
        (directory / "deep").rmdir()
        (directory / "deep").symlink_to(outside)
        (directory / "c.txt").unlink()
        (directory / "c.txt").symlink_to(outside / "kept")
        errors = {
            each.artifact.name: each.error for each in download_all(kind, site.url, task_id, directory, force=True)
        }
        assert {name for name, error in errors.items() if isinstance(error, Conflict)} == {"c.txt", "deep/b.txt"}
        assert (directory / "a.txt").read_bytes() == b"one\n"
        assert tree(outside) == {"kept": b"kept"}

    await asyncio.to_thread(calls)


async def test_two_artifacts_never_become_one_file(site: ApiSite, tmp_path: Path) -> None:
    """Names as only an older version, or a server that lies, lists them."""
    task_id = await site.submit()
    names = ["../x", "x", "/x", "a//x", "a/./x", "."]

    def calls() -> None:
        stored = [artifacts.store(site.bucket, TASKS.place(task_id), name, name.encode()) for name in names]
        artifacts.write_index(site.bucket, TASKS.place(task_id), stored)
        for force in (False, True):
            directory = tmp_path / f"out-{force}" / "below"
            with TaskClient(site.url) as client:
                fetched = list(client.download_all(task_id, directory, force=force))
            whole = [each for each in fetched if each.error is None]
            assert len({each.path for each in whole}) == len(whole) == 3
            assert all(each.path.read_bytes() == each.artifact.name.encode() for each in whole)
            assert all(directory in each.path.parents for each in fetched)
            assert [path.name for path in directory.parent.iterdir()] == ["below"]

    await asyncio.to_thread(calls)


@contextmanager
def breaking_off(sent: int) -> Iterator[tuple[str, threading.Event]]:
    """A server whose answers go on for ever, or break off; and whether a client has hung up on it."""
    gone = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            is_log = "/logs" in self.path
            self.send_header("Content-Type", "application/x-ndjson" if is_log else "text/plain")
            self.send_header("X-Checksum-SHA256", "0" * 64)
            if not is_log:
                self.send_header("Content-Length", str(2**40))
            self.end_headers()
            line = b'{"id":1,"timestamp":"2026-01-01T00:00:00Z","stream":"stdout","data":"x"}\n'
            count = 0
            try:
                while not sent or count < sent:
                    self.wfile.write(line if is_log else b"x" * 2**16)
                    count += 1
            except OSError:
                gone.set()

        def log_message(self, *_: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", gone
        finally:
            server.shutdown()
            thread.join()


def _download(kind: str, url: str, target: Path, progress: Callable[[int, int], None]) -> None:
    if kind == "blocking":
        with TaskClient(url) as client:
            client.download("x", "large", target, progress)
        return

    async def awaited() -> None:
        async with AsyncTaskClient(url) as client:
            await client.download("x", "large", target, progress)

    asyncio.run(awaited())


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_an_answer_that_breaks_off_leaves_nothing(tmp_path: Path, kind: str) -> None:
    with breaking_off(sent=3) as (url, _), pytest.raises(ServiceUnavailable):
        _download(kind, url, tmp_path / "x", lambda _done, _all: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["blocking", "awaited"])
def test_who_stops_a_download_in_the_middle_hangs_up_and_leaves_nothing(tmp_path: Path, kind: str) -> None:
    def stop(_done: int, _all: int) -> None:
        raise KeyboardInterrupt

    with breaking_off(sent=0) as (url, gone):
        with pytest.raises(KeyboardInterrupt):
            _download(kind, url, tmp_path / "x", stop)
        assert gone.wait(60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["closed", "left to itself"])
def test_who_stops_reading_a_log_hangs_up(how: str) -> None:
    with breaking_off(sent=0) as (url, gone), TaskClient(url) as client:
        lines = client.logs("x", follow=True)
        assert next(lines).data == "x"
        if how == "closed":
            with closing(lines):
                pass
        del lines
        assert gone.wait(60)


async def test_who_stops_awaiting_a_log_hangs_up() -> None:
    with breaking_off(sent=0) as (url, gone):
        async with AsyncTaskClient(url) as client:
            async with aclosing(client.logs("x", follow=True)) as lines:
                assert (await anext(lines)).data == "x"
            assert await asyncio.to_thread(gone.wait, 60)


async def test_files_of_the_async_client_are_written_in_threads(
    site: ApiSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_id = await site.submit()
    stored = await asyncio.to_thread(artifacts.store, site.bucket, TASKS.place(task_id), "large", b"x" * 2**20)
    await asyncio.to_thread(artifacts.write_index, site.bucket, TASKS.place(task_id), [stored])
    writers: set[Any] = set()
    write = os.write

    def noting(file: int, data: Any) -> int:
        writers.add(threading.current_thread())
        return write(file, data)

    async with AsyncTaskClient(site.url) as client:
        monkeypatch.setattr("client.tasks.download.os.write", noting)
        assert await client.download(task_id, "large", tmp_path / "large") == 2**20
        monkeypatch.undo()
    assert writers
    assert threading.current_thread() not in writers


def test_a_server_that_is_away_is_not_asked_for_every_artifact(tmp_path: Path) -> None:
    asked: list[str] = []

    class Away(TaskClient):
        def artifacts(self, task_id: str) -> list[Artifact]:
            del task_id
            listed = {"size_bytes": 1, "content_type": "", "checksum": "", "created_at": datetime.now(UTC)}
            return [Artifact(name=str(number), path=str(number), **listed) for number in range(20)]

        def _download(self, _task_id: str, name: str, *_: Any, **__: Any) -> int:
            asked.append(name)
            raise ServiceUnavailable("away")

    with Away("http://127.0.0.1:9") as client:
        fetched = list(client.download_all("x", tmp_path))
    assert len(fetched) == 20
    assert all(isinstance(each.error, ServiceUnavailable) for each in fetched)
    assert len(asked) == 3
