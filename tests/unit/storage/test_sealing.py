"""Reading the run log, live and closed, and closing it without a reader noticing."""

from __future__ import annotations

import pytest

from foundation.errors import BucketUnavailable, Conflict, InvalidParameter
from storage import runlog
from storage.layout import TASKS
from storage.reader import LogReader
from storage.runlog import LogEntry, append_event, read_entries, seal, tail
from tests.stand_ins.memory_bucket import (
    TASK,
    MemoryBucket,
    fill,
    stored,
    writer_of,
)


@pytest.mark.parametrize("sealed", [False, True])
def test_reading_from_any_id_and_from_the_end(sealed, monkeypatch):
    monkeypatch.setattr(runlog, "_MERGE_SEGMENTS", 7)
    bucket = MemoryBucket()
    entries = fill(bucket, 40)
    if sealed:
        seal(bucket, TASK)
    for after in range(len(entries) + 3):
        assert list(read_entries(bucket, TASK, after)) == entries[after:]
    for count in (0, 1, 5, 39, 40, 100):
        assert tail(bucket, TASK, count) == entries[len(entries) - min(count, 40) :]


def test_a_reader_that_begins_behind_the_end_gets_what_comes_later():
    bucket = MemoryBucket()
    fill(bucket, 10)
    reader = LogReader(bucket, TASK, after_id=12)
    assert list(reader.read()) == []
    writer = writer_of(bucket)
    writer.feed("stdout", b"10\n", 60)
    assert list(reader.read()) == []
    writer.feed("stdout", b"11\n12\n13\n14\n", 63)
    writer.flush(force=True)
    assert [entry.data for entry in reader.read()] == ["12\n", "13\n", "14\n"]


def test_a_run_without_a_log_reads_as_empty_and_can_be_sealed():
    bucket = MemoryBucket()
    assert list(read_entries(bucket, TASK)) == []
    assert tail(bucket, TASK, 5) == []
    seal(bucket, TASK)
    reader = LogReader(bucket, TASK)
    assert list(reader.read()) == []
    assert reader.closed


def test_a_reader_that_stops_half_way_goes_on_there(monkeypatch):
    monkeypatch.setattr(runlog, "_MERGE_SEGMENTS", 5)
    bucket = MemoryBucket()
    entries = fill(bucket, 23)
    reader = LogReader(bucket, TASK)
    read = [next(reader.read()) for _ in range(10)]
    seal(bucket, TASK)
    read += reader.read()
    assert read == entries


def test_late_readers_of_a_long_live_log_need_few_requests():
    bucket = MemoryBucket()
    fill(bucket, 1100)
    bucket.reads = 0
    assert sum(1 for _ in read_entries(bucket, TASK)) == 1100
    assert bucket.reads < 1100 / 10
    seal(bucket, TASK)
    bucket.reads = 0
    assert sum(1 for _ in read_entries(bucket, TASK)) == 1100
    assert bucket.reads <= 4


def test_a_closed_log_takes_nothing_more():
    bucket = MemoryBucket()
    writer = writer_of(bucket)
    writer.feed("stdout", b"one\n", 0)
    seal(bucket, TASK)
    writer.feed("stdout", b"two\n", 4)
    for late in (lambda: writer.flush(force=True), lambda: append_event(bucket, TASK, {}), lambda: writer_of(bucket)):
        with pytest.raises(Conflict, match="closed"):
            late()
    assert stored(bucket, "stdout") == "one\n"


def test_a_writer_that_slept_through_the_end_changes_nothing_that_is_read():
    bucket = MemoryBucket()
    asleep = writer_of(bucket)
    fill(bucket, 30)
    seal(bucket, TASK)
    entries = list(read_entries(bucket, TASK))
    asleep.feed("stdout", b"00000\nother\n", 0)
    asleep.flush(force=True)
    assert list(read_entries(bucket, TASK)) == entries
    assert tail(bucket, TASK, 3) == entries[-3:]


def test_an_event_that_meets_the_seal_is_in_the_log_or_refused():
    for meet_at in range(1, 30):
        bucket = MemoryBucket()
        fill(bucket, 3)
        left = [meet_at]

        def seal_now(_action: str, _key: str, bucket: MemoryBucket = bucket, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                seal(bucket, TASK)

        bucket.before = seal_now
        try:
            append_event(bucket, TASK, {"met": True})
            accepted = True
        except Conflict:
            accepted = False
        bucket.before = lambda _action, _key: None
        seal(bucket, TASK)
        assert [entry.stream for entry in read_entries(bucket, TASK)].count("event") == accepted


def test_a_seal_that_crashes_anywhere_is_finished_by_the_next_and_readers_see_all_the_time_everything(monkeypatch):
    monkeypatch.setattr(runlog, "_MERGE_SEGMENTS", 4)
    monkeypatch.setattr("storage.sealing._PART_BYTES", 300)
    crashes = 0
    for crash_at in range(1, 100):
        bucket = MemoryBucket()
        entries = fill(bucket, 10)
        half_way = LogReader(bucket, TASK)
        read = [next(half_way.read()) for _ in range(5)]
        changes = [0]
        watching = [False]

        def watch(
            action: str,
            _key: str,
            bucket: MemoryBucket = bucket,
            entries: list[LogEntry] = entries,
            changes: list[int] = changes,
            watching: list[bool] = watching,
            crash_at: int = crash_at,
        ) -> None:
            if action not in {"put", "delete"} or watching[0]:
                return
            watching[0] = True
            assert list(read_entries(bucket, TASK)) == entries
            assert tail(bucket, TASK, 4) == entries[-4:]
            watching[0] = False
            changes[0] += 1
            if changes[0] == crash_at:
                raise BucketUnavailable("crash")

        bucket.before = bucket.after = watch
        try:
            seal(bucket, TASK)
        except BucketUnavailable:
            crashes += 1
            seal(bucket, TASK)
        bucket.before = bucket.after = lambda _action, _key: None
        assert list(read_entries(bucket, TASK)) == entries
        assert [*read, *half_way.read()] == entries
        assert not any(key.startswith(TASK.merged_prefix) for key in bucket.objects)
    assert 10 < crashes < 99


def test_two_seals_at_once_agree():
    for meet_at in range(1, 60):
        bucket = MemoryBucket()
        entries = fill(bucket, 8)
        left = [meet_at]

        def seal_too(_action: str, _key: str, bucket: MemoryBucket = bucket, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == 0:
                seal(bucket, TASK)

        bucket.before = seal_too
        seal(bucket, TASK)
        bucket.before = lambda _action, _key: None
        assert list(read_entries(bucket, TASK)) == entries
        assert sum(key.startswith(TASK.log_prefix) for key in bucket.objects) == 3


def test_task_ids_that_could_leave_their_directory_are_refused():
    for bad in ("", "a/b", "..", "../x", "a\n", "é"):
        with pytest.raises(InvalidParameter):
            TASKS.place(bad)
