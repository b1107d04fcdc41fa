"""Followers of live logs: every subscriber gets every entry once, whenever it comes and however slow it is."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing

import pytest

from foundation.errors import BucketUnavailable, TaskyardError
from storage import follower, runlog
from storage.follower import RunLogFollower, RunLogFollowers
from storage.layout import TASKS
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, append_event, seal
from tests.stand_ins.memory_bucket import MemoryBucket
from tests.waiting import until

TASK = TASKS.place("task-1")
POLL = 0.001


async def ids(followers: RunLogFollowers | RunLogFollower, *arguments: object, slowly: int = 0) -> list[int]:
    found = []
    async with aclosing(followers.follow(*arguments)) as entries:
        async for entry in entries:
            found.append(entry.id)
            if slowly and entry.id % slowly == 0:
                await asyncio.sleep(0)
    return found


async def write(bucket: MemoryBucket, count: int) -> None:
    writer = RunLogWriter(bucket, TASK, Redactor({}))
    writer.resume()
    for number in range(count):
        writer.feed("stdout", b"%04d\n" % number, number * 5)
        writer.flush(force=number % 3 == 0)
        await asyncio.sleep(0.0005)
    writer.close()


@pytest.mark.parametrize("window", [3, 4000])
async def test_all_subscribers_get_every_entry_once_until_the_log_is_closed(window, monkeypatch):
    monkeypatch.setattr(follower, "_WINDOW_ENTRIES", window)
    monkeypatch.setattr(follower, "_BATCH", 10)
    monkeypatch.setattr(runlog, "_MERGE_SEGMENTS", 9)
    bucket = MemoryBucket()
    followers = RunLogFollowers(bucket, poll_seconds=POLL)
    early = [asyncio.create_task(ids(followers, TASK)) for _ in range(3)]
    slow = asyncio.create_task(ids(followers, TASK, 0, slowly=1))
    await write(bucket, 150)
    late = asyncio.create_task(ids(followers, TASK, 100))
    assert followers.followed == {TASK: 4}
    await asyncio.sleep(0)
    seal(bucket, TASK)
    everything = list(range(1, 151))
    assert await asyncio.gather(*early, slow) == [everything] * 4
    assert await late == everything[100:]
    assert await ids(followers, TASK, 148) == [149, 150]
    assert followers.followed == {}


async def test_many_subscribers_cost_as_many_requests_as_one():
    bucket = MemoryBucket()
    for number in range(10):
        append_event(bucket, TASK, {"n": number})
    followers = RunLogFollowers(bucket, poll_seconds=3600)
    streams = [followers.follow(TASK, 10) for _ in range(50)]
    waiting = [asyncio.create_task(anext(stream, None)) for stream in streams]
    bucket.reads = 0
    await until(lambda: bucket.reads >= 4, "four reads")
    assert bucket.reads < 10
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for stream in streams:
        await stream.aclose()
    assert followers.followed == {}


async def test_a_bucket_that_is_away_is_waited_for(monkeypatch):
    monkeypatch.setattr(follower, "_AWAY_SECONDS", POLL)
    bucket = MemoryBucket()
    requests = 0
    some = random.Random(3)

    def fail_often(action: str, _key: str) -> None:
        nonlocal requests
        if action in {"get", "list"}:
            requests += 1
            if some.random() < 0.3:
                raise BucketUnavailable("away")

    await write(bucket, 20)
    bucket.before = fail_often
    async with RunLogFollower(bucket, TASK, poll_seconds=POLL) as one:
        reading = asyncio.create_task(ids(one))
        for _ in range(5):
            await until(lambda aim=requests + 50: requests >= aim, "50 more requests")
            # Several segments between two looks: the bucket fails in the middle of a look, too.
            bucket.before = lambda _action, _key: None
            for number in range(10):
                append_event(bucket, TASK, {"n": number})
            bucket.before = fail_often
        bucket.before = lambda _action, _key: None
        seal(bucket, TASK)
        assert await reading == list(range(1, 71))


async def test_a_damaged_log_is_told_and_not_waited_for():
    bucket = MemoryBucket()
    for number in range(3):
        append_event(bucket, TASK, {"n": number})
    async with RunLogFollower(bucket, TASK, poll_seconds=POLL) as one:
        stream = one.follow(0)
        assert [(await anext(stream)).id for _ in range(3)] == [1, 2, 3]
        append_event(bucket, TASK, {"n": 3})
        append_event(bucket, TASK, {"n": 4})
        bucket.delete([TASK.segment_key(4)])
        with pytest.raises(TaskyardError, match="damaged"):
            await anext(stream)
    assert any(key.startswith(TASK.log_prefix) for key in bucket.objects)


async def test_stopping_ends_those_who_wait():
    bucket = MemoryBucket()
    one = RunLogFollower(bucket, TASK, poll_seconds=POLL)
    reading = asyncio.create_task(ids(one))
    await asyncio.sleep(POLL)
    await one.stop()
    assert await asyncio.wait_for(reading, 10) == []
