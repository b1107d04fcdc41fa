"""Who follows a log through its host gets what the bucket will have: same ids, no gap, no double, whatever dies."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.errors import BucketUnavailable
from storage import runlog
from storage.live import journal
from storage.live.host import HostLogs
from storage.live.journal import Superseded
from storage.live.numbered import Intake, Numbered
from storage.reader import LogReader
from storage.runlog import RunLogWriter, read_entries, seal
from storage.sealing import append_behind
from storage.segments import LogEntry, event_draft
from tests.stand_ins.memory_bucket import REDACTOR, TASK, Clock, MemoryBucket, expected

_READERS = 3
_sources = st.lists(
    st.sampled_from([b"tok-12345 ", b"tok-", b"\xc3", b"first line of it\n", b"a\n", b"bc\n", b"\n", b"long " * 9]),
    min_size=8,
    max_size=40,
).map(b"".join)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("feed"), st.integers(1, 30)),
        st.tuples(st.just("feed"), st.integers(1, 30)),
        st.tuples(st.just("flush"), st.booleans()),
        st.tuples(st.sampled_from(["event", "number", "tick", "again", "torn"]), st.none()),
        st.tuples(st.sampled_from(["live", "stored"]), st.none()),
        st.tuples(st.sampled_from(["fail-before", "fail-after"]), st.integers(1, 4)),
        st.tuples(st.just("die"), st.integers(1, 12)),
    ),
    min_size=10,
    max_size=60,
)
_losses = st.lists(st.sampled_from(["foreign", "host", "damage", "full", None]), max_size=3)


class Killed(BaseException):
    """The process has gone."""


class Reader:
    """A follower: from the host or from the bucket, whichever it comes to."""

    def __init__(self, bucket: MemoryBucket) -> None:
        self.bucket = bucket
        self.seen = 0
        self.entries: list[LogEntry] = []

    def take(self, entry: LogEntry) -> None:
        if entry.id == self.seen + 1:
            self.entries.append(entry)
            self.seen = entry.id

    def live(self, logs: HostLogs) -> None:
        with logs.listening(TASK) as told:
            for line in told.after(self.seen, 20) or []:
                self.take(LogEntry.model_validate_json(line))

    def stored(self) -> None:
        for entry in LogReader(self.bucket, TASK, self.seen).read():
            self.take(entry)

    def read(self) -> list[LogEntry]:
        return [entry for entry in self.entries if not entry.unused]


class World:
    """One agent's files, followed by a host whose process may die at any of its reads and writes."""

    def __init__(self, files: dict[str, bytes], directory: Path, *, aside: bool) -> None:
        self.files = files
        self.aside = aside
        self.directory = directory
        self.bucket = MemoryBucket()
        self.clock = Clock()
        self.readers = [Reader(self.bucket) for _ in range(_READERS)]
        self.countdown = 0
        self.events = 0
        # The last number that a client has heard of, which sends again what is behind it.
        self.numbered = 0
        self.whole = True
        self.stack = ExitStack()
        # Readers hold the log between two looks, as followers do.
        self.listeners = ExitStack()
        self.writer: RunLogWriter | None = None
        self.start()

    def start(self) -> None:
        self.stack.close()
        self.listeners.close()
        self.bucket.before = self.bucket.after = lambda _action, _key: self.pass_by()
        self.countdown = 0
        self.logs = HostLogs(self.bucket, self.directory, patience=0)
        self.listeners.enter_context(self.logs.listening(TASK))
        self.writer = None

    def pass_by(self) -> None:
        self.countdown -= 1
        if not self.countdown:
            raise Killed

    def step(self, action: str, value: int | bool | None) -> None:
        actions: dict[str, Callable[[], None]] = {
            "feed": lambda: self.feed(int(value or 1)),
            "flush": lambda: self.open().flush(force=bool(value)),
            "event": self.event,
            "number": self.number,
            "tick": self.tick,
            "again": self.again,
            "torn": self.torn,
            "live": lambda: self.readers[2].live(self.logs),
            "stored": self.readers[2].stored,
            "fail-before": lambda: self.fail("before", int(value or 1)),
            "fail-after": lambda: self.fail("after", int(value or 1)),
            "die": lambda: setattr(self, "countdown", value),
            "foreign": lambda: self.lose(self.append_past_it),
            "host": lambda: self.lose(self.lose_host),
            "damage": lambda: self.lose(self.damage),
            "full": lambda: self.lose(self.fill),
        }
        try:
            self.act(actions[action], begin_again=bool(value))
        except Killed:
            self.start()

    def act(self, action: Callable[[], None], *, begin_again: bool) -> None:
        try:
            action()
            # One reader has whatever was told, one whatever was stored.
            self.readers[0].live(self.logs)
            self.readers[1].stored()
        except BucketUnavailable:
            if begin_again:
                self.again()
        except Superseded:
            self.writer = None

    def open(self) -> RunLogWriter:
        if self.writer is None:
            self.again()
        assert self.writer is not None
        return self.writer

    def again(self) -> None:
        """Another attempt in the same process; the last one may not have noticed."""
        self.writer = None
        try:
            writer = self.stack.enter_context(self.logs.open(TASK, REDACTOR))
            writer._clock = self.clock
            writer._aside = (lambda store: store()) if self.aside else None
            self.positions = writer.resume()
        except BucketUnavailable:
            return self.again()
        self.writer = writer
        return None

    def feed(self, count: int) -> None:
        writer = self.open()
        stream = "stdout" if count % 2 else "stderr"
        start = self.positions[stream]
        data = self.files[stream][start : start + count]
        self.positions[stream] += len(data)
        writer.feed(stream, data, start)

    def event(self) -> None:
        draft = event_draft({"n": self.events})
        self.logs.append(TASK, lambda _: [draft])
        self.events += 1

    def number(self) -> None:
        intake = self.next_numbers()
        self.logs.append(TASK, intake.drafts)
        self.numbered = intake.outcome().last

    def next_numbers(self) -> Intake:
        return Intake([Numbered(number, f"{number}\n") for number in range(max(1, self.numbered), self.numbered + 3)])

    def tick(self) -> None:
        self.clock.now += 1

    def fail(self, moment: str, count: int) -> None:
        left = [count]

        def fail_once(_action: str, _key: str) -> None:
            self.pass_by()
            left[0] -= 1
            if not left[0]:
                raise BucketUnavailable("away")

        setattr(self.bucket, moment, fail_once)

    def journal_file(self) -> Path:
        return self.directory / TASK.prefix.rstrip("/")

    def torn(self) -> None:
        """The process dies within a write."""
        self.start()
        if self.journal_file().exists():
            with self.journal_file().open("ab") as file:
                file.write(b'{"id": 7, "ts')

    def lose(self, loss: Callable[[], None]) -> None:
        self.whole = False
        loss()

    def append_past_it(self) -> None:
        """As a server does that knows nothing of the host."""
        foreign = event_draft({"foreign": True})
        append_behind(self.bucket, TASK, None, lambda _: [foreign])
        append_behind(self.bucket, TASK, None, self.next_numbers().drafts)

    def lose_host(self) -> None:
        self.start()
        shutil.rmtree(self.directory, ignore_errors=True)

    def damage(self) -> None:
        self.start()
        if self.journal_file().exists():
            body = self.journal_file().read_bytes()
            self.journal_file().write_bytes(body[: len(body) // 2] + b"\n")

    def fill(self) -> None:
        if self.journal_file().exists():
            self.journal_file().write_bytes(b"")

    def end(self) -> None:
        self.start()
        with self.logs.open(TASK, REDACTOR) as last:
            for stream, offset in last.resume().items():
                last.feed(stream, self.files[stream][offset:], offset)
            last.close()
        end = event_draft({"end": True})
        self.logs.append(TASK, lambda _: [end])
        assert not self.journal_file().exists()
        seal(self.bucket, TASK)
        self.listeners.close()


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_sources, _sources, _steps, _losses, st.integers(1, 6), st.integers(2, 20), st.booleans())
def test_followers_get_every_entry_once_from_host_and_bucket(out, error, steps, losses, every, reserved, aside):
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(runlog, "RESERVED_IDS", reserved)
        patch.setattr(journal, "_REWRITTEN_BYTES", 200)
        world = World({"stdout": out, "stderr": error}, Path(directory) / "live", aside=aside)
        write, truncate = os.write, os.ftruncate
        patch.setattr(journal.os, "write", lambda *given: (world.pass_by(), write(*given), world.pass_by())[1])
        patch.setattr(journal.os, "ftruncate", lambda *given: (truncate(*given), world.pass_by())[0])
        for number, step in enumerate(steps):
            world.step(*step)
            if losses and number % every == every - 1 and (loss := losses.pop()):
                world.step(loss, None)
        world.end()
        world.stack.close()
    stored = list(read_entries(world.bucket, TASK))
    by_id = {entry.id: entry for entry in stored}
    for stream, source in world.files.items():
        assert "".join(entry.data for entry in stored if entry.stream == stream) == expected(source)
    told = [json.loads(entry.data).get("n") for entry in stored if entry.stream == "event"]
    assert set(told) >= set(range(world.events))
    numbers = [entry.offset for entry in stored if entry.stream == "told"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= world.numbered
    for reader in world.readers:
        reader.stored()
        read = reader.read()
        assert [entry for entry in read if entry.id in by_id] == stored
        if world.whole:
            assert read == stored
