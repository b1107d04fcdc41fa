"""The run log on a real S3 server: read live while it is written, closed, and whole after kill -9 of the server."""

from __future__ import annotations

import asyncio
import random
import threading
import time
import uuid
from pathlib import Path

import pytest

from foundation.errors import BucketUnavailable
from storage import runlog
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.layout import TASKS
from storage.redaction import Redactor
from storage.runlog import LogEntry, RunLogWriter, append_event, read_entries, seal, tail
from tests.servers import S3Server

REDACTOR = Redactor({"TOKEN": "tok-12345", "LINES": "first line of it\nsecond line of it"})
PATIENCE_SECONDS = 120


def guest_output(lines: int) -> bytes:
    some = random.Random(7)
    words = [
        b"tok-12345",
        b"first line of it\nsecond line of it",
        "äöü€".encode(),
        b"plain text",
        b'{"a":"\\n"}',
        b"\xff",
    ]
    return b"".join(b"%d " % number + some.choice(words) + b"\n" for number in range(lines))


def follow_guest_file(bucket: Bucket, task_id: str, source: bytes, seed: int, until: int) -> None:
    """What a worker does: begin again whenever the bucket fails, and go on where the bucket says."""
    some = random.Random(seed)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            writer = RunLogWriter(bucket, TASKS.place(task_id), REDACTOR)
            offset = writer.resume()["stdout"]
            while offset < until:
                data = source[offset : min(until, offset + some.randrange(1, 700))]
                writer.feed("stdout", data, offset)
                offset += len(data)
                writer.flush(force=some.random() < 0.3)
            if until == len(source):
                writer.close()
        except BucketUnavailable:
            continue
        else:
            return
    raise AssertionError("the bucket did not come back in time")


def check_log(entries: list[LogEntry], source: bytes) -> None:
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    text = "".join(entry.data for entry in entries if entry.stream == "stdout")
    assert text == REDACTOR.redact(source).decode(errors="replace")


async def test_the_log_is_whole_for_all_who_follow_when_the_server_is_killed_in_the_middle(tmp_path: Path):
    source = guest_output(3000)
    with S3Server(tmp_path) as server:
        bucket = Bucket(server.settings)
        followers = RunLogFollowers(bucket, poll_seconds=0.05)
        seen: dict[int, list[LogEntry]] = {0: [], 1: []}

        async def read_along(number: int) -> None:
            async for entry in followers.follow(TASKS.place("t")):
                seen[number].append(entry)

        readers = [asyncio.create_task(read_along(number)) for number in seen]
        # Two workers at once: one of them was overtaken, and does not know it.
        workers = [
            threading.Thread(target=follow_guest_file, args=(bucket, "t", source, seed, until))
            for seed, until in ((1, len(source)), (2, len(source) // 2))
        ]
        for worker in workers:
            worker.start()
        for share in (4, 2):
            await asyncio.to_thread(_await_entries, bucket, 3000 // share)
            server.kill()
            await asyncio.to_thread(server.start)
        for worker in workers:
            await asyncio.to_thread(worker.join)
        append_event(bucket, TASKS.place("t"), {"type": "end"})
        await asyncio.to_thread(seal, bucket, TASKS.place("t"))
        await asyncio.wait_for(asyncio.gather(*readers), PATIENCE_SECONDS)
        entries = list(read_entries(bucket, TASKS.place("t")))
    check_log(entries, source)
    assert entries[-1].stream == "event"
    assert seen[0] == seen[1] == entries


def _await_entries(bucket: Bucket, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (last := tail(bucket, TASKS.place("t"), 1)) or last[0].id < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_sealed_log_is_few_objects_and_reads_the_same(bucket, monkeypatch):
    monkeypatch.setattr(runlog, "_MERGE_SEGMENTS", 20)
    task_id = f"test-{uuid.uuid4().hex[:12]}"
    source = guest_output(200)
    writer = RunLogWriter(bucket, TASKS.place(task_id), REDACTOR)
    writer.resume()
    for start in range(0, len(source), 50):
        writer.feed("stdout", source[start : start + 50], start)
        writer.flush(force=True)
    writer.close()
    live = list(read_entries(bucket, TASKS.place(task_id)))
    seal(bucket, TASKS.place(task_id))
    seal(bucket, TASKS.place(task_id))
    check_log(live, source)
    assert list(read_entries(bucket, TASKS.place(task_id))) == live
    assert list(read_entries(bucket, TASKS.place(task_id), live[99].id)) == live[100:]
    assert tail(bucket, TASKS.place(task_id), 7) == live[-7:]
    # The entries, the seal, and the closing segment that keeps late writers out.
    assert len(list(bucket.list(TASKS.place(task_id).log_prefix))) == 3
    bucket.delete([found.key for found in bucket.list(TASKS.place(task_id).prefix)])


def test_a_writer_whose_server_is_away_says_so_and_loses_nothing(tmp_path: Path):
    with S3Server(tmp_path) as server:
        bucket = Bucket(server.settings)
        writer = RunLogWriter(bucket, TASKS.place("t"), REDACTOR)
        writer.feed("stdout", b"one\n", 0)
        server.kill()
        writer.feed("stdout", b"two\n", 4)
        with pytest.raises(BucketUnavailable, match="does not answer"):
            writer.flush(force=True)
        server.start()
        writer.flush(force=True)
        assert [entry.data for entry in read_entries(bucket, TASKS.place("t"))] == ["one\n", "two\n"]
