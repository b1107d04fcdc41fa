"""The writer of the run log: what it stores when, and what it makes of restarts and of other writers."""

from __future__ import annotations

import json
import threading

import pytest

from foundation.errors import BucketUnavailable, Conflict
from storage import runlog
from storage.live.host import HostLogs
from storage.runlog import append_event, read_entries
from tests.stand_ins.memory_bucket import (
    REDACTOR,
    TASK,
    Clock,
    MemoryBucket,
    check_ids,
    stored,
    writer_of,
)


def segment_count(bucket: MemoryBucket) -> int:
    return sum(key.startswith(TASK.segments_prefix) for key in bucket.objects)


def test_the_first_entry_is_stored_at_once_and_further_ones_a_few_times_a_second():
    bucket, clock = MemoryBucket(), Clock()
    writer = writer_of(bucket, clock)
    writer.feed("stdout", b"one\n", 0)
    assert segment_count(bucket) == 1
    writer.feed("stdout", b"two\n", 4)
    writer.flush()
    assert segment_count(bucket) == 1
    clock.now += runlog.FLUSH_SECONDS
    writer.flush()
    assert segment_count(bucket) == 2
    writer.feed("stdout", b"x" * runlog.FLUSH_BYTES + b"\n", 8)
    assert segment_count(bucket) == 3
    assert [entry.data[:3] for entry in read_entries(bucket, TASK)] == ["one", "two", "xxx"]


def test_partial_lines_are_held_until_the_end():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    writer.feed("stderr", b"whole\npart", 0)
    writer.flush(force=True)
    assert (stored(bucket, "stderr"), writer.stored) == ("whole\n", {"stdout": 0, "stderr": 6})
    writer.close()
    assert (stored(bucket, "stderr"), writer.stored["stderr"]) == ("whole\npart", 10)
    with pytest.raises(Conflict):
        writer.feed("stderr", b"more", 10)


def test_bytes_fed_before_are_dropped_and_a_gap_is_refused():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    writer.feed("stdout", b"abc\n", 0)
    writer.feed("stdout", b"bc\nd\n", 1)
    with pytest.raises(Conflict) as refused:
        writer.feed("stdout", b"e\n", 7)
    assert refused.value.details["expected"] == 6
    writer.flush(force=True)
    assert stored(bucket, "stdout") == "abc\nd\n"


def test_bytes_that_are_no_text_are_shown_as_such_and_counted_as_they_are():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    writer.feed("stdout", b"\xff\xc3\xa9\xe2\x82\n", 0)
    assert [(entry.data, entry.offset) for entry in read_entries(bucket, TASK)] == [("\ufffdé\ufffd\n", 6)]


def test_events_are_json_with_secrets_replaced():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    writer.event({"type": "x", "text": 'say "tok-12345"', "name": "\udcff"})
    append_event(bucket, TASK, {"token": "tok-12345"}, REDACTOR)
    events = [json.loads(entry.data) for entry in read_entries(bucket, TASK)]
    assert events == [{"type": "x", "text": 'say "[redacted:TOKEN]"', "name": "?"}, {"token": "[redacted:TOKEN]"}]


def test_while_the_bucket_is_away_little_is_held_and_nothing_is_lost():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    source = b"".join(b"%01023d\n" % number for number in range(30_000))
    away = True

    def fail(_action: str, _key: str) -> None:
        if away:
            raise BucketUnavailable("away")

    bucket.before = fail
    fed = 0
    with pytest.raises(BucketUnavailable):
        writer.feed("stdout", source[:1024], fed)
    for _ in range(100):
        chunk = source[fed : fed + 2**18]
        with pytest.raises(BucketUnavailable):
            writer.feed("stdout", chunk, fed)
        fed += len(chunk)
    away = False
    with pytest.raises(Conflict) as refused:
        writer.feed("stdout", source[fed:], fed)
    assert refused.value.details["expected"] <= 6 * 2**20
    offset = writer.resume()["stdout"]
    writer.feed("stdout", source[offset:], offset)
    writer.close()
    assert stored(bucket, "stdout") == source.decode()


