"""What the follower of an agent keeps, and when it ends the agent itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from unittest.mock import Mock

import pytest

from activities.agent.follower import VERDICT, Follower
from activities.agent.output import AgentOutput
from activities.agent.session import AgentSession, Chunk, Ended
from foundation.errors import GuestUnreachable, MachineError, MachineLost
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, read_entries
from storage.segments import GuestStream, LogEntry
from tests.stand_ins.memory_bucket import TASK, Clock, MemoryBucket, stored
from workflows.runs.states import Cause
from workflows.runs.steering.messages import AgentSaid

LINE = b"x" * 99 + b"\n"
GOOD = b'{"type": "result", "subtype": "success", "result": "done"}\n'
HANG = 600.0
PATIENCE = 1800.0
Piece = Chunk | Ended | None | float | MachineError


class Guest:
    """A guest that does these things one after the other: writes, lets seconds pass, fails. Then it says nothing."""

    def __init__(self, clock: Clock, taken: set[str], *doings: Piece) -> None:
        self.clock = clock
        self.taken = taken
        self.doings = doings
        self.closed = 0
        self.steered: list[Mapping[str, Any]] = []

    def steer(self, control_id: str, lines: Sequence[Mapping[str, Any]]) -> None:
        if control_id not in self.taken:
            self.taken.add(control_id)
            self.steered += lines

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

    def __init__(
        self,
        bucket: MemoryBucket,
        clock: Clock,
        most_bytes: int = 10**9,
        *,
        closes: bool = False,
        used_up: Callable[[], str | None] = lambda: None,
        may_sleep: bool = False,
        taken: set[str] | None = None,
    ) -> None:
        self.clock = clock
        #: Ids of the lines that the guest has taken: each counts once, whoever sends it.
        self.taken: set[str] = set() if taken is None else taken
        self.turns: list[int] = []
        self.interrupted: list[bool] = []
        self.said: list[AgentSaid] = []
        self.writer = writer = RunLogWriter(bucket, TASK, Redactor({}))

        def ended_turn(results: int, interrupted: bool) -> bool:
            self.turns.append(results)
            self.interrupted.append(interrupted)
            return closes

        hang = timedelta(seconds=HANG)
        self.follower = Follower(
            writer,
            AgentOutput(),
            hang,
            most_bytes,
            ended_turn,
            lambda: None,
            on_control=self.said.append,
            permission_timeout=timedelta(seconds=PATIENCE),
            used_up=used_up,
            may_sleep=may_sleep,
            clock=clock,
        )
        self.offsets = writer.resume()
        self.follower.read_back(read_entries(bucket, TASK))

    def follow(self, *doings: Piece) -> Ended | None:
        self.guest = Guest(self.clock, self.taken, *doings)
        return self.follower.follow(cast("AgentSession", self.guest), self.offsets)


def verdicts(bucket: MemoryBucket) -> list[tuple[str, str]]:
    events = [json.loads(entry.data) for entry in read_entries(bucket, TASK) if entry.stream == "event"]
    return [(event["cause"], event["message"]) for event in events if event["type"] == VERDICT]


SPENT = "The budget of this run is used up: 2 of 1 tokens are used."


def test_an_agent_that_is_refused_for_good_may_leave_by_itself_and_is_stopped_otherwise() -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock, used_up=lambda: SPENT)
    assert attempt.follow(2.0, *lines(1), Ended(1)) == Ended(1)
    assert (attempt.follower.verdict, verdicts(bucket)) == (None, [])
    other = MemoryBucket()
    attempt = Attempt(other, clock, used_up=lambda: SPENT)
    before = clock.now
    assert attempt.follow(*lines(1)) is None
    assert clock.now - before < 10
    assert verdicts(other) == [("budget_exceeded", SPENT)]
    assert attempt.follower.judgement == SPENT
    # Whoever follows it next knows.
    assert Attempt(other, clock).follower.verdict is Cause.BUDGET_EXCEEDED


def test_an_agent_that_may_be_continued_is_left_at_once_and_judged_by_nobody() -> None:
    bucket, clock = MemoryBucket(), Clock()
    attempt = Attempt(bucket, clock, used_up=lambda: SPENT, may_sleep=True)
    before = clock.now
    assert attempt.follow(*lines(1)) is None
    assert clock.now == before
    assert (attempt.follower.verdict, attempt.follower.judgement) == (Cause.BUDGET_EXCEEDED, SPENT)
    assert verdicts(bucket) == []
    later = Attempt(bucket, clock)
    assert later.follower.verdict is None
    assert later.follow(*lines(1), Ended(0)) == Ended(0)
    assert stored(bucket, "stdout").encode() == LINE


def test_an_agent_whose_session_is_closed_may_leave_whatever_else_it_is_refused() -> None:
    refused = iter([None, None, None])
    attempt = Attempt(MemoryBucket(), Clock(), closes=True, used_up=lambda: next(refused, SPENT), may_sleep=True)
    assert attempt.follow(Chunk("stdout", 0, GOOD), 1.0, 2.0, Ended(0)) == Ended(0)
    assert (attempt.guest.closed, attempt.follower.verdict) == (1, None)


def test_time_for_which_the_machine_slept_is_no_silence() -> None:
    now = datetime.now(UTC)
    running = json.dumps({"type": "state_change", "state": "running"})
    before = [
        LogEntry(id=1, ts=now - timedelta(days=3), stream="event", data=running),
        LogEntry(id=2, ts=now - timedelta(days=3), stream="stdout", data=LINE.decode()),
    ]
    woken = LogEntry(id=3, ts=now - timedelta(seconds=5), stream="event", data=running)
    for entries, least, most in ((before, 250_000, 260_000), ([*before, woken], 4, 60)):
        attempt = Attempt(MemoryBucket(), Clock())
        attempt.follower.read_back(entries)
        assert least < attempt.follower.silent_for() < most


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


def spoken(*events: dict[str, Any], first: int = 0) -> list[Chunk]:
    chunks = []
    for event in events:
        data = json.dumps(event).encode() + b"\n"
        chunks.append(Chunk("stdout", first, data))
        first += len(data)
    return chunks


def asking(request_id: str, tool: str = "Bash", **more: Any) -> dict[str, Any]:
    request = {
        "subtype": "can_use_tool",
        "tool_name": tool,
        "input": {"command": "id"},
        "tool_use_id": f"t-{request_id}",
    }
    return {"type": "control_request", "request_id": request_id, "request": {**request, **more}}


def confirming(control_id: str, **more: Any) -> dict[str, Any]:
    return {"type": "control_response", "response": {"subtype": "success", "request_id": control_id, **more}}


def result_of(tool_use_id: str) -> dict[str, Any]:
    return {"type": "user", "message": {"content": [{"type": "tool_result", "tool_use_id": tool_use_id}]}}


CANCEL = {"type": "control_cancel_request", "request_id": "b"}
ABORTED = {"type": "result", "subtype": "error_during_execution", "is_error": True}
FINE = {"type": "result", "subtype": "success", "result": "done"}


def events_of(bucket: MemoryBucket) -> list[tuple[str, str]]:
    events = [json.loads(entry.data) for entry in read_entries(bucket, TASK) if entry.stream == "event"]
    return [(event["type"], event["request_id"]) for event in events if "request_id" in event]


def test_what_the_agent_asks_is_told_again_while_it_stands_and_logged_once() -> None:
    bucket, clock = MemoryBucket(), Clock()
    first = Attempt(bucket, clock)
    said = spoken(asking("a"), asking("b"), asking("c"), result_of("t-a"), CANCEL, confirming("interrupt-1"))
    with pytest.raises(GuestUnreachable):
        first.follow(*said[:3], 1.0, *said[3:], GuestUnreachable("killed"))
    first.writer.flush(force=True)
    assert [each.request_id for told in first.said for each in told.asked] == ["a", "b", "c"]
    assert [each for told in first.said for each in told.withdrawn] == ["b"]
    second = Attempt(bucket, clock)
    second.follow(Ended(0))
    assert [each.request_id for told in second.said for each in told.asked] == ["c"]
    assert [each.id for told in second.said for each in told.answered] == ["interrupt-1"]
    asked = [("permission_request", each) for each in "abc"]
    assert events_of(bucket) == [*asked, ("permission_resolved", "b")]


def test_an_agent_that_waits_for_an_answer_is_not_silent_for_as_long_as_it_may_wait() -> None:
    clock = Clock()
    open_one = Attempt(MemoryBucket(), clock)
    began = clock.now
    assert open_one.follow(*spoken(asking("a"))) is None
    assert open_one.follower.verdict is Cause.NO_OUTPUT_TIMEOUT
    assert PATIENCE + HANG <= clock.now - began < PATIENCE + HANG + 10
    answered = Attempt(MemoryBucket(), clock)
    began = clock.now
    assert answered.follow(*spoken(asking("a"), result_of("t-a"))) is None
    assert clock.now - began < HANG + 10


def test_a_guest_that_asks_without_end_costs_little_and_is_denied() -> None:
    clock = Clock()
    attempt = Attempt(MemoryBucket(), clock)
    flood = [event for number in range(3000) for event in (asking(str(number)), result_of(f"t-{number}"))]
    attempt.follow(*spoken(*flood, *[asking(f"more-{number}") for number in range(200)]), Ended(0))
    assert sum(len(told.asked) for told in attempt.said) <= 500
    other = Attempt(MemoryBucket(), clock)
    other.follow(*spoken(*[asking(str(number)) for number in range(3000)]), Ended(0))
    assert sum(len(told.asked) for told in other.said) == 50
    denied = {line["response"]["request_id"] for line in other.guest.steered}
    assert denied == {str(number) for number in range(50, 2050)}
    assert {line["response"]["response"]["behavior"] for line in other.guest.steered} == {"deny"}


def test_every_attempt_denies_what_is_asked_too_often() -> None:
    bucket, clock = MemoryBucket(), Clock()
    first = Attempt(bucket, clock)
    said = spoken(*[asking(str(number)) for number in range(60)])
    with pytest.raises(GuestUnreachable):
        first.follow(*said[:51], GuestUnreachable("killed"))
    # Stored, and the worker is killed before it has denied them.
    for chunk in said[51:55]:
        first.writer.feed(chunk.stream, chunk.data, chunk.offset)
    first.writer.flush(force=True)
    second = Attempt(bucket, clock, taken=first.taken)
    second.follow(*said[55:], Ended(0))
    denied = {line["response"]["request_id"] for guest in (first.guest, second.guest) for line in guest.steered}
    assert denied == {str(number) for number in range(50, 60)}


@pytest.mark.parametrize(
    ("events", "turns", "interrupted"),
    [
        ([confirming("interrupt-1"), ABORTED], [1], [True]),
        ([confirming("interrupt-1"), FINE], [1], [False]),  # it was done already
        ([FINE, confirming("interrupt-1")], [1], [False]),
        ([confirming("interrupt-1", subtype="error", error="no"), ABORTED], [1], [False]),
        ([confirming("guessed-1"), ABORTED], [1], [False]),
        ([confirming("interrupt-1"), ABORTED, {"type": "system", "subtype": "init"}, FINE], [1, 2], [True, False]),
        ([FINE, confirming("set-model-1"), {"type": "user", "isReplay": True}], [1], [False]),
        ([FINE, {"type": "system", "subtype": "status", "permissionMode": "plan"}], [1], [False]),
    ],
)
def test_a_turn_that_was_interrupted_is_told_from_others_and_what_is_confirmed_begins_none(
    events, turns, interrupted
) -> None:
    attempt = Attempt(MemoryBucket(), Clock())
    # An agent that waits for input is never silent.
    attempt.follow(*[each for chunk in spoken(*events) for each in (chunk, 1.0)], 10 * HANG, Ended(1))
    assert (attempt.turns, attempt.interrupted) == (turns, interrupted)
    assert attempt.follower.verdict is None
