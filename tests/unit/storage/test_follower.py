"""Followers of live logs: every subscriber gets every entry once, whenever it comes and however slow it is."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime

import pytest

from foundation.errors import BucketUnavailable, ForeignServer, HostUnreachable, TaskyardError
from storage import follower, runlog, sealing
from storage.follower import LiveNews, RunLogFollower, RunLogFollowers
from storage.layout import TASKS, Place
from storage.live.wire import heard
from storage.redaction import Redactor
from storage.runlog import LogEntry, RunLogWriter, append_event, read_entries, seal, tail
from storage.segments import ChainEnd, encode_segment, event_draft
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


@pytest.mark.parametrize("gone", range(6))
@pytest.mark.parametrize("sealed", [False, True])
async def test_of_an_old_log_there_is_what_the_bucket_has_left(monkeypatch, gone: int, sealed: bool):
    """The bucket's own rule deletes the oldest objects, and those of one day not all at once."""
    monkeypatch.setattr(sealing, "_PART_BYTES", 1)
    bucket = MemoryBucket()
    for number in range(5):
        append_event(bucket, TASK, {"n": number})
    if sealed:
        seal(bucket, TASK)
    bucket.delete(
        [TASK.sealed_part_key(number, number) if sealed else TASK.segment_key(number) for number in range(1, gone + 1)]
    )
    left = list(range(gone + 1, 6))
    assert [entry.id for entry in read_entries(bucket, TASK)] == left
    assert [entry.id for entry in tail(bucket, TASK, 10)] == left
    async with RunLogFollower(bucket, TASK, poll_seconds=POLL) as one:
        stream = one.follow(0)
        assert [(await anext(stream)).id for _ in left] == left
        if sealed:
            assert await anext(stream, None) is None
        await stream.aclose()


async def test_stopping_ends_those_who_wait():
    bucket = MemoryBucket()
    one = RunLogFollower(bucket, TASK, poll_seconds=POLL)
    reading = asyncio.create_task(ids(one))
    await asyncio.sleep(POLL)
    await one.stop()
    assert await asyncio.wait_for(reading, 10) == []


async def test_stopping_ends_who_listens_though_a_broken_connection_takes_the_cancel(monkeypatch):
    monkeypatch.setattr(follower, "_ASK_SECONDS_MOST", POLL)
    listening = asyncio.Event()

    class Breaking:
        async def listen(self, _: Place, __: int) -> AsyncGenerator[LiveNews]:
            listening.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                raise HostUnreachable("went away") from None
            yield LiveNews(live=True, entries=[])

    bucket = MemoryBucket()
    append_event(bucket, TASK, {"n": 1})
    one = RunLogFollower(bucket, TASK, Breaking(), poll_seconds=POLL)
    stream = one.follow(0)
    assert (await anext(stream)).id == 1
    await asyncio.wait_for(listening.wait(), 10)
    await asyncio.wait_for(one.stop(), 10)
    await stream.aclose()


class Source:
    """A host that tells what it is given, and nothing when nobody is to be heard."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.news: asyncio.Queue[LiveNews | Exception | None] = asyncio.Queue()

    async def listen(self, _: Place, after_id: int) -> AsyncGenerator[LiveNews]:
        self.asked.append(after_id)
        while (news := await self.news.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield news


def told(*numbers: int) -> LiveNews:
    at = datetime.now(UTC)
    return LiveNews(live=True, entries=[LogEntry(id=each, ts=at, stream="event", data="{}") for each in numbers])


async def test_entries_come_from_the_host_and_from_the_bucket_whichever_has_them_first(monkeypatch):
    monkeypatch.setattr(follower, "_SELDOM_SECONDS", 3600)
    bucket, source = MemoryBucket(), Source()
    append_event(bucket, TASK, {"n": 1})
    async with RunLogFollower(bucket, TASK, source, poll_seconds=POLL) as one:
        stream = one.follow(0)
        assert (await anext(stream)).id == 1
        await source.news.put(told(1, 2, 3))
        assert [(await anext(stream)).id for _ in range(2)] == [2, 3]
        # The host goes, and the bucket has the same and more.
        await source.news.put(HostUnreachable("away"))
        for number in (2, 3, 4):
            append_event(bucket, TASK, {"n": number})
        assert (await anext(stream)).id == 4
        # It comes back behind what the bucket has told since, of which it knows nothing.
        await until(lambda: len(source.asked) == 2, "the host is asked again")
        await source.news.put(told(6, 7))
        append_event(bucket, TASK, {"n": 5})
        assert (await anext(stream)).id == 5
        await until(lambda: len(source.asked) == 3, "the host is asked behind the gap")
        await source.news.put(told(6, 7))
        assert [(await anext(stream)).id for _ in range(2)] == [6, 7]
        await source.news.put(None)
        seal(bucket, TASK)
        assert [entry.id async for entry in stream] == []
    assert source.asked[:3] == [1, 4, 5]


async def test_a_follower_of_a_lost_host_misses_nothing_that_comes_later():
    bucket, source = MemoryBucket(), Source()
    segment, body = encode_segment("w", ChainEnd(0, {}, closed=False), [event_draft({"n": 1})], reserve=10)
    bucket.put(TASK.segment_key(segment.first), body)
    async with RunLogFollower(bucket, TASK, source, poll_seconds=POLL) as one:
        stream = one.follow(0)
        assert (await anext(stream)).id == 1
        await source.news.put(told(2, 3, 4))
        assert [(await anext(stream)).id for _ in range(3)] == [2, 3, 4]
        # What was told is lost with its host: its ids mean nothing else.
        await source.news.put(HostUnreachable("away"))
        append_event(bucket, TASK, {"n": "after"})
        seal(bucket, TASK)
        assert [(entry.id, entry.data) async for entry in stream] == [(12, '{"n": "after"}')]
    assert [entry.id for entry in read_entries(bucket, TASK)] == [1, 12]
    assert [entry.id for entry in tail(bucket, TASK, 2)] == [1, 12]


@pytest.mark.parametrize(
    "chunk",
    [b"{}\n", b"\xff\n", b'{"live"\n', b'{"live": true}\n{"id": 1}\n', b"x" * 9_000_000],
    ids=["nothing", "no text", "half", "no entry", "without an end"],
)
async def test_what_no_host_tells_is_an_error_of_the_source(chunk):
    async def chunks() -> AsyncGenerator[bytes]:
        yield chunk

    with pytest.raises(ForeignServer):
        [news async for news in heard(chunks())]
