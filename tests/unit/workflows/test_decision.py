"""Runs that use up their budget: ended, or put to sleep until somebody decides, whatever comes meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stand_ins.skipping_clock import Act, SkippingClock
from tests.unit.workflows.test_ending import (
    AGENT_SECONDS,
    DEAF,
    ENDING,
    FAILS,
    HOUR,
    MINUTE,
    NEVER,
    PHASES,
    REFUSES,
    a_manifest,
    a_run,
    always,
)
from workflows import steps
from workflows.runs.budget import Budget
from workflows.runs.decision import PAUSES_MOST
from workflows.runs.messages import CancelRequest, ContinueRequest, TaskStatus, TokenUsage, TurnEnded, UserMessage
from workflows.runs.requests import AgentRequest, AgentResult, PauseResult
from workflows.runs.states import Cause, TaskState

DAY = 24 * HOUR
SPENT = "The budget of this run is used up: $5.00 of $5.00 are spent."
# The agent asks for more than it has so long after it was started or woken.
WORKS = 10 * MINUTE
# When the first of its budgets is used up, and its machine sleeps.
USED_UP = PHASES["RUN_AGENT"] + WORKS
ASLEEP = USED_UP + MINUTE


def a_paid_run(turns: int = 2, *, action: str = "pause", usd: float = 5.0, **more: Any) -> SkippingClock:
    """A run whose agent uses up what it has ``turns - 1`` times, and is done in its last turn."""
    lifecycle = {"budget_action": action, "decision_timeout": "72h", **more.pop("lifecycle", {})}
    manifest = a_manifest(**lifecycle)
    manifest.claude.max_budget_usd = usd
    manifest.claude.headless = more.pop("headless", True)
    taken = [0]

    def follow(request: AgentRequest, attempt: int) -> Act:
        taken[0] += attempt == 1
        if taken[0] >= turns:
            return Act(AgentResult(exit_code=0), takes=WORKS)
        budget = request.budget or Budget()
        usage = TokenUsage(requests=taken[0], cost_usd=budget.usd, budget_usd=budget.usd)
        return Act(AgentResult(running=True, cause=Cause.BUDGET_EXCEEDED, error=SPENT, usage=usage), takes=WORKS)

    acts = {"RUN_AGENT": follow, "PAUSE": always(Act(takes=10.0)), "RESUME": always(Act(takes=10.0))}
    return a_run(manifest, **{**acts, **more})


def called(clock: SkippingClock, step: steps.Step[Any, Any]) -> list[Any]:
    return [request for _, name, request in clock.calls if name == step.name]


def add(clock: SkippingClock, at: float, usd: float | None = 5.0) -> None:
    clock.at(at, lambda: clock.signal("continue", ContinueRequest(budget_usd=usd)))


def seen(clock: SkippingClock, at: float) -> list[TaskStatus]:
    found: list[TaskStatus] = []
    clock.at(at, lambda: found.append(clock.status()))
    return found


def test_a_run_that_is_to_fail_stops_its_agent_and_collects() -> None:
    clock = a_paid_run(action="fail")
    status = clock.run(most=USED_UP + ENDING)
    assert (status.state, status.cause, status.error) == (TaskState.FAILED, Cause.BUDGET_EXCEEDED, SPENT)
    assert called(clock, steps.COLLECT)
    assert not called(clock, steps.PAUSE)
    assert called(clock, steps.RUN_AGENT)[0].budget == Budget(usd=5.0)


def test_a_run_that_is_continued_goes_on_and_its_time_stands_still_meanwhile() -> None:
    clock = a_paid_run()
    waiting = seen(clock, ASLEEP)
    add(clock, 60 * HOUR)
    status = clock.run(most=60 * HOUR + WORKS + ENDING)
    assert (status.state, status.cause) == (TaskState.COMPLETED, None)
    assert (waiting[0].state, waiting[0].state_message) == (TaskState.AWAITING_DECISION, SPENT)
    assert waiting[0].decision_until is not None
    assert waiting[0].decision_until - waiting[0].state_changed_at == timedelta(hours=72)
    assert waiting[0].usage is not None
    assert waiting[0].usage.cost_usd == 5.0
    assert status.decision_until is None
    # Its machine is kept for as long as it may wait, and woken with what it has now.
    (pause,), (resume,) = called(clock, steps.PAUSE), called(clock, steps.RESUME)
    assert pause.deadline > waiting[0].decision_until + steps.ROOM_PATIENCE
    assert resume.budget == Budget(usd=10.0, pause=True)
    assert [request.budget.usd for request in called(clock, steps.RUN_AGENT)] == [5.0, 10.0]
    assert [each.state for each in status.transitions][4:] == [
        TaskState.RUNNING,
        TaskState.AWAITING_DECISION,
        TaskState.RUNNING,
        TaskState.COMPLETING,
        TaskState.COMPLETED,
    ]


def test_the_agents_own_time_goes_on_when_it_does() -> None:
    clock = a_paid_run(3, lifecycle={"timeout": "15m"})
    add(clock, 10 * HOUR)
    status = clock.run(most=10 * HOUR + 6 * MINUTE + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.RUN_TIMEOUT)
    assert "lifecycle.timeout of 15m" in (status.error or "")


def test_a_budget_that_is_used_up_again_lets_it_wait_again() -> None:
    clock = a_paid_run(4)
    for number in range(3):
        add(clock, (number + 1) * 20 * HOUR)
    status = clock.run()
    assert status.state is TaskState.COMPLETED
    assert [request.budget.usd for request in called(clock, steps.RUN_AGENT)] == [5.0, 10.0, 15.0, 20.0]
    assert len(called(clock, steps.PAUSE)) == 3


def test_what_one_run_can_be_continued_is_limited_and_its_history_too() -> None:
    clock = a_paid_run(PAUSES_MOST + 10, lifecycle={"timeout": "168h"})
    for number in range(PAUSES_MOST + 10):
        add(clock, ASLEEP + number * HOUR)
    status = clock.run()
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.BUDGET_EXCEEDED)
    assert f"continued {PAUSES_MOST} times" in (status.error or "")
    assert clock.events < 45_000 / 4
    assert clock.largest_payload < 300_000


def test_nobody_decides() -> None:
    clock = a_paid_run()
    status = clock.run(most=USED_UP + 3 * DAY + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.BUDGET_EXCEEDED)
    assert "lifecycle.decision_timeout of 72h" in (status.error or "")
    assert called(clock, steps.COLLECT)[0].agent.usage.cost_usd == 5.0
    assert not called(clock, steps.RESUME)


@pytest.mark.parametrize("at", [USED_UP + 1.0, ASLEEP, ASLEEP + DAY], ids=["falling asleep", "asleep", "after a day"])
@pytest.mark.parametrize(
    ("name", "payload", "cause"),
    [("cancel", CancelRequest(), Cause.CANCELLED), ("close", None, Cause.BUDGET_EXCEEDED)],
)
def test_who_ends_a_run_that_waits_ends_it_at_once(name: str, payload: Any, cause: Cause, at: float) -> None:
    clock = a_paid_run()
    clock.at(at, lambda: clock.signal(name, *([payload] if payload else [])))
    # What comes after the decision changes nothing.
    add(clock, at + 0.5)
    status = clock.run(most=at + ENDING)
    assert status.cause is cause
    assert called(clock, steps.COLLECT)
    assert not called(clock, steps.RESUME)
    assert any("does not wait for a decision" in note for note in status.notes)


@pytest.mark.parametrize("limit", ["72h", "2m"], ids=["in time", "though that takes all the time there is"])
def test_a_run_that_is_continued_while_it_falls_asleep_wakes_once_it_sleeps(limit: str) -> None:
    clock = a_paid_run(lifecycle={"decision_timeout": limit}, PAUSE=always(Act(takes=4 * MINUTE)))
    add(clock, USED_UP + 1.0)
    status = clock.run(most=USED_UP + 9 * MINUTE + WORKS)
    assert status.state is TaskState.COMPLETED
    assert [len(called(clock, step)) for step in (steps.PAUSE, steps.RESUME)] == [1, 1]


def test_what_is_added_has_to_be_enough_for_what_was_under_way_too() -> None:
    settled = TokenUsage(requests=3, cost_usd=7.0, budget_usd=5.0)
    clock = a_paid_run(PAUSE=always(Act(PauseResult(usage=settled), takes=10.0)))
    waiting = seen(clock, ASLEEP)
    add(clock, ASLEEP + 1.0, usd=2.0)
    add(clock, ASLEEP + HOUR, usd=2.5)
    status = clock.run(most=ASLEEP + HOUR + WORKS + ENDING)
    assert status.state is TaskState.COMPLETED
    assert waiting[0].usage == settled
    assert any("is not enough" in note for note in status.notes)
    assert [request.budget.usd for request in called(clock, steps.RUN_AGENT)] == [5.0, 7.5]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (ContinueRequest(), "is not enough"),
        (ContinueRequest(budget_usd=0.0), "is not enough"),
        (ContinueRequest(tokens=10**9), "is not enough"),
        (ContinueRequest(budget_usd=1e308), "can be added at once"),
        (ContinueRequest(budget_usd=5.0, tokens=2**63 - 1), "can be added at once"),
        (ContinueRequest(budget_usd=-1.0), "can be added at once"),
        (ContinueRequest(budget_usd=5.0, tokens=-1), "can be added at once"),
    ],
)
def test_what_is_not_enough_or_no_sum_is_refused_and_not_added(more: ContinueRequest, words: str) -> None:
    clock = a_paid_run()
    refused: list[Any] = []
    clock.at(ASLEEP, lambda: clock.update("continue_run", more, refused.append))
    clock.at(ASLEEP + 1, lambda: clock.signal("continue", more))
    waiting = seen(clock, ASLEEP + 10)
    add(clock, ASLEEP + HOUR)
    status = clock.run(most=ASLEEP + 2 * HOUR)
    assert waiting[0].state is TaskState.AWAITING_DECISION
    assert [clock.refusals, refused] == [["invalid_parameter"], []]
    assert any(words in note for note in status.notes)
    assert called(clock, steps.RESUME)[0].budget.usd == 10.0


def test_of_two_who_continue_a_run_the_second_is_refused() -> None:
    clock = a_paid_run()
    answers: list[Any] = []
    clock.at(
        PHASES["RUN_AGENT"] + 1, lambda: clock.update("continue_run", ContinueRequest(budget_usd=1), answers.append)
    )
    for _ in range(2):
        clock.at(ASLEEP, lambda: clock.update("continue_run", ContinueRequest(budget_usd=1), answers.append))
    clock.run()
    assert clock.refusals == ["conflict", "conflict"]
    assert [answer["budget_usd"] for answer in answers] == [6.0]
    assert called(clock, steps.RESUME)[0].budget.usd == 6.0


def test_a_message_that_comes_while_it_waits_is_kept_and_delivered_after() -> None:
    delivered: list[float] = []

    def deliver(_request: Any, _attempt: int) -> Act:
        asleep = USED_UP <= clock.now < 30 * HOUR
        delivered.extend([] if asleep else [clock.now])
        return Act(fails="guest_unreachable" if asleep else None)

    clock = a_paid_run(DELIVER=deliver)
    # One is under way when the machine falls asleep, and one comes later.
    clock.at(USED_UP - 0.05, lambda: clock.signal("user_message", UserMessage(text="first", id="1")))
    clock.at(USED_UP + 2 * HOUR, lambda: clock.signal("user_message", UserMessage(text="second", id="2")))
    add(clock, 30 * HOUR)
    status = clock.run()
    assert status.state is TaskState.COMPLETED
    assert status.undelivered_messages == []
    assert [request.message_id for request in called(clock, steps.DELIVER)][-2:] == ["1", "2"]
    assert len(delivered) >= 2


def test_a_session_whose_close_meets_a_machine_asleep_is_closed_after() -> None:
    def close(_request: Any, _attempt: int) -> Act:
        return Act(fails="guest_unreachable" if USED_UP - 2.0 <= clock.now < 30 * HOUR else None)

    clock = a_paid_run(headless=False, CLOSE=close)
    clock.at(USED_UP - 1.0, lambda: clock.update("end_turn", TurnEnded(results=1)))
    clock.at(USED_UP - 0.5, lambda: clock.signal("close"))
    add(clock, 30 * HOUR)
    status = clock.run()
    assert (status.state, status.error) == (TaskState.COMPLETED, None)
    assert called(clock, steps.CLOSE)


# What goes wrong with the machine, and what the run ends as; within which time of the moment it was continued.
TROUBLE = [
    ("it cannot be saved", {"PAUSE": FAILS}, Cause.BUDGET_EXCEEDED, "could not be paused", 45 * MINUTE),
    ("saving it hangs", {"PAUSE": DEAF}, Cause.BUDGET_EXCEEDED, "could not be paused", 46 * MINUTE),
    ("its memory is gone", {"RESUME": always(Act(fails="machine_lost", final=True))}, Cause.MACHINE_LOST, "", MINUTE),
    ("it cannot be loaded", {"RESUME": REFUSES}, Cause.INTERNAL, "", MINUTE),
    ("no room", {"RESUME": always(Act(fails="no_room"))}, Cause.RESOURCES, "no room", DAY + 16 * MINUTE),
    ("waking it hangs", {"RESUME": DEAF}, Cause.MACHINE_LOST, "", DAY + 16 * MINUTE),
]


@pytest.mark.parametrize("row", TROUBLE, ids=lambda row: row[0])
def test_trouble_with_the_machine_ends_the_run_with_its_cause(row: Any) -> None:
    _, instead, cause, words, within = row
    clock = a_paid_run(**instead)
    add(clock, ASLEEP + HOUR)
    status = clock.run(most=ASLEEP + HOUR + within + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, cause)
    assert words in (status.error or "")
    assert called(clock, steps.COLLECT)


def test_a_cancel_ends_the_wait_for_room() -> None:
    clock = a_paid_run(RESUME=always(Act(fails="no_room")))
    add(clock, ASLEEP)
    clock.at(ASLEEP + HOUR, lambda: clock.signal("cancel", CancelRequest()))
    status = clock.run(most=ASLEEP + HOUR + ENDING)
    assert status.state is TaskState.CANCELLED


@pytest.mark.parametrize("back", [ASLEEP + 5 * MINUTE, ASLEEP + 10 * HOUR])
def test_workers_that_are_away_while_it_waits_are_not_missed(back: float) -> None:
    clock = a_paid_run()
    clock.away = [(ASLEEP, back)]
    add(clock, ASLEEP + 11 * HOUR)
    assert clock.run().state is TaskState.COMPLETED


MOMENTS: dict[str, Callable[[SkippingClock], None]] = {
    "continue": lambda clock: clock.signal("continue", ContinueRequest(budget_usd=1.0)),
    "too little": lambda clock: clock.signal("continue", ContinueRequest(budget_usd=0.0)),
    "too much": lambda clock: clock.signal("continue", ContinueRequest(budget_usd=1.7e308, tokens=2**63 - 1)),
    "nothing": lambda clock: clock.signal("continue"),
    "cancel": lambda clock: clock.signal("cancel", CancelRequest()),
    "force": lambda clock: clock.signal("cancel", CancelRequest(force=True)),
    "close": lambda clock: clock.signal("close"),
    "message": lambda clock: clock.signal("user_message", UserMessage(text="more")),
}


@given(
    events=st.lists(st.tuples(st.floats(0, 5 * DAY), st.sampled_from(sorted(MOMENTS))), max_size=6),
    pause=st.sampled_from([None, FAILS, DEAF]),
    resume=st.sampled_from([None, FAILS, DEAF, REFUSES]),
    away=st.none() | st.tuples(st.floats(0, 2 * HOUR), st.floats(1, HOUR) | st.just(NEVER)),
)
@settings(max_examples=60)
def test_whatever_comes_such_a_run_ends(events: Any, pause: Any, resume: Any, away: Any) -> None:
    broken = {name: act for name, act in (("PAUSE", pause), ("RESUME", resume)) if act}
    clock = a_paid_run(3, **broken)
    if away:
        clock.away = [(away[0], away[0] + away[1])]
    for at, name in events:
        clock.at(at, lambda name=name: MOMENTS[name](clock))
    status = clock.run(most=2 * (3 * DAY + DAY + 2 * HOUR) + 2 * AGENT_SECONDS + 4 * HOUR)
    assert status.state.terminal
    assert clock.unheard == []
    assert (status.cause is None) == (status.state is TaskState.COMPLETED)
    assert status.decision_until is None or status.cause is not None
