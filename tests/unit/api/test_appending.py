"""Entries that clients append to one log at once: each is there once, in one order, and their cost does not grow."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from api.told.appending import ClientLogs
from foundation.errors import BucketUnavailable, Conflict
from storage.runlog import read_entries, seal
from storage.segments import Draft, chain_end, told_draft
from tests.stand_ins.memory_bucket import TASK, MemoryBucket, writer_of


async def append(logs: ClientLogs, *texts: str) -> None:
    drafts = [told_draft(text + "\n") for text in texts]
    await logs.append(TASK, lambda _: drafts, 10)


def told(bucket: MemoryBucket) -> list[str]:
    return [entry.data.rstrip("\n") for entry in read_entries(bucket, TASK) if entry.stream == "told"]


async def test_what_two_servers_append_at_once_is_there_once_and_in_one_order():
    bucket = MemoryBucket()
    servers = [ClientLogs(bucket), ClientLogs(bucket)]
    await asyncio.gather(*(append(servers[n % 2], f"{n}a", f"{n}b") for n in range(300)))
    found = told(bucket)
    assert len(found) == len(set(found)) == 600
    for number in range(300):
        assert found.index(f"{number}b") == found.index(f"{number}a") + 1
    for parity in (0, 1):
        own = [text for text in found if int(text[:-1]) % 2 == parity]
        assert own == sorted(own, key=lambda text: (int(text[:-1]), text))


async def test_a_host_writes_the_same_log_and_loses_nothing():
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)
    writer = writer_of(bucket)
    for number in range(50):
        writer.feed("stdout", b"%05d\n" % number, number * 6)
        writer.flush(force=True)
        await append(logs, str(number))
    entries = list(read_entries(bucket, TASK))
    assert [entry.id for entry in entries] == list(range(1, 101))
    assert told(bucket) == [str(number) for number in range(50)]
    assert [entry.data for entry in entries if entry.stream == "stdout"] == [f"{n:05d}\n" for n in range(50)]


async def test_the_cost_of_an_append_does_not_grow_and_late_readers_need_few_requests():
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)
    costs = []
    for number in range(1500):
        requests = [0]

        def counted(_action: str, _key: str, requests: list[int] = requests) -> None:
            requests[0] += 1

        bucket.before = counted
        await append(logs, str(number))
        costs.append(requests[0])
    # One write and one look for the seal; now and then the copies of what came since the last ones.
    assert sorted(costs)[len(costs) // 2] == 2
    assert sum(costs[1000:]) <= 1.2 * sum(costs[:500])
    bucket.before = lambda _action, _key: None
    bucket.reads = 0
    assert len(told(bucket)) == 1500
    assert bucket.reads < 200
    # A server that knows nothing of the log, and one that has not looked for long.
    bucket.reads = 0
    await append(ClientLogs(bucket), "late")
    assert bucket.reads < 10


async def test_a_server_that_has_not_appended_for_long_finds_the_end_with_few_requests():
    bucket = MemoryBucket()
    idle, busy = ClientLogs(bucket), ClientLogs(bucket)
    await append(idle, "first")
    for number in range(1000):
        await append(busy, str(number))
    bucket.reads = 0
    await append(idle, "last")
    assert bucket.reads < 100
    assert told(bucket) == ["first", *map(str, range(1000)), "last"]


@pytest.mark.parametrize("meet_at", range(1, 12))
async def test_an_append_that_meets_the_end_of_the_run_is_in_the_log_or_refused(meet_at):
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)
    await append(logs, "before")
    left = [meet_at]

    def seal_now(_action: str, _key: str) -> None:
        left[0] -= 1
        if left[0] == 0:
            seal(bucket, TASK)

    bucket.before = seal_now
    try:
        await append(logs, "met")
        accepted = True
    except Conflict:
        accepted = False
    bucket.before = lambda _action, _key: None
    seal(bucket, TASK)
    assert told(bucket) == ["before", *(["met"] if accepted else [])]
    with pytest.raises(Conflict):
        await append(logs, "after")


async def test_a_bucket_that_is_away_refuses_what_waits_and_the_next_goes_through():
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)

    def away(_action: str, _key: str) -> None:
        raise BucketUnavailable("away")

    bucket.before = away
    refused = await asyncio.gather(*(append(logs, str(n)) for n in range(5)), return_exceptions=True)
    assert [type(each) for each in refused] == [BucketUnavailable] * 5
    bucket.before = lambda _action, _key: None
    await append(logs, "later")
    assert told(bucket) == ["later"]


async def test_a_client_that_leaves_does_not_take_the_others_entries_with_it():
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)
    leaving = [asyncio.create_task(append(logs, f"left {n}")) for n in range(3)]
    staying = [asyncio.create_task(append(logs, f"stayed {n}")) for n in range(3)]
    await asyncio.sleep(0)
    for task in leaving:
        task.cancel()
    await asyncio.gather(*staying)
    await asyncio.gather(*leaving, return_exceptions=True)
    assert {f"stayed {n}" for n in range(3)} <= set(told(bucket))
    await logs.close()


async def test_numbers_of_entries_are_kept_over_segments_copies_and_the_seal():
    bucket = MemoryBucket()
    logs = ClientLogs(bucket)

    def numbered(end: Any, number: int) -> list[Draft]:
        return [told_draft(json.dumps(number), number)] if number == end.sequence + 1 else []

    for number in (1, 2, 2, 4, 3):
        end = await logs.append(TASK, lambda end, number=number: numbered(end, number), 1)  # type: ignore[misc]
        await append(logs, "between")
    assert end.sequence == 3
    assert chain_end(bucket, TASK).sequence == 3
    assert [text for text in told(bucket) if text != "between"] == ["1", "2", "3"]
