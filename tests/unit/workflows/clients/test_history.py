"""What one history takes is counted in one place: clients are refused in time, and a run always comes to its end."""

from __future__ import annotations

from typing import Any

import pytest
import temporalio.workflow

from tests.stand_ins.skipping_clock import Act, SkippingClock
from tests.unit.workflows.test_ending import ENDING, HANGS, HOUR, a_manifest, a_run, always
from workflows import history, names, steps
from workflows.history import Share
from workflows.runs import conversation, interruption
from workflows.runs.messages import (
    ContinueRequest,
    NetworkChange,
    StartHeld,
    TaskStatus,
    TurnEnded,
    UserMessage,
)
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause, TaskState
from workflows.runs.steering.messages import ClearRequest, Configuration, InterruptRequest, PermissionAnswer
from workflows.runs.workflow import TaskWorkflow
from workflows.told.record import Change
from workflows.told.states import LocalState

# Every update that a client can have sent to a run, and one of what it then says.
SENT: dict[str, Any] = {
    names.CHANGE_NETWORK: NetworkChange(),
    names.CONTINUE_RUN: ContinueRequest(tokens=1),
    names.INTERRUPT_TURN: InterruptRequest(),
    names.ANSWER_REQUEST: PermissionAnswer(request_id="a"),
    names.CONFIGURE_AGENT: Configuration(model="m"),
    names.CLEAR_WAITING: ClearRequest(),
    names.START_HELD: StartHeld(prompt="another"),
    names.TELL: Change(stage="x"),
}
MUCH = 10**9


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """All shares a hundredth of what they are."""
    for name in ("TOLD", "STEERED", "MESSAGES", "WHOLE", "RENEWED"):
        share: Share = getattr(history, name)
        for module in (history, conversation, interruption):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, Share(share.updates // 100, MUCH, MUCH))


def an_open_run() -> SkippingClock:
    """A run whose agent is told to end after half an hour."""
    manifest = a_manifest()
    manifest.claude.headless = False
    clock = a_run(manifest, RUN_AGENT=HANGS, DELIVER=always(Act(takes=0.1)))
    clock.at(HOUR / 2, lambda: clock.finish(steps.RUN_AGENT, Act(AgentResult(exit_code=0))))
    return clock


def send(clock: SkippingClock, at: float, name: str, payload: Any, answers: list[Any]) -> None:
    clock.at(at, lambda: clock.update(name, payload, answers.append))


@pytest.mark.usefixtures("small")
def test_each_update_of_a_client_is_counted_and_refused_in_time() -> None:
    definition = temporalio.workflow._Definition.must_from_class(TaskWorkflow)
    assert set(SENT) == {*definition.updates, names.START_HELD, names.TELL} - {names.END_TURN}
    clock, answers, turns = an_open_run(), [], []
    for number in range(20):
        send(clock, 100.0 + number, names.CLEAR_WAITING, ClearRequest(), answers)
    for name, payload in SENT.items():
        send(clock, 200.0, name, payload, [])
    send(clock, 300.0, names.END_TURN, TurnEnded(results=1), turns)
    status = clock.run()
    assert len(answers) == history.STEERED.updates == 15
    assert clock.refusals == ["rate_limit_exceeded"] * (5 + len(SENT))
    assert (status.state, turns) == (TaskState.COMPLETED, [False])


@pytest.mark.usefixtures("small")
def test_whatever_clients_send_together_a_run_hears_of_every_turn_and_ends() -> None:
    clock, told, steered, turns = an_open_run(), [], [], []
    seen: list[TaskStatus] = []
    for number in range(20):
        at = 100.0 + 10.0 * number
        send(clock, at, names.TELL, Change(stage=str(number)), told)
        send(clock, at + 1.0, names.CLEAR_WAITING, ClearRequest(), steered)
    clock.at(310.0, lambda: seen.append(clock.status()))
    for number in range(10):
        message = UserMessage(text="more", id=str(number))
        clock.at(400.0 + 10.0 * number, lambda message=message: clock.signal(names.USER_MESSAGE, message))
        if number < 2:
            send(clock, 405.0 + 10.0 * number, names.END_TURN, TurnEnded(results=number + 1), turns)
    clock.at(600.0, lambda: seen.append(clock.status()))
    # However much was told before: a client can have the run end, if not too much was sent in all.
    status = clock.run()
    assert (status.state, status.cause) == (TaskState.COMPLETED, None)
    assert len(told) <= history.TOLD.updates
    assert len(told) + len(steered) == history.STEERED.updates
    assert turns == [False, False]
    assert [each.takes_messages for each in seen] == [True, False]
    assert status.undelivered_messages == [str(number) for number in range(2, 10)]
    assert any("room for no more" in note for note in status.notes)


@pytest.mark.usefixtures("small")
def test_a_run_that_was_told_as_much_as_it_takes_still_hears_of_its_end() -> None:
    clock, told = an_open_run(), []
    for number in range(12):
        send(clock, 100.0 + number, names.TELL, Change(stage=str(number)), [])
    send(clock, 200.0, names.TELL, Change(enter=LocalState.FAILED, error_message="enough"), told)
    status = clock.run(most=200.0 + ENDING)
    assert (status.cause, status.error, told) == (Cause.TOLD, "enough", [{"changed": True}])


@pytest.mark.usefixtures("small")
def test_turns_without_end_end_the_run_in_order_while_temporal_takes_more() -> None:
    clock, turns = an_open_run(), []
    for number in range(40):
        send(clock, 100.0 + number, names.END_TURN, TurnEnded(results=number), turns)
    status = clock.run(most=150.0 + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.INTERNAL)
    assert "19 updates" in (status.error or "")
    assert steps.COLLECT.name in [name for _, name, _ in clock.calls]


def test_what_is_left_between_the_shares_is_enough_for_what_is_under_way() -> None:
    """Temporal takes ten updates at once, and a run has a hundred messages and fifty interrupts under way at most."""
    assert history.TOLD.updates < history.STEERED.updates
    assert history.STEERED.updates + 50 + 10 <= history.MESSAGES.updates
    assert history.MESSAGES.updates + 100 <= history.WHOLE.updates
    assert history.WHOLE.updates + 50 < 2_000
    assert history.RENEWED.updates + 10 < history.STEERED.updates
    # Whoever tells much leaves room for messages, and all of these may have to be delivered when no more is taken.
    assert history.TOLD.size < history.MESSAGES.size
    assert max(history.STEERED.size, history.MESSAGES.size) + history.MESSAGES.size < history.WHOLE.size
