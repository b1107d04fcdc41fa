"""What the follower of an agent keeps, and when it ends the agent itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import cast

import pytest

from activities.agent_output import AgentOutput
from activities.agent_session import AgentSession, Chunk, Ended
from activities.follower import VERDICT, Follower
from foundation.errors import GuestUnreachable, MachineError, MachineLost
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, read_entries
from storage.segments import GuestStream
from tests.memory_bucket import TASK, Clock, MemoryBucket, stored
from workflows.states import Cause

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
    """One attempt at following; what is done at a verdict is in ``stops`` with what the log had by then."""

    def __init__(self, bucket: MemoryBucket, clock: Clock, most_bytes: int = 10**9, turn_end: bool = False) -> None:
        self.clock = clock
        self.stops: list[tuple[Cause, list[str]]] = []
        self.turns: list[int] = []
        self.on_stop: Callable[[], None] = lambda: None
        self.writer = RunLogWriter(bucket, TASK, Redactor({}))
        self.output = AgentOutput()

        def stop(cause: Cause) -> None:
            events = [json.loads(entry.data) for entry in read_entries(bucket, TASK) if entry.stream == "event"]
            self.stops.append((cause, [event["cause"] for event in events if event["type"] == VERDICT]))
            self.on_stop()

        def ended_turn(results: int) -> bool:
            self.turns.append(results)
            return turn_end

        self.follower = Follower(
            self.writer, self.output, timedelta(seconds=HANG), most_bytes, ended_turn, lambda: None, stop, clock=clock
        )
        self.offsets = self.writer.resume()
        self.follower.read_back(read_entries(bucket, TASK))

    def follow(self, *doings: Piece) -> Ended:
        self.guest = Guest(self.clock, *doings)
        return self.follower.follow(cast("AgentSession", self.guest), self.offsets)


def lines(count: int, first: int = 0) -> list[Chunk]:
    return [Chunk("stdout", (first + number) * len(LINE), LINE) for number in range(count)]


def test_an_agent_that_writes_without_end_is_killed_and_its_log_stays_within_the_limit() -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock, 1000)
    assert attempt.follow(*lines(100)).exit_code == 137
    assert attempt.stops == [(Cause.LOG_LIMIT, ["log_limit"])]
    assert len(stored(bucket, "stdout")) == 1000 + len(LINE)
    # A further attempt, on another worker, takes nothing more.
    attempt = Attempt(bucket, clock, 1000)
    assert attempt.follow(*lines(100)).exit_code == 137
    assert (attempt.follower.verdict, attempt.stops) == (Cause.LOG_LIMIT, [(Cause.LOG_LIMIT, ["log_limit"])])
    assert len(stored(bucket, "stdout")) == 1000 + len(LINE)


@pytest.mark.parametrize("most", [100 * len(LINE), 10**9])
def test_an_agent_within_the_limit_is_left_alone(most: int) -> None:
    bucket = MemoryBucket()
    attempt = Attempt(bucket, Clock(), most)
    assert attempt.follow(*lines(100), Ended(0)) == Ended(0)
    assert (attempt.follower.verdict, attempt.stops) == (None, [])
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
@pytest.mark.parametrize("after", [(), (MachineLost("gone"),), (GuestUnreachable("silent"),), (Ended(None),)])
def test_a_silent_guest_is_stopped_in_time_whatever_it_does_then(doings, after) -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock)
    attempt.on_stop = lambda: setattr(attempt.guest, "doings", ())
    ended = attempt.follow(*doings, HANG, 1.0, *after)
    assert ended.exit_code is None
    assert attempt.stops == [(Cause.NO_OUTPUT_TIMEOUT, ["no_output_timeout"])]
    assert "10m" in (attempt.follower.judgement or "")
    assert clock.now < 500 + HANG + 40


@pytest.mark.parametrize("failure", [MachineLost("gone"), GuestUnreachable("silent")])
def test_an_attempt_that_ends_at_its_stop_leaves_its_verdict_to_the_next(failure: MachineError) -> None:
    bucket, clock = MemoryBucket(), Clock()
    first = Attempt(bucket, clock)

    def killed() -> None:
        raise RuntimeError("the worker was killed")

    first.on_stop = killed
    with pytest.raises(RuntimeError):
        first.follow(*lines(1))
    second = Attempt(bucket, clock)
    assert second.follow(failure) == Ended(None)
    assert second.stops == [(Cause.NO_OUTPUT_TIMEOUT, ["no_output_timeout"])]
    assert second.follower.judgement == first.follower.judgement


def test_without_a_verdict_a_lost_guest_is_told_to_the_caller() -> None:
    with pytest.raises(MachineLost):
        Attempt(MemoryBucket(), Clock()).follow(*lines(1), MachineLost("gone"))


def test_an_agent_that_waits_for_input_is_not_silent_until_its_session_is_closed() -> None:
    bucket, clock = MemoryBucket(), Clock()
    open_one = Attempt(bucket, clock)
    assert open_one.follow(Chunk("stdout", 0, GOOD), 10 * HANG, Ended(0)) == Ended(0)
    closed = Attempt(MemoryBucket(), clock, turn_end=True)
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
