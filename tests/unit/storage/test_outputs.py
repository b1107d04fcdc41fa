"""Output that outlives its machine: each byte at its offset, once, whoever stores it and however it comes."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import BucketUnavailable, Conflict
from foundation.service.processes import ProcessRecord
from storage.bucket import ObjectInfo
from storage.layout import TASKS
from storage.processes.outputs import PIECE_BYTES, OutputWriter, kept_output, kept_records, write_record
from storage.redaction import Redactor
from tests.stand_ins.memory_bucket import MemoryBucket

PLACE = TASKS.place("a-run")
SECRET = "sesame-42"
SECRETS = Redactor({"WORD": SECRET})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def writer(bucket: Any, most: int = 2**40, clock: Clock | None = None) -> OutputWriter:
    return OutputWriter(bucket, PLACE, "build", SECRETS, most, clock or Clock())


def away(_action: str, _key: str) -> None:
    raise BucketUnavailable("It does not answer")


def kept(bucket: Any, offset: int = 0) -> bytes:
    return b"".join(kept_output(bucket, PLACE, "build", "stdout", offset))


@given(st.lists(st.sampled_from([SECRET.encode(), b"ses", b"ame-42", b"\xff\0", b"x\n"])), st.randoms())
def test_every_byte_is_at_its_offset_whoever_stores_it(words: list[bytes], chance: random.Random) -> None:
    data, bucket, clock = b"".join(words), MemoryBucket(), Clock()
    one, other = writer(bucket, clock=clock), writer(bucket, clock=clock)
    fed = {each: each.resume()["stdout"] for each in (one, other)}
    while min(fed.values()) < len(data):
        each = chance.choice([one, other])
        piece = data[fed[each] : fed[each] + chance.randint(0, 7)]
        each.feed("stdout", fed[each], piece)
        fed[each] += len(piece)
        clock.now += chance.choice([0.0, 100.0])
        each.flush()
        if chance.random() < 0.1:
            fed[each] = each.resume()["stdout"]
    one.flush(last=True)
    other.flush(last=True)
    masked = data.replace(SECRET.encode(), b"*" * len(SECRET))
    assert kept(bucket) == masked
    for offset in (0, 1, len(data) // 2, len(data), len(data) + 5):
        assert kept(bucket, offset) == masked[offset:]


def test_little_is_stored_often_at_first_and_seldom_later_and_much_at_once() -> None:
    bucket, clock = MemoryBucket(), Clock()
    storing = writer(bucket, clock=clock)
    offset = storing.resume()["stdout"]
    for _ in range(24 * 3600):
        clock.now += 1
        storing.feed("stdout", offset, b"tick\n")
        offset += 5
        storing.flush()
    assert len(bucket.objects) < 5000
    storing.feed("stdout", offset, bytes(3 * PIECE_BYTES))
    assert len(kept(bucket)) >= offset + 2 * PIECE_BYTES


def test_what_is_read_late_in_a_long_output_costs_little_and_is_the_same() -> None:
    class Listed(MemoryBucket):
        listed = 0

        def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
            for each in super().list(prefix, start_after=start_after):
                self.listed += 1
                yield each

    bucket = Listed()
    data = random.Random(5).randbytes(6 * PIECE_BYTES)
    # Pieces of all lengths, one of them longer than any that is written now.
    begin, whole = 0, bytes(5 * PIECE_BYTES) + data
    for size in [5 * PIECE_BYTES, *range(1, 9000, 7)]:
        bucket.put(PLACE.process_piece_key("build", "stdout", begin), whole[begin : begin + size])
        begin += size
    stored = whole[:begin]
    for offset in (0, 1, 2 * PIECE_BYTES, 4 * PIECE_BYTES, 5 * PIECE_BYTES - 1, 5 * PIECE_BYTES, 7 * PIECE_BYTES):
        assert kept(bucket, offset) == stored[offset:]
    bucket.listed = 0
    assert kept(bucket, begin - 10) == stored[-10:]
    assert bucket.listed < len(bucket.objects) / 2
    assert kept(bucket, begin) == kept(bucket, begin + 10 * PIECE_BYTES) == b""


def test_what_is_beyond_the_limit_is_left_out_and_a_gap_is_refused() -> None:
    bucket = MemoryBucket()
    storing = writer(bucket, most=10)
    storing.resume()
    with pytest.raises(Conflict):
        storing.feed("stdout", 3, b"late")
    for offset in range(0, 40, 4):
        storing.feed("stdout", offset, b"abcd")
    storing.flush(last=True)
    assert kept(bucket) == b"abcdabcdab"


def test_nothing_is_lost_while_the_bucket_is_away() -> None:
    bucket = MemoryBucket()
    storing = writer(bucket)
    storing.resume()
    storing.feed("stdout", 0, b"before ")
    answers, bucket.before = bucket.before, away
    with pytest.raises(BucketUnavailable):
        storing.flush(last=True)
    bucket.before = answers
    storing.feed("stdout", 7, b"and after")
    storing.flush(last=True)
    assert kept(bucket) == b"before and after"


def test_what_the_bucket_says_of_processes_is_what_was_said_last() -> None:
    bucket = MemoryBucket()
    running = ProcessRecord(key="build", state="running")
    write_record(bucket, PLACE, running)
    write_record(bucket, PLACE, running.model_copy(update={"state": "exited", "exit_code": 3}))
    write_record(bucket, PLACE, running.model_copy(update={"key": "other.process"}))
    bucket.put(PLACE.process_record_key("broken"), b"{half")
    assert [(each.key, each.state) for each in kept_records(bucket, PLACE)] == [
        ("build", "exited"),
        ("other.process", "running"),
    ]


def test_no_value_is_cut_in_two_where_another_writer_may_begin() -> None:
    bucket = MemoryBucket()
    data = b"x" * (PIECE_BYTES - 4) + SECRET.encode() + b"y" * (2 * PIECE_BYTES + 7)
    one, other = writer(bucket), writer(bucket)
    one.resume()
    one.feed("stdout", 0, data)
    begun = other.resume()["stdout"]
    assert 0 < begun < len(data)
    other.feed("stdout", begun, data[begun:] + SECRET.encode()[:3])
    other.pause()
    other.resume()
    last = writer(bucket)
    begun = last.resume()["stdout"]
    assert begun == len(data)
    last.feed("stdout", begun, SECRET.encode())
    last.flush(last=True)
    assert kept(bucket) == (data + SECRET.encode()).replace(SECRET.encode(), b"*" * len(SECRET))
