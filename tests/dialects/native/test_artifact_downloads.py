"""Downloads from the real server: every listed URL gives its bytes, the loop stays free, and who goes is noticed."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import threading
from typing import Any

import httpx
import pytest

from storage import artifacts
from storage.bucket import ObjectStream
from storage.layout import TASKS
from storage.names import names_of
from storage.redaction import Redactor
from tests.api_site import ApiSite, until

NOTHING = Redactor({})


def arbitrary_paths(count: int) -> list[str]:
    """Paths of any bytes but those that no file can have, seeded; each of the telling characters is in many."""
    chance = random.Random(7)
    telling = [
        b"%",
        b"%2F",
        b"\n",
        b"\r\n",
        b"\x1b",
        b"\\",
        b"?",
        b"#",
        b";",
        b" ",
        b".",
        b"..",
        b"\xff",
        b"\xc3\xa9",
        b"e\xcc\x81",
    ]
    found = {
        b"\xff" * 255,
        b"%0A" * 85,
        b"a/" * 100 + b"\n",
        b"...",
        b"a/..b",
        b"%2e%2e",
        b"%2F..%2F",
        b"-",
        b"METADATA.json",
    }
    while len(found) < count:
        parts = [
            b"".join(
                chance.choice(telling) if chance.random() < 0.5 else chance.randbytes(1)
                for _ in range(chance.randint(1, 6))
            )
            for _ in range(chance.randint(1, 3))
        ]
        cleaned = [part.translate(None, b"/\0") for part in parts]
        if all(part not in {b"", b".", b".."} for part in cleaned):
            found.add(b"/".join(cleaned))
    return [os.fsdecode(path) for path in sorted(found)]


async def test_every_listed_url_downloads_its_own_bytes(site: ApiSite) -> None:
    task_id = await site.submit()
    paths = arbitrary_paths(120)

    def store() -> None:
        names = names_of(paths, task_id, NOTHING)
        stored = [
            artifacts.store(site.bucket, TASKS.place(task_id), names[path], os.fsencode(path), path=path)
            for path in paths
        ]
        # As a version without these rules stored one.
        stored.append(artifacts.store(site.bucket, TASKS.place(task_id), "old\nname", b"old"))
        artifacts.write_index(site.bucket, TASKS.place(task_id), stored)

    await asyncio.to_thread(store)
    listed = (await site.http.get(f"/api/v1/tasks/{task_id}/artifacts")).json()
    assert listed["total_count"] == len(paths) + 1
    contents = set()
    for artifact in listed["artifacts"]:
        reply = await site.http.get(artifact["download_url"])
        assert reply.status_code == 200, artifact
        assert f"sha256:{hashlib.sha256(reply.content).hexdigest()}" == artifact["checksum"]
        contents.add(reply.content)
    assert contents == {*map(os.fsencode, paths), b"old"}


class _Held:
    """The bucket's answer, of which every part has to be let go; ``closed`` says that nobody wants more."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.asked = threading.Event()
        self.closed = threading.Event()

    def read1(self, count: int) -> bytes:
        self.asked.set()
        assert self.go.acquire(timeout=60)
        return b"x" * count

    def close(self) -> None:
        self.closed.set()

    def release_conn(self) -> None:
        assert self.closed.is_set()


@pytest.fixture
async def held(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> tuple[str, _Held]:
    """URL of an artifact whose bytes the bucket holds back, and the answer that does so."""
    task_id = await site.submit()
    stored = await asyncio.to_thread(artifacts.store, site.bucket, TASKS.place(task_id), "large", b"x")
    stored.size_bytes = 2**40
    await asyncio.to_thread(artifacts.write_index, site.bucket, TASKS.place(task_id), [stored])
    answer: Any = _Held()

    def opened(*_: object) -> ObjectStream:
        assert threading.current_thread() is not threading.main_thread()
        return ObjectStream(answer, site.bucket._answers)

    monkeypatch.setattr(artifacts, "open_stream", opened)
    return f"/api/v1/tasks/{task_id}/artifacts/large", answer


async def test_a_bucket_that_stands_still_stops_one_download_only(site: ApiSite, held: tuple[str, _Held]) -> None:
    url, answer = held
    try:
        async with site.http.stream("GET", url) as reply:
            assert reply.status_code == 200
            await asyncio.to_thread(answer.asked.wait, 60)
            assert (await site.http.get("/api/v1/health/live")).status_code == 200
    finally:
        answer.go.release(1000)


async def test_a_client_that_goes_in_the_middle_closes_the_buckets_answer(
    site: ApiSite, held: tuple[str, _Held]
) -> None:
    url, answer = held
    async with httpx.AsyncClient(base_url=site.url) as http, http.stream("GET", url) as reply:
        answer.go.release(2)
        pieces = reply.aiter_bytes()
        assert await anext(pieces)
        await pieces.aclose()
        assert not answer.closed.is_set()
    answer.go.release(1000)

    async def closed() -> bool:
        return answer.closed.is_set()

    await until(closed, "the bucket's answer to be closed")