def test_a_put_whose_answer_was_lost_is_not_repeated_as_new():
    bucket = MemoryBucket()
    writer = writer_of(bucket)

    def lose_answer(action: str, _key: str) -> None:
        if action == "put":
            bucket.after = lambda _action, _key: None
            raise BucketUnavailable("the answer was lost")

    bucket.after = lose_answer
    with pytest.raises(BucketUnavailable):
        writer.feed("stdout", b"once\n", 0)
    writer.event({"n": 1})
    writer.flush(force=True)
    assert [entry.data for entry in read_entries(bucket, TASK)] == ["once\n", '{"n": 1}']


def test_an_overtaken_writer_drops_what_the_other_stored_and_goes_on_behind_it():
    bucket = MemoryBucket()
    stale = writer_of(bucket)
    stale.feed("stdout", b"one\n", 0)
    stale.feed("stdout", b"two\nthree\nfo", 4)
    current = writer_of(bucket)
    current.feed("stdout", b"two\n", 4)
    append_event(bucket, TASK, {"between": True})
    stale.flush(force=True)
    stale.feed("stdout", b"ur\n", 16)
    stale.close()
    assert stored(bucket, "stdout") == "one\ntwo\nthree\nfour\n"
    check_ids(list(read_entries(bucket, TASK)))


def test_events_from_beside_neither_stop_the_writer_nor_get_lost():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    for number in range(20):
        writer.feed("stdout", b"%02d\n" % number, number * 3)
        append_event(bucket, TASK, {"n": number})
    writer.close()
    assert stored(bucket, "stdout") == "".join(f"{number:02d}\n" for number in range(20))
    assert stored(bucket, "event").count("n") == 20


def test_entries_are_told_while_a_segment_is_on_its_way(tmp_path):
    bucket = MemoryBucket()
    arriving, arrived = threading.Event(), threading.Event()
    puts: list[str] = []

    def slowly(action: str, key: str) -> None:
        if action == "put":
            puts.append(key)
            arriving.set()
            assert arrived.wait(5)

    with HostLogs(bucket, tmp_path) as logs, logs.open(TASK, REDACTOR) as writer, logs.listening(TASK) as told:
        writer._clock = clock = Clock()
        writer.feed("stdout", b"one\n", 0)
        bucket.before = slowly
        clock.now += 1
        writer.feed("stdout", b"two\n", 4)
        assert arriving.wait(30)
        clock.now += 1
        writer.feed("stdout", b"three\n", 8)
        writer.flush()
        assert len(told.after(0, 10) or []) == 3
        assert [entry.data for entry in read_entries(bucket, TASK)] == ["one\n"]
        arrived.set()
        writer.flush(force=True)
        assert [entry.data for entry in read_entries(bucket, TASK)] == ["one\n", "two\n", "three\n"]
        assert puts == [TASK.segment_key(2), TASK.segment_key(3)]


def test_what_the_bucket_refuses_aside_is_raised_by_a_later_call_and_not_lost(tmp_path):
    bucket = MemoryBucket()

    def fail(action: str, _key: str) -> None:
        if action == "put":
            bucket.before = lambda _action, _key: None
            raise BucketUnavailable("away")

    with HostLogs(bucket, tmp_path) as logs, logs.open(TASK, REDACTOR) as writer:
        writer._clock = clock = Clock()
        writer.feed("stdout", b"one\n", 0)
        bucket.before = fail
        clock.now += 1
        writer.feed("stdout", b"two\n", 4)
        writer.settle()
        with pytest.raises(BucketUnavailable):
            writer.flush()
        writer.flush(force=True)
    assert [entry.data for entry in read_entries(bucket, TASK)] == ["one\n", "two\n"]
