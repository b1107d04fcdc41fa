"""What clients say about the beginning and the end of a run that is executed here: it counts, or is told as not so."""

from __future__ import annotations

from typing import Any

import pytest

from tests.stand_ins.skipping_clock import Act, SkippingClock
from tests.unit.workflows.test_decision import called
from tests.unit.workflows.test_ending import AGENT_SECONDS, PHASES, a_run, always
from workflows import names, steps
from workflows.messages import Lease
from workflows.runs.messages import StartHeld
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause, TaskState
from workflows.told.record import Change
from workflows.told.states import LocalState

COMPLETED, FAILED, CANCELLED = LocalState.COMPLETED, LocalState.FAILED, LocalState.CANCELLED
WELL, BADLY = AgentResult(exit_code=0), AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="It broke.")
WORKING, COLLECTING, RELEASING = (PHASES[step] + 5.0 for step in ("RUN_AGENT", "COLLECT", "RELEASE"))


def told(clock: SkippingClock, at: float, change: Change) -> list[bool]:
    found: list[bool] = []
    clock.at(at, lambda: clock.update(names.TELL, change, lambda answer: found.append(answer["changed"])))
    return found


@pytest.mark.parametrize(
    ("agent", "at", "words", "changed", "state", "cause"),
    [
        (WELL, WORKING, [FAILED, COMPLETED], [True, False], "failed", Cause.TOLD),
        (WELL, WORKING, [COMPLETED, FAILED], [True, False], "completed", None),
        (WELL, WORKING, [COMPLETED, CANCELLED, CANCELLED], [True, True, False], "cancelled", Cause.CANCELLED),
        (WELL, COLLECTING, [FAILED], [True], "failed", Cause.TOLD),
        (WELL, COLLECTING, [COMPLETED], [False], "completed", None),
        (WELL, COLLECTING, [CANCELLED], [True], "cancelled", Cause.CANCELLED),
        (WELL, RELEASING, [FAILED], [True], "failed", Cause.TOLD),
        (WELL, RELEASING, [CANCELLED], [True], "cancelled", Cause.CANCELLED),
        (BADLY, COLLECTING, [COMPLETED], [False], "failed", Cause.AGENT_EXIT),
        (BADLY, COLLECTING, [FAILED], [False], "failed", Cause.AGENT_EXIT),
        (BADLY, RELEASING, [CANCELLED], [True], "cancelled", Cause.CANCELLED),
    ],
)
def test_a_word_about_the_end_counts_or_is_told_as_no_change(
    agent: AgentResult,
    at: float,
    words: list[LocalState],
    changed: list[bool],
    state: str,
    cause: Cause | None,
) -> None:
    clock = a_run(RUN_AGENT=always(Act(agent, takes=AGENT_SECONDS)))
    answers = [told(clock, at + number / 10, Change(enter=word)) for number, word in enumerate(words)]
    status = clock.run()
    assert answers == [[each] for each in changed]
    assert (status.state, status.cause) == (TaskState(state), cause)


def test_what_comes_with_a_word_that_is_too_late_is_kept() -> None:
    clock = a_run(RUN_AGENT=always(Act(BADLY, takes=AGENT_SECONDS)))
    answer = told(clock, COLLECTING, Change(enter=COMPLETED, output={"pr_url": "u"}))
    status = clock.run()
    assert (status.state, answer) == (TaskState.FAILED, [True])
    assert status.told is not None
    assert status.told.output == {"pr_url": "u"}


# --- starts


@pytest.mark.parametrize(
    ("prompts", "delivered"),
    [
        ([None, "do it"], []),  # what it begins with
        (["more", "more", "even more"], ["more", "even more"]),
        (["é" * 200_000], None),  # no message of any run
    ],
)
def test_a_start_of_a_run_that_has_begun_loses_no_message(
    prompts: list[str | None], delivered: list[str] | None
) -> None:
    clock = a_run(
        RESERVE=lambda asked, _: Act(Lease(machine_id=asked.machine_id, host="here", task_queue="host"), takes=20.0)
    )
    answers: list[Any] = []
    for number, prompt in enumerate(prompts):
        request = StartHeld(prompt=prompt)
        clock.at(10.0 + number, lambda request=request: clock.update(names.START_HELD, request, answers.append))
    clock.run()
    if delivered is None:
        assert (answers, clock.refusals) == ([], ["conflict"])
        return
    assert [answer["state"] for answer in answers] == ["pending"] * len(prompts)
    assert [request.text for request in called(clock, steps.DELIVER)] == delivered
