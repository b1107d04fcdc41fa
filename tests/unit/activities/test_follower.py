"""What the follower of an agent keeps, and when it ends the agent itself."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import cast
from unittest.mock import Mock

import pytest

from activities.agent.follower import VERDICT, Follower
from activities.agent.output import AgentOutput
from activities.agent.session import AgentSession, Chunk, Ended
from foundation.errors import GuestUnreachable, MachineError, MachineLost
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, read_entries
from storage.segments import GuestStream
from tests.stand_ins.memory_bucket import TASK, Clock, MemoryBucket, stored
from workflows.runs.states import Cause

LINE = b"x" * 99 + b"\n"
GOOD = b'{"type": "result", "subtype": "success", "result": "done"}\n'
HANG = 600.0
Piece = Chunk | Ended | None | float | MachineError


class Guest:
    """A guest that does these things one after the other: writes, lets seconds pass, fails. Then it says nothing."""

    def __init__(self, clock: Clock, *doings: Piece) -> None:
        self.clock = clock
        self.doings = doings
        self.closed = 0

    def close(self) -> None:
        self.closed += 1

    def follow(self, offsets: Mapping[GuestStream, int]) -> Iterator[Chunk | Ended | None]:
        yield None
        for doing in self.doings:
            if isinstance(doing, MachineError):
                raise doing
            if isinstance(doing, float):
                self.clock.now += doing
                yield None
            elif not isinstance(doing, Chunk) or doing.offset >= offsets.get(doing.stream, 0):
                yield doing
        while True:
            self.clock.now += 1
            yield None


class Attempt:
    """One attempt at following."""

    def __init__(self, bucket: MemoryBucket, clock: Clock, most_bytes: int = 10**9, *, closes: bool = False) -> None:
        self.clock = clock
        self.turns: list[int] = []
        writer = RunLogWriter(bucket, TASK, Redactor({}))

        def ended_turn(results: int) -> bool:
            self.turns.append(results)
            return closes

        hang = timedelta(seconds=HANG)
        self.follower = Follower(writer, AgentOutput(), hang, most_bytes, ended_turn, lambda: None, clock=clock)
        self.offsets = writer.resume()
        self.follower.read_back(read_entries(bucket, TASK))

    def follow(self, *doings: Piece) -> Ended | None:
        self.guest = Guest(self.clock, *doings)
        return self.follower.follow(cast("AgentSession", self.guest), self.offsets)


def verdicts(bucket: MemoryBucket) -> list[tuple[str, str]]:
    events = [json.loads(entry.data) for entry in read_entries(bucket, TASK) if entry.stream == "event"]
    return [(event["cause"], event["message"]) for event in events if event["type"] == VERDICT]


def lines(count: int, first: int = 0) -> list[Chunk]:
    return [Chunk("stdout", (first + number) * len(LINE), LINE) for number in range(count)]


def test_an_agent_that_writes_without_end_is_judged_and_its_log_stays_within_the_limit() -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock, 1000)
    assert attempt.follow(*lines(100)) is None
    assert attempt.follower.verdict is Cause.LOG_LIMIT
    assert len(stored(bucket, "stdout")) == 1000 + len(LINE)
    assert verdicts(bucket) == [("log_limit", attempt.follower.judgement)]


@pytest.mark.parametrize("most", [100 * len(LINE), 10**9])
def test_an_agent_within_the_limit_is_left_alone(most: int) -> None:
    bucket = MemoryBucket()
    attempt = Attempt(bucket, Clock(), most)
    assert attempt.follow(*lines(100), Ended(0)) == Ended(0)
    assert (attempt.follower.verdict, verdicts(bucket)) == (None, [])
    assert len(stored(bucket, "stdout")) == 100 * len(LINE)


@pytest.mark.parametrize(
    "doings",
    [
        (),  # not one byte
        lines(3),
        [*lines(3), 500.0, *lines(1, 3)],
        [Chunk("stderr", 0, b"\0" * 100_000)],  # a line without an end
        [Chunk("stdout", 0, b"[" * 100_000 + b"\n")],
    ],
)
def test_a_silent_guest_is_judged_in_time(doings) -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock)
    assert attempt.follow(*doings) is None
    assert attempt.follower.verdict is Cause.NO_OUTPUT_TIMEOUT
    assert "10m" in (attempt.follower.judgement or "")
    assert verdicts(bucket) == [("no_output_timeout", attempt.follower.judgement)]
    assert clock.now < 500 + HANG + 10


def test_a_verdict_is_known_to_later_attempts() -> None:
    bucket, clock = MemoryBucket(), Clock()
    first = Attempt(bucket, clock)
    first.follow(*lines(1))
    second = Attempt(bucket, clock).follower
    assert (second.verdict, second.judgement) == (first.follower.verdict, first.follower.judgement)


@pytest.mark.parametrize("output", [[], lines(2)])
def test_silence_is_counted_over_all_attempts(output: list[Chunk], monkeypatch: pytest.MonkeyPatch) -> None:
    bucket, clock = MemoryBucket(), Clock()
    first = Attempt(bucket, clock)
    first.follower.open_log("Running", "prompt")
    with pytest.raises(GuestUnreachable):
        first.follow(*output, GuestUnreachable("broken"))
    later = datetime.now(UTC) + timedelta(seconds=HANG - 60)
    monkeypatch.setattr("activities.agent.follower.datetime", Mock(now=lambda _: later))
    began = clock.now
    second = Attempt(bucket, clock)
    assert second.follow() is None
    assert second.follower.verdict is Cause.NO_OUTPUT_TIMEOUT
    assert 50 < clock.now - began < 70


def test_without_a_verdict_a_lost_guest_is_told_to_the_caller() -> None:
    with pytest.raises(MachineLost):
        Attempt(MemoryBucket(), Clock()).follow(*lines(1), MachineLost("gone"))


def test_an_agent_that_waits_for_input_is_not_silent_until_its_session_is_closed() -> None:
    bucket, clock = MemoryBucket(), Clock()
    open_one = Attempt(bucket, clock)
    assert open_one.follow(Chunk("stdout", 0, GOOD), 10 * HANG, Ended(0)) == Ended(0)
    closed = Attempt(MemoryBucket(), clock, closes=True)
    closed.follow(Chunk("stdout", 0, GOOD))
    assert (closed.guest.closed, closed.follower.verdict) == (1, Cause.NO_OUTPUT_TIMEOUT)


def test_a_guest_cannot_fill_the_history_with_turns() -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock)
    chunks = [Chunk("stdout", number * len(GOOD), GOOD) for number in range(3000)]
    attempt.follow(*chunks, Ended(0))
    assert attempt.turns == list(range(1, 1001))


def test_what_the_run_was_asked_is_logged_once() -> None:
    bucket, clock = MemoryBucket(), Clock()
    for _ in range(3):
        Attempt(bucket, clock).follower.open_log("Running", "/login fails")
    events = [json.loads(entry.data) for entry in read_entries(bucket, TASK)]
    assert [(event["type"], event["message"]) for event in events] == [
        ("state_change", "Running"),
        ("user_message", "/login fails"),
    ]
