"""Who came into a machine stands in its run's log: once a minute, without secrets, and whatever the bucket does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from foundation.errors import BucketUnavailable
from foundation.settings import Settings
from machines.paths import volatile_file
from storage.layout import TASKS
from storage.runlog import read_entries, seal
from tests.stand_ins.host_site import MACHINE, RecordedMachines
from tests.stand_ins.memory_bucket import MemoryBucket
from worker.service.access import AccessLog

RUN = TASKS.place("one")


def events(bucket: MemoryBucket) -> list[dict[str, Any]]:
    return [json.loads(entry.data) for entry in read_entries(bucket, RUN)]


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def accesses(home: Path, bucket: MemoryBucket) -> AccessLog:
    return AccessLog(Settings(home=home), cast("Any", bucket))


async def test_a_use_is_one_event_for_each_kind_and_target(accesses: AccessLog, bucket: MemoryBucket) -> None:
    record = RecordedMachines().add()
    for kind, message in (("exec", "Ran\n true"), ("exec", "Ran true"), ("exec", "Ran false"), ("shell", "Ran true")):
        for _ in range(50):
            accesses.note(record, kind, message)
    await accesses.close()
    told = sorted((event["type"], event["kind"], event["message"]) for event in events(bucket))
    assert told == [("access", "exec", "Ran false"), ("access", "exec", "Ran true"), ("access", "shell", "Ran true")]


async def test_no_secret_and_no_long_text_gets_into_it(home: Path, accesses: AccessLog, bucket: MemoryBucket) -> None:
    secret = "hush-hush-" + "s" * 40
    path = volatile_file(Settings(home=home), MACHINE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"TOKEN": secret}))
    try:
        record = RecordedMachines().add()
        accesses.note(record, "exec", f"Ran curl -H {secret} https://me:pass@example.org")
        # It begins where the message is cut.
        accesses.note(record, "exec", "x" * 195 + secret)
        await accesses.close()
    finally:
        path.unlink()
    told = json.dumps(events(bucket))
    assert "hush" not in told
    assert "pass@" not in told
    assert "[redacted:TOKEN]" in told
    assert all(len(event["message"]) <= 200 for event in events(bucket))


async def test_a_closed_log_a_machine_of_nobody_and_a_bucket_that_is_away_are_no_faults(
    accesses: AccessLog, bucket: MemoryBucket
) -> None:
    machines = RecordedMachines()
    accesses.note(machines.add(owner_workflow=""), "exec", "Ran one")
    await accesses.close()
    assert not bucket.objects

    def away(*_: str) -> None:
        raise BucketUnavailable("away")

    bucket.before = away
    for number in range(1000):
        accesses.note(machines.add(), "exec", f"Ran {number}")
    await accesses.close()
    bucket.before = lambda *_: None
    seal(bucket, RUN)
    accesses.note(machines.add(), "exec", "Ran two")
    await accesses.close()
    assert events(bucket) == []
