"""Runs whose agent is steered: nothing is told as done before the agent confirms; requests are answered once."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.stand_ins.skipping_clock import Act, Behaviour, SkippingClock
from tests.unit.workflows.test_decision import ASLEEP, a_paid_run, add, called, seen
from tests.unit.workflows.test_ending import DEAF, HANGS, HOUR, MINUTE, a_manifest, a_run, always
from workflows import names, steps
from workflows.runs.messages import TurnEnded, UserMessage
from workflows.runs.requests import AgentResult, CollectResult
from workflows.runs.states import Cause, TaskState
from workflows.runs.steering import steering
from workflows.runs.steering.messages import (
    AgentSaid,
    ClearRequest,
    Configuration,
    ControlAnswer,
    InterruptRequest,
    PermissionAnswer,
    PermissionDecision,
    PermissionRequest,
)
from workflows.runs.steering.steering import STEERINGS_MOST

ALLOW, ALWAYS, DENY = PermissionDecision.ALLOW, PermissionDecision.ALLOW_ALWAYS, PermissionDecision.DENY
SOON = always(Act(takes=1.0))
QUESTIONS = {"questions": [{"question": "Which colour?"}, {"question": "Which size?"}]}


def a_steered_run(steer: Behaviour = SOON, **more: Any) -> SkippingClock:
    """A run whose agent asks, and goes on until it is told to end, within an hour."""
    manifest = a_manifest()
    manifest.claude.skip_permissions = not more.pop("asking", True)
    manifest.claude.permission_timeout = "10m"
    manifest.claude.headless = more.pop("headless", True)
    clock = a_run(manifest, **{"RUN_AGENT": HANGS, "STEER": steer, **more})
    clock.at(HOUR / 2, lambda: clock.finish(steps.RUN_AGENT, Act(AgentResult(exit_code=0))))
    return clock


def asks(clock: SkippingClock, at: float, *ids: str, **more: Any) -> None:
    asked = [
        PermissionRequest(request_id=each, **{"tool": "Bash", "asked_at": datetime.now(UTC), **more}) for each in ids
    ]
    clock.at(at, lambda: clock.signal(names.AGENT_SAID, AgentSaid(asked=asked)))


def confirms(clock: SkippingClock, at: float, *answers: ControlAnswer) -> None:
    clock.at(at, lambda: clock.signal(names.AGENT_SAID, AgentSaid(answered=list(answers))))


def told(clock: SkippingClock, at: float, name: str, payload: Any) -> list[tuple[float, Any]]:
    found: list[tuple[float, Any]] = []
    clock.at(at, lambda: clock.update(name, payload, lambda answer: found.append((clock.now, answer))))
    return found


def answered(clock: SkippingClock, at: float, request_id: str, decision: PermissionDecision, **more: Any) -> list[Any]:
    return told(clock, at, names.ANSWER_REQUEST, PermissionAnswer(request_id=request_id, decision=decision, **more))


def responses(clock: SkippingClock) -> list[tuple[str, str]]:
    """What the agent was answered: the id of each request, and the behaviour."""
    lines = [request.line for request in called(clock, steps.STEER)]
    return [
        (line["response"]["request_id"], line["response"]["response"]["behavior"])
        for line in lines
        if line["type"] == "control_response"
    ]


def test_an_interrupt_is_told_when_the_agent_confirms_it_and_not_before() -> None:
    clock = a_steered_run()
    first = told(clock, 100.0, names.INTERRUPT_TURN, InterruptRequest())
    confirms(clock, 130.0, ControlAnswer(id="interrupt-1", in_turn=True))
    second = told(clock, 200.0, names.INTERRUPT_TURN, InterruptRequest())
    confirms(clock, 205.0, ControlAnswer(id="interrupt-2", in_turn=False), ControlAnswer(id="interrupt-77"))
    assert clock.run().state is TaskState.COMPLETED
    assert first == [(130.0, {"interrupted": True})]
    assert second == [(205.0, {"interrupted": False})]
    assert [request.line["request"]["subtype"] for request in called(clock, steps.STEER)] == ["interrupt"] * 2


@pytest.mark.parametrize(
    ("at", "answer", "refusal"),
    [
        (0.5, None, "conflict"),  # no agent yet
        (100.0, None, "timed_out"),
        (100.0, ControlAnswer(id="interrupt-1", error="not now"), "conflict"),
        (HOUR / 2 - 1.0, None, "session_closed"),  # the agent ends first
    ],
)
def test_an_interrupt_that_is_not_confirmed_is_told_as_none(at, answer, refusal) -> None:
    clock = a_steered_run()
    done = told(clock, at, names.INTERRUPT_TURN, InterruptRequest())
    if answer is not None:
        confirms(clock, at + 10.0, answer)
    assert clock.run().state is TaskState.COMPLETED
    assert (done, clock.refusals) == ([], [refusal])


def test_a_guest_that_takes_nothing_makes_no_one_wait_for_ever() -> None:
    clock = a_steered_run(DEAF)
    done = told(clock, 100.0, names.INTERRUPT_TURN, InterruptRequest())
    clock.at(101.0, lambda: clock.signal(names.INTERRUPT))
    status = clock.run()
    assert (done, clock.refusals) == ([], ["timed_out"])
    assert any("An interrupt was refused" in note for note in status.notes)


def test_after_an_interrupt_a_headless_run_waits_for_what_comes_next() -> None:
    clock = a_steered_run(DELIVER=SOON)
    closes: list[bool] = []
    clock.at(90.0, lambda: clock.signal(names.INTERRUPT))
    confirms(clock, 99.0, ControlAnswer(id="interrupt-1", in_turn=True))
    clock.at(100.0, lambda: clock.update(names.END_TURN, TurnEnded(results=1, interrupted=True), closes.append))
    clock.at(200.0, lambda: clock.signal(names.USER_MESSAGE, UserMessage(text="rather this", id="1")))
    clock.at(300.0, lambda: clock.update(names.END_TURN, TurnEnded(results=2), closes.append))
    clock.at(301.0, lambda: clock.update(names.INTERRUPT_TURN, InterruptRequest()))
    clock.run()
    assert closes == [False, True]
    assert not called(clock, steps.CLOSE)
    assert clock.refusals == ["session_closed"]


def test_a_request_stands_until_it_is_answered_once() -> None:
    clock = a_steered_run()
    asks(clock, 100.0, "a", "b")
    asks(clock, 110.0, "a", "b")  # by the follower's next attempt
    standing = seen(clock, 150.0)
    done = [answered(clock, 200.0 + number, "a", each) for number, each in enumerate([ALLOW, ALLOW, DENY])]
    asks(clock, 250.0, "a")
    later = seen(clock, 260.0)
    status = clock.run()
    assert [each.request_id for each in standing[0].permission_requests] == ["a", "b"]
    assert [each.request_id for each in later[0].permission_requests] == ["b"]
    answer = {"request_id": "a", "decision": "allow", "delivered": True}
    assert done == [[(201.0, answer)], [(201.0, answer)], []]
    assert clock.refusals == ["conflict"]
    # Nobody has answered the other one in time.
    assert responses(clock) == [("a", "allow"), ("b", "deny")]
    assert clock.calls[[request for _, _, request in clock.calls].index(called(clock, steps.STEER)[1])][0] == 700.0
    assert status.permission_requests == []


@pytest.mark.parametrize("gone", ["withdrawn", "unknown", "ended"])
def test_an_answer_to_a_request_that_is_gone_is_refused(gone: str) -> None:
    clock = a_steered_run()
    if gone != "unknown":
        asks(clock, 100.0, "a")
    if gone == "withdrawn":
        clock.at(110.0, lambda: clock.signal(names.AGENT_SAID, AgentSaid(withdrawn=["a", "b"])))
    if gone == "ended":
        clock.at(110.0, lambda: clock.finish(steps.RUN_AGENT, Act(AgentResult(exit_code=0))))
        clock.acts[steps.COLLECT.name] = always(Act(CollectResult(), takes=100.0))
    answered(clock, 120.0, "a", ALLOW)
    clock.at(121.0, lambda: clock.signal(names.ANSWER, PermissionAnswer(request_id="a")))
    status = clock.run()
    assert clock.refusals == ["conflict"]
    assert any("An answer was refused" in note for note in status.notes)
    assert responses(clock) == []


def failing(times: int) -> Behaviour:
    """A guest of which so many attempts do not hear whether it took a line."""
    attempts = iter(range(10**6))
    return lambda _r, _n: Act(takes=1.0, fails="guest_unreachable", final=True) if next(attempts) < times else Act()


@pytest.mark.parametrize(
    ("again", "refusal"),
    [
        ({}, None),
        ({"decision": DENY}, "conflict"),
        ({"decision": ALWAYS}, "conflict"),
        ({"message": "another"}, "conflict"),
        ({"answers": {"Which colour?": "blue", "Which size?": "L"}}, "conflict"),
    ],
)
@pytest.mark.parametrize("failures", [0, 1])
def test_an_answer_stands_whether_or_not_it_is_known_to_have_arrived_and_only_it_is_repeated(
    failures: int, again: dict[str, Any], refusal: str | None
) -> None:
    clock = a_steered_run(failing(failures))
    asks(clock, 100.0, "a", tool="AskUserQuestion", input=QUESTIONS)
    given: dict[str, Any] = {"decision": ALLOW, "answers": {"Which colour?": "red", "Which size?": "L"}}
    first = answered(clock, 110.0, "a", **given)
    second = answered(clock, 120.0, "a", **given | again)
    standing = seen(clock, 130.0)
    clock.run()
    answer = {"request_id": "a", "decision": "allow", "delivered": True}
    assert [each for _, each in first] == ([] if failures else [answer])
    assert [each for _, each in second] == ([] if refusal else [answer])
    assert clock.refusals == ["service_unavailable"] * failures + ([refusal] if refusal else [])
    assert standing[0].permission_requests == []
    lines = [request.line for request in called(clock, steps.STEER)]
    assert lines == [lines[0]] * (1 + failures)
    # What the log has of an earlier step is not logged again.
    assert [request.since is not None for request in called(clock, steps.STEER)] == [False] + [True] * failures


@pytest.mark.parametrize("answer", [ALLOW, None], ids=["answered", "left to its time"])
def test_an_answer_that_the_machine_does_not_take_is_tried_again_while_the_agent_waits(
    answer: PermissionDecision | None,
) -> None:
    clock = a_steered_run(failing(3))
    asks(clock, 100.0, "a")
    if answer is not None:
        answered(clock, 110.0, "a", answer)
    status = clock.run()
    assert responses(clock) == [("a", "allow" if answer else "deny")] * 4
    assert any("could not be delivered" in note for note in status.notes)
    began = [at for at, name, _ in clock.calls if name == steps.STEER.name]
    assert [round(later - earlier) for earlier, later in itertools.pairwise(began)] == [61, 121, 241]


@pytest.mark.parametrize("end", ["withdrawn", "limit", "agent"])
def test_an_answer_that_no_one_takes_is_tried_no_longer_than_the_agent_waits(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steering, "STEERINGS_MOST", 2 if end == "limit" else 500)
    clock = a_steered_run(failing(10**6))
    asks(clock, 100.0, "a")
    answered(clock, 110.0, "a", DENY)
    if end == "withdrawn":
        clock.at(200.0, lambda: clock.signal(names.AGENT_SAID, AgentSaid(withdrawn=["a"])))
        answered(clock, 210.0, "a", DENY)
    status = clock.run()
    assert status.state is TaskState.COMPLETED
    assert len(responses(clock)) == {"withdrawn": 2, "limit": 2, "agent": 5}[end]
    assert clock.refusals == ["service_unavailable", *(["conflict"] if end == "withdrawn" else [])]


@pytest.mark.parametrize(
    ("confirmed", "closes"),
    [
        ([ControlAnswer(id="interrupt-1", in_turn=True)], [False, True]),
        ([ControlAnswer(id="interrupt-1", in_turn=False)], [True]),
        ([ControlAnswer(id="interrupt-1", in_turn=True, error="not now")], [True]),
        ([ControlAnswer(id="interrupt-2", in_turn=True)], [True]),  # which nobody has sent
        ([ControlAnswer(id="set-model-1", in_turn=True)], [True]),
        ([], [True]),
    ],
)
def test_a_turn_is_taken_as_interrupted_once_for_each_interrupt_that_the_run_has_sent(confirmed, closes) -> None:
    clock = a_steered_run()
    clock.at(90.0, lambda: clock.signal(names.INTERRUPT))
    confirms(clock, 100.0, *confirmed)
    said: list[bool] = []
    for turn in (1, 2):
        ended = TurnEnded(results=turn, interrupted=True)
        clock.at(100.0 + turn, lambda ended=ended: clock.update(names.END_TURN, ended, said.append))  # type: ignore[misc]
        confirms(clock, 100.5 + turn, *confirmed)
    clock.run()
    assert said[: len(closes)] == closes


def test_requests_do_not_grow_older_while_the_machine_sleeps() -> None:
    clock = a_paid_run(STEER=SOON)
    asks(clock, ASLEEP - 2 * MINUTE, "a", "b")
    kept = answered(clock, 10 * HOUR, "a", ALLOW)
    interrupted = told(clock, 10 * HOUR, names.INTERRUPT_TURN, InterruptRequest())
    standing = seen(clock, 11 * HOUR)
    add(clock, 20 * HOUR)
    assert clock.run().state is TaskState.COMPLETED
    assert kept == [(10 * HOUR, {"request_id": "a", "decision": "allow", "delivered": False})]
    assert (interrupted, clock.refusals) == ([], ["conflict"])
    assert [each.request_id for each in standing[0].permission_requests] == ["b"]
    assert responses(clock) == [("a", "allow")]


def test_messages_are_looked_at_and_cleared_but_for_the_one_on_its_way() -> None:
    clock = a_steered_run(DELIVER=always(Act(takes=60.0)))
    for number in range(3):
        message = UserMessage(text="more", id=str(number))
        clock.at(100.0, lambda message=message: clock.signal(names.USER_MESSAGE, message))  # type: ignore[misc]
    cleared = told(clock, 120.0, names.CLEAR_WAITING, ClearRequest())
    clock.at(121.0, lambda: clock.signal(names.CLEAR_MESSAGES))
    status = clock.run()
    assert cleared == [(120.0, {"cleared": ["1", "2"], "delivering": "0"})]
    assert [request.message_id for request in called(clock, steps.DELIVER)] == ["0"]
    assert status.undelivered_messages == ["1", "2"]


@pytest.mark.parametrize(
    ("wanted", "asking", "refusal"),
    [
        (Configuration(), True, "invalid_parameter"),
        (Configuration(model=""), True, "invalid_parameter"),
        (Configuration(model="x\ny"), True, "invalid_parameter"),
        (Configuration(permission_mode="nonsense"), True, "invalid_parameter"),
        (Configuration(permission_mode="plan"), False, "conflict"),
        (Configuration(model="claude-opus-4-1", permission_mode="plan"), True, None),
    ],
)
def test_a_configuration_is_told_as_the_agent_confirms_it(wanted, asking, refusal) -> None:
    clock = a_steered_run(asking=asking)
    done = told(clock, 100.0, names.CONFIGURE_AGENT, wanted)
    confirms(clock, 110.0, ControlAnswer(id="set-model-1"), ControlAnswer(id="set-permission-mode-2"))
    clock.run()
    assert clock.refusals == ([refusal] if refusal else [])
    assert done == ([] if refusal else [(110.0, wanted.model_dump())])


@pytest.mark.parametrize(
    ("more", "given", "refusal"),
    [
        ({}, {"answers": {"Which colour?": "red"}}, "invalid_parameter"),
        ({"tool": "AskUserQuestion", "input": QUESTIONS}, {}, "invalid_parameter"),
        (
            {"tool": "AskUserQuestion", "input": QUESTIONS},
            {"answers": {"Which colour?": "red", "Which size?": "L", "Why?": "so"}},
            "invalid_parameter",
        ),
        (
            {"tool": "AskUserQuestion", "input": QUESTIONS, "input_cut": True},
            {"answers": {"Which colour?": "red", "Which size?": "L"}},
            "invalid_parameter",
        ),
        (
            {"tool": "AskUserQuestion", "input": QUESTIONS},
            {"answers": {"Which colour?": "red", "Which size?": "L"}},
            None,
        ),
    ],
)
def test_questions_take_answers_and_permissions_take_none(more, given, refusal) -> None:
    clock = a_steered_run()
    asks(clock, 100.0, "a", **more)
    answered(clock, 110.0, "a", ALLOW, **given)
    clock.run()
    assert clock.refusals == ([refusal] if refusal else [])
    response = called(clock, steps.STEER)[0].line["response"]["response"]
    if not refusal:
        assert response["updatedInput"] == {**QUESTIONS, "answers": given["answers"]}


def test_what_one_run_is_steered_is_limited_and_its_history_too(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 40
    monkeypatch.setattr(steering, "STEERINGS_MOST", most)
    clock = a_steered_run(always(Act(takes=0.1)))
    for number in range(most + 10):
        told(clock, 100.0 + number, names.INTERRUPT_TURN, InterruptRequest())
        confirms(clock, 100.5 + number, ControlAnswer(id=f"interrupt-{number + 1}"))
        asks(clock, 100.0 + number, f"question {number}")
    status = clock.run()
    assert (status.state, status.cause) == (TaskState.COMPLETED, None)
    assert set(clock.refusals) == {"rate_limit_exceeded"}
    assert len(clock.refusals) == 10
    assert clock.events / most * STEERINGS_MOST < 45_000 / 2
    assert clock.largest_payload < 300_000


@pytest.mark.parametrize("moment", [60.0, 100.2, 100.9, 101.0])
def test_a_worker_that_is_killed_between_question_and_answer_has_it_answered_once(moment: float) -> None:
    clock = a_steered_run()
    asks(clock, 100.0, "a")
    answered(clock, 100.0, "a", ALLOW)
    clock.away = [(moment, moment + 30.0)]
    assert clock.run().cause in {None, Cause.RUN_TIMEOUT}
    assert set(responses(clock)) == {("a", "allow")}
