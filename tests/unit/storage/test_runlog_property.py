"""Log bytes are guest bytes, no gap and no duplicate, whatever restarts, overtakes, fails or crashes."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import BucketUnavailable
from storage import runlog
from storage.reader import LogReader
from storage.runlog import LogEntry, RunLogWriter, append_event, read_entries, seal
from tests.stand_ins.memory_bucket import REDACTOR, SECRETS, TASK, Clock, MemoryBucket, check_ids, expected, stored

_words = st.lists(
    st.one_of(
        st.sampled_from([value.encode() for value in SECRETS.values()]),
        st.sampled_from([b"tok-1", b"tok-", b"\xc3", b"first line of it\n", b"second", b"\n", b"\\u00e4", b"\xff"]),
        st.binary(max_size=12),
        st.text("abc \nä", max_size=12).map(str.encode),
    ),
    max_size=40,
)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(0, 2), st.integers(0, 60)),
        st.tuples(st.just("flush"), st.integers(0, 2), st.booleans()),
        st.tuples(st.just("restart"), st.integers(0, 2), st.none()),
        st.tuples(st.just("event"), st.integers(0, 2), st.none()),
        st.tuples(st.just("append"), st.none(), st.none()),
        st.tuples(st.just("tick"), st.none(), st.none()),
        st.tuples(st.sampled_from(["fail-before", "fail-after"]), st.none(), st.integers(1, 4)),
    ),
    max_size=80,
)


class World:
    """Three followers of the same two guest files run over each other; any of them may die, or the bucket fail."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.bucket = MemoryBucket()
        self.clock = Clock()
        self.writers: dict[int, RunLogWriter] = {}
        self.positions: dict[int, dict[str, int]] = {}
        self.reader = LogReader(self.bucket, TASK)
        self.seen: list[LogEntry] = []
        self.appended = 0

    def step(self, action: str, number: int | None, value: int | bool | None) -> None:
        actions: dict[str, Callable[[], None]] = {
            "feed": lambda: self.feed(number, value),
            "flush": lambda: self.writer(number).flush(force=value),
            "restart": lambda: self.restart(number),
            "event": lambda: self.writer(number).event({"note": value}),
            "append": self.append,
            "tick": self.tick,
            "fail-before": lambda: self.fail("before", value),
            "fail-after": lambda: self.fail("after", value),
        }
        try:
            actions[action]()
        except BucketUnavailable:
            # A follower whose bucket fails is started again, or goes on: both must do.
            if value:
                self.writers.pop(number, None)

    def writer(self, number: int) -> RunLogWriter:
        if number not in self.writers:
            self.restart(number)
        return self.writers[number]

    def restart(self, number: int) -> None:
        self.writers.pop(number, None)
        writer = RunLogWriter(self.bucket, TASK, REDACTOR, clock=self.clock)
        self.positions[number] = writer.resume()
        self.writers[number] = writer

    def feed(self, number: int, count: int) -> None:
        writer, position = self.writer(number), self.positions[number]
        stream = "stdout" if count % 2 else "stderr"
        data = self.files[stream][position[stream] : position[stream] + count]
        start = position[stream]
        # Taken even when storing fails: the writer holds it.
        position[stream] += len(data)
        writer.feed(stream, data, start)

    def append(self) -> None:
        append_event(self.bucket, TASK, {"n": self.appended})
        self.appended += 1

    def tick(self) -> None:
        self.clock.now += 1
        for entry in self.reader.read():
            self.seen.append(entry)

    def fail(self, moment: str, count: int) -> None:
        left = [count]

        def raise_once(_action: str, _key: str) -> None:
            left[0] -= 1
            if not left[0]:
                raise BucketUnavailable("away")

        setattr(self.bucket, moment, raise_once)

    def end(self) -> None:
        self.bucket.before = self.bucket.after = lambda _action, _key: None
        last = RunLogWriter(self.bucket, TASK, REDACTOR, clock=self.clock)
        for stream, offset in last.resume().items():
            last.feed(stream, self.files[stream][offset:], offset)
        last.close()
        for writer in self.writers.values():
            writer.flush(force=True)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_words, _words, _steps, st.integers(1, 5))
def test_log_bytes_are_guest_bytes(out_words, error_words, steps, merge_at):
    world = World({"stdout": b"".join(out_words), "stderr": b"".join(error_words)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog, "_MERGE_SEGMENTS", merge_at)
        for step in steps:
            world.step(*step)
        world.end()
    entries = list(read_entries(world.bucket, TASK))
    check_ids(entries)
    for stream, source in world.files.items():
        assert stored(world.bucket, stream) == expected(source)
    told = [json.loads(entry.data).get("n") for entry in entries if entry.stream == "event"]
    assert {number for number in told if number is not None} >= set(range(world.appended))
    seal(world.bucket, TASK)
    assert list(read_entries(world.bucket, TASK)) == entries
    world.tick()
    assert world.seen == entries
    assert world.reader.closed
