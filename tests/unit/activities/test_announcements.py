"""Events of the steps: once for all attempts, without secrets, and without reading a long log for each."""

from __future__ import annotations

import json
import threading
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from temporalio.testing import ActivityEnvironment

from activities.step.announcements import announce, announce_event, log_done
from foundation.errors import BucketUnavailable, NotFound, TaskyardError
from storage.bucket import Bucket
from storage.runlog import entries_since, read_entries
from tests.stand_ins.memory_bucket import REDACTOR, TASK, Clock, MemoryBucket, fill, writer_of
from workflows import steps


def said(bucket: MemoryBucket, message: str, *, attempt: int, step: str = steps.STAGE.name, first: datetime) -> None:
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=attempt, activity_type=step, scheduled_time=first)
    environment.run(lambda: announce(cast("Bucket", bucket), TASK.id, "progress", message, redactor=REDACTOR))


def messages(bucket: MemoryBucket) -> list[str]:
    return [json.loads(entry.data)["message"] for entry in read_entries(bucket, TASK) if entry.stream == "event"]


def test_a_later_attempt_says_only_what_is_new_and_a_later_step_all() -> None:
    bucket, now = MemoryBucket(), datetime.now(UTC)
    for attempt in (1, 2, 3):
        said(bucket, "begun", attempt=attempt, first=now)
        said(bucket, f"attempt {attempt}", attempt=attempt, first=now)
    assert messages(bucket) == ["begun", "attempt 1", "attempt 2", "attempt 3"]
    said(bucket, "begun", attempt=2, first=now + timedelta(hours=1))
    assert messages(bucket)[-1] == "begun"


def test_no_credentials_of_a_url_are_announced() -> None:
    bucket = MemoryBucket()
    said(bucket, "unable to access 'https://hush:tok@git.example.org/x'", attempt=1, first=datetime.now(UTC))
    assert messages(bucket) == ["unable to access 'https://git.example.org/x'"]


def test_no_secret_is_announced() -> None:
    bucket = MemoryBucket()
    said(bucket, "found tok-12345 in a name", attempt=1, first=datetime.now(UTC))
    assert messages(bucket) == ["found [redacted:TOKEN] in a name"]


@pytest.mark.parametrize("attempt", [1, 5])
def test_what_an_announcement_costs_does_not_grow_with_the_log(attempt: int) -> None:
    costs = []
    for length in (10, 2000):
        bucket = MemoryBucket()
        fill(bucket, length)
        reads: list[str] = []
        bucket.before = lambda action, key, reads=reads: reads.append(key) if action == "get" else None
        said(bucket, "new", attempt=attempt, first=datetime.now(UTC) + timedelta(hours=1))
        costs.append(len(reads))
    assert costs[1] <= costs[0] + 2


@pytest.mark.parametrize("count", [0, 1, 300])
def test_the_entries_since_a_time(count: int) -> None:
    bucket = MemoryBucket()
    fill(bucket, 400 - count)
    moment = datetime.now(UTC)
    later = writer_of(bucket, Clock())
    for number in range(count):
        later.feed("stdout", b"%05d\n" % number, (400 - count + number) * 6)
        later.flush(force=True)
    assert [entry.id for entry in entries_since(bucket, TASK, moment)] == list(range(401 - count, 401))
    assert len(entries_since(bucket, TASK, datetime.min.replace(tzinfo=UTC))) == 400


@pytest.mark.parametrize(
    ("error", "attempt", "fails"),
    [
        (BucketUnavailable("away"), 1, True),
        (BucketUnavailable("away"), 4, True),
        (BucketUnavailable("away"), 5, False),
        (NotFound("no such bucket"), 1, False),
    ],
)
def test_a_step_that_has_done_its_work_does_not_fail_for_its_log(
    error: TaskyardError, attempt: int, fails: bool
) -> None:
    def announce_it() -> None:
        raise error

    def done() -> str:
        log_done(announce_it)
        return "done"

    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=attempt)
    if fails:
        with pytest.raises(type(error)):
            environment.run(done)
    else:
        assert environment.run(done) == "done"


@pytest.mark.parametrize("attempt", [1, 5])
def test_a_step_that_has_done_its_work_does_not_wait_for_a_silent_bucket(
    attempt: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("activities.step.announcements._LOGGING_SECONDS", 0.01)
    spoke = threading.Event()
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=attempt)

    def announce_it() -> None:
        spoke.wait()

    try:
        with pytest.raises(BucketUnavailable) if attempt == 1 else nullcontext():
            environment.run(log_done, announce_it)
    finally:
        spoke.set()


def test_a_step_that_does_again_what_an_earlier_one_may_have_done_logs_it_once() -> None:
    bucket = MemoryBucket()
    now = datetime.now(UTC)
    for since in (None, now, now):
        environment = ActivityEnvironment()
        event = {"type": "permission_resolved", "message": "Answered: allow."}
        environment.run(
            lambda event=event, since=since: announce_event(cast("Bucket", bucket), TASK.id, event, REDACTOR, since)
        )
    assert messages(bucket) == ["Answered: allow."]
