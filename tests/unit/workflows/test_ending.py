"""Every run ends within a bound, whatever guest, host, bucket and client do: on a clock that skips.

Above 400 lines: the table of hostile behaviours is read together with the run that meets them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stand_ins.skipping_clock import Act, Behaviour, SkippingClock
from workflows import steps
from workflows.history import Share
from workflows.messages import Lease
from workflows.runs import interruption
from workflows.runs.messages import MESSAGE_BYTES, CancelRequest, TaskStatus, TurnEnded, UserMessage
from workflows.runs.requests import (
    AgentResult,
    CollectResult,
    ProvisionResult,
    ReleaseResult,
    SecretsResult,
    StageResult,
)
from workflows.runs.states import Cause, TaskState
from workflows.specs.manifest import Manifest, parse

MINUTE = 60.0
HOUR = 3600.0
NEVER = math.inf
# What the steps of a run that goes well take here, one after another: each its own moment to be met in.
STEP_SECONDS = 10.0
AGENT_SECONDS = 20 * MINUTE
TIMEOUT = HOUR
# An agent that is to end, as the table of steps tells; and a cancelled run whose host is away.
ENDING = 14 * MINUTE
ABSENT = 2 * MINUTE


def a_manifest(**lifecycle: str) -> Manifest:
    return parse(
        {
            "metadata": {"name": "a"},
            "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
            "claude": {"prompt": "do it"},
            "secrets": [{"name": "TOKEN", "source": "env", "key": "TOKEN"}],
            "lifecycle": {"timeout": "1h", **lifecycle},
        }
    )


def a_run(manifest: Manifest | None = None, **instead: Behaviour) -> SkippingClock:
    """A run in which all goes well but the steps ``instead``, by their names in the table; a stop ends the agent."""
    answers: dict[str, Callable[[Any], Any]] = {
        "RESERVE": lambda request: Lease(machine_id=request.machine_id, host="here", task_queue="host"),
        "STAGE": lambda _: StageResult(base_commit="c0ffee", workspace_image="/nowhere"),
        "PROVISION": lambda request: ProvisionResult(
            vm_name=request.machine_id, vm_ip="10.0.2.15", acceleration="none", image="none", boot_seconds=0
        ),
        "SECRETS": lambda _: SecretsResult(),
        "COLLECT": lambda _: CollectResult(),
        "RELEASE": lambda request: ReleaseResult(ssh_command="ssh" if request.preserve else None),
        "DELIVER": lambda _: None,
        "CLOSE": lambda _: None,
        "FINISH": lambda _: None,
    }
    acts: dict[str, Behaviour] = {
        named(name): lambda request, _, answer=answer: Act(answer(request), takes=STEP_SECONDS)  # type: ignore[misc]
        for name, answer in answers.items()
    }
    acts[steps.RESERVE.name] = lambda request, _: Act(answers["RESERVE"](request), takes=1.0)
    acts[steps.RUN_AGENT.name] = lambda _r, _n: Act(AgentResult(exit_code=0), takes=AGENT_SECONDS)
    clock = SkippingClock(manifest or a_manifest(), acts)

    def stop(_request: Any, _attempt: int) -> Act:
        gone = Act(AgentResult(exit_code=143))
        clock.at(clock.now + STEP_SECONDS, lambda: clock.finish(steps.RUN_AGENT, gone))
        return Act(takes=STEP_SECONDS)

    acts[steps.STOP_AGENT.name] = stop
    acts.update({named(name): behaviour for name, behaviour in instead.items()})
    return clock


def named(name: str) -> str:
    step: steps.Step[Any, Any] = getattr(steps, name)
    return step.name


def always(act: Act) -> Behaviour:
    return lambda _request, _attempt: act


HANGS = always(Act(takes=NEVER))
DEAF = always(Act(takes=NEVER, obeys=False))
FAILS = always(Act(fails="guest_unreachable"))
FAILS_SLOWLY = always(Act(fails="guest_unreachable", takes=25.0))
REFUSES = always(Act(fails="internal_error", final=True))
IGNORED = always(Act(takes=STEP_SECONDS))


@dataclass(frozen=True)
class Hostile:
    """One hostile behaviour, what is asked of the run and when, how long it may then take to end, and as what."""

    name: str
    instead: dict[str, Behaviour]
    asked: str | None = None
    at: float = 300.0
    manifest: dict[str, str] = field(default_factory=dict)
    within: float = ENDING + MINUTE
    state: TaskState = TaskState.CANCELLED
    cause: Cause | None = Cause.CANCELLED


TIMED_OUT = {"state": TaskState.FAILED, "cause": Cause.RUN_TIMEOUT, "at": TIMEOUT + 41.0}

HOSTILE = [
    Hostile("stop ignored", {"RUN_AGENT": HANGS, "STOP_AGENT": IGNORED}, "cancel"),
    Hostile("stop ignored, follower deaf", {"RUN_AGENT": DEAF, "STOP_AGENT": IGNORED}, "cancel"),
    Hostile("stop ignored", {"RUN_AGENT": DEAF, "STOP_AGENT": IGNORED}, "force"),
    Hostile("stop ignored", {"RUN_AGENT": DEAF, "STOP_AGENT": IGNORED}, **TIMED_OUT),
    Hostile("stop hangs", {"RUN_AGENT": DEAF, "STOP_AGENT": DEAF}, "cancel"),
    Hostile("stop hangs", {"RUN_AGENT": DEAF, "STOP_AGENT": DEAF}, "force"),
    Hostile("stop hangs", {"RUN_AGENT": DEAF, "STOP_AGENT": DEAF}, **TIMED_OUT),
    Hostile("stop fails", {"RUN_AGENT": DEAF, "STOP_AGENT": FAILS}, "cancel"),
    Hostile("stop fails slowly", {"RUN_AGENT": DEAF, "STOP_AGENT": FAILS_SLOWLY}, **TIMED_OUT),
    Hostile("follower fails for ever", {"RUN_AGENT": FAILS, "STOP_AGENT": FAILS}, "cancel"),
    Hostile("follower fails for ever", {"RUN_AGENT": FAILS}, **TIMED_OUT),
    Hostile(
        "a verdict, and the stop hangs",
        {
            "RUN_AGENT": always(Act(AgentResult(running=True, cause=Cause.NO_OUTPUT_TIMEOUT, error="silent"))),
            "STOP_AGENT": DEAF,
        },
        at=42.0,
        state=TaskState.FAILED,
        cause=Cause.NO_OUTPUT_TIMEOUT,
    ),
    Hostile("staging hangs", {"STAGE": DEAF}, "cancel", at=20.0, within=ABSENT),
    Hostile(
        "staging hangs",
        {"STAGE": DEAF},
        at=1.0,
        within=16 * MINUTE,
        state=TaskState.FAILED,
        cause=Cause.STAGE_TIMEOUT,
    ),
    Hostile("provisioning hangs", {"PROVISION": DEAF}, "force", at=20.0, within=ABSENT),
    Hostile(
        "provisioning hangs",
        {"PROVISION": DEAF},
        at=11.0,
        within=11 * MINUTE,
        state=TaskState.FAILED,
        cause=Cause.PROVISION_TIMEOUT,
    ),
    Hostile("secrets hang", {"SECRETS": DEAF}, at=31.0, within=21 * MINUTE, state=TaskState.FAILED, cause=Cause.SECRET),
    Hostile("reserve hangs", {"RESERVE": DEAF}, "cancel", at=60.0, within=ABSENT),
    Hostile("no room", {"RESERVE": always(Act(fails="no_room"))}, "cancel", at=9 * HOUR, within=ABSENT),
    Hostile("collection hangs", {"COLLECT": DEAF}, "cancel", within=62 * MINUTE),
    Hostile("collection hangs", {"COLLECT": DEAF}, "force in COLLECT", at=AGENT_SECONDS + 100, within=ABSENT),
    Hostile(
        "collection fails",
        {"COLLECT": FAILS_SLOWLY},
        at=AGENT_SECONDS,
        within=10 * MINUTE,
        state=TaskState.FAILED,
        cause=Cause.COLLECT,
    ),
    Hostile(
        "tear-down hangs",
        {"RELEASE": DEAF},
        at=AGENT_SECONDS,
        within=12 * MINUTE,
        state=TaskState.COMPLETED,
        cause=None,
    ),
    Hostile(
        "tear-down fails",
        {"RELEASE": FAILS},
        at=AGENT_SECONDS,
        within=12 * MINUTE,
        state=TaskState.COMPLETED,
        cause=None,
    ),
    Hostile(
        "keeping hangs",
        {"RELEASE": DEAF, "RUN_AGENT": REFUSES},
        "cancel",
        at=100.0,
        manifest={"failure_action": "preserve"},
        within=12 * MINUTE,
    ),
]


def ask(clock: SkippingClock, asked: str) -> None:
    clock.signal("cancel", CancelRequest(force=asked.startswith("force")))


@pytest.mark.parametrize("row", HOSTILE, ids=lambda row: f"{row.name}, {row.asked or 'nothing asked'}")
def test_a_hostile_guest_or_host_keeps_no_run_from_ending(row: Hostile) -> None:
    clock = a_run(a_manifest(**row.manifest), **row.instead)
    if row.asked:
        clock.at(row.at, lambda: ask(clock, row.asked or ""))
    status = clock.run(most=row.at + row.within)
    assert (status.state, status.cause) == (row.state, row.cause)
    assert clock.events < 1_000


def test_a_machine_is_ended_from_its_host_when_its_agent_cannot_be_stopped_in_it() -> None:
    clock = a_run(RUN_AGENT=DEAF, STOP_AGENT=IGNORED)
    clock.at(300.0, lambda: ask(clock, "cancel"))
    status = clock.run()
    stops = [request for _, name, request in clock.calls if name == steps.STOP_AGENT.name]
    assert [stop.machine for stop in stops] == [False, True]
    assert any("ended from its host" in note for note in status.notes)


# Moments in the course of a run: beginning of each step that the host's worker carries out.
PHASES = {
    "STAGE": 1.0,
    "PROVISION": 11.0,
    "SECRETS": 21.0,
    "RUN_AGENT": 31.0,
    "COLLECT": AGENT_SECONDS + 31.0,
    "RELEASE": AGENT_SECONDS + 41.0,
}


@pytest.mark.parametrize("asked", ["cancel", "force"])
@pytest.mark.parametrize("before", [0.5, -0.5], ids=["away before it begins", "dies in it"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_cancelled_run_whose_host_is_away_ends_at_once_and_leaves_the_machine(
    phase: str, before: float, asked: str
) -> None:
    clock = a_run()
    clock.away = [(PHASES[phase] - before, NEVER)]
    clock.at(PHASES[phase] + 5.0, lambda: ask(clock, asked))
    status = clock.run(most=PHASES[phase] + 5.0 + ABSENT)
    assert status.state is TaskState.CANCELLED
    assert status.error == "Cancelled: User requested cancellation"
    assert any("was away when the run ended" in note for note in status.notes)


@pytest.mark.parametrize(
    ("phase", "cause"),
    [
        ("STAGE", Cause.STAGE_TIMEOUT),
        ("PROVISION", Cause.PROVISION_TIMEOUT),
        ("SECRETS", Cause.HOST_LOST),
        ("RUN_AGENT", Cause.HOST_LOST),
        ("COLLECT", Cause.HOST_LOST),
        ("RELEASE", None),
    ],
)
def test_a_host_that_stays_away_ends_the_run_after_its_patience_and_is_asked_nothing_more(
    phase: str, cause: Cause | None
) -> None:
    clock = a_run()
    clock.away = [(PHASES[phase] + 0.5, NEVER)]
    status = clock.run(most=PHASES[phase] + 17 * MINUTE)
    assert status.cause is cause
    if cause is not None and cause is not Cause.HOST_LOST:
        assert "Host here was not heard of" in (status.error or "")
    assert any("was away when the run ended" in note for note in status.notes)


@pytest.mark.parametrize("phase", PHASES)
def test_a_worker_that_is_started_anew_loses_no_run(phase: str) -> None:
    clock = a_run()
    clock.away = [(PHASES[phase] + 1.0, PHASES[phase] + 20.0)]
    status = clock.run(most=AGENT_SECONDS * 2 + 5 * MINUTE)
    assert status.state is TaskState.COMPLETED
    assert status.notes == []


def test_a_run_shows_its_last_state_while_the_bucket_is_away_and_ends_without_it() -> None:
    clock = a_run(FINISH=always(Act(fails="bucket_unavailable")))
    shown: list[TaskStatus] = []
    clock.at(2 * HOUR, lambda: shown.append(clock.status()))
    status = clock.run(most=25 * HOUR)
    assert status.state is shown[0].state is TaskState.COMPLETED
    assert "only Temporal knows" in status.notes[-1]
    assert clock.memo["status"]["notes"] == status.notes
    assert clock.events < 200


@pytest.mark.parametrize("behaviour", [FAILS, REFUSES, HANGS, DEAF], ids=["fails", "refuses", "hangs", "is deaf"])
def test_a_delivery_that_fails_is_told_and_does_not_strand_the_session(behaviour: Behaviour) -> None:
    clock = a_run(RUN_AGENT=HANGS, DELIVER=behaviour)

    def end(_request: Any = None, _attempt: int = 1) -> Act:
        clock.at(clock.now + 1.0, lambda: clock.finish(steps.RUN_AGENT, Act(AgentResult(exit_code=0))))
        return Act(takes=0.5)

    clock.acts[steps.CLOSE.name] = end
    clock.at(100.0, lambda: clock.signal("user_message", UserMessage(text="more", id="1")))
    # A follower that is told to close the session does it by itself.
    clock.at(110.0, lambda: clock.update("end_turn", TurnEnded(results=1), lambda close: end() if close else None))
    status = clock.run(most=100.0 + 26 * MINUTE)
    assert status.state is TaskState.COMPLETED
    assert status.undelivered_messages == ["1"]
    assert any("could not be delivered" in note for note in status.notes)


@pytest.mark.parametrize("behaviour", [DEAF, FAILS, always(Act(takes=45.0))], ids=["hangs", "fails", "succeeds"])
def test_messages_that_wait_when_the_agent_ends_are_told_and_not_delivered_any_more(behaviour: Behaviour) -> None:
    clock = a_run(DELIVER=behaviour, COLLECT=always(Act(CollectResult(), takes=20.0)), RELEASE=HANGS)
    end = PHASES["RUN_AGENT"] + AGENT_SECONDS
    for number in range(3):
        message = UserMessage(text="more", id=str(number))
        clock.at(end - 1.0, lambda message=message: clock.signal("user_message", message))
    status = clock.run()
    assert status.state is TaskState.COMPLETED
    assert set(status.undelivered_messages) >= {"1", "2"}
    assert not [name for at, name, _ in clock.calls if name == steps.DELIVER.name and at > end + 1.0]
    assert clock.unheard == []
    assert not any("could not be delivered" in note for note in status.notes)


def test_undelivered_messages_show_while_the_run_goes_on() -> None:
    clock = a_run(DELIVER=REFUSES)
    seen: list[TaskStatus] = []
    clock.at(100.0, lambda: clock.signal("user_message", UserMessage(text="more", id="1")))
    clock.at(200.0, lambda: seen.append(clock.status()))
    clock.run()
    assert (seen[0].state, seen[0].undelivered_messages) == (TaskState.RUNNING, ["1"])


def test_a_session_that_cannot_be_closed_is_ended() -> None:
    clock = a_run(RUN_AGENT=HANGS, CLOSE=FAILS, STOP_AGENT=IGNORED)
    clock.at(100.0, lambda: clock.signal("user_message", UserMessage(text="more")))
    clock.at(100.0, lambda: clock.update("end_turn", TurnEnded(results=1)))
    status = clock.run(most=100.0 + 25 * MINUTE + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.MACHINE_LOST)


def test_a_message_after_the_close_is_told_as_undelivered() -> None:
    clock = a_run()
    seen: list[TaskStatus] = []
    clock.at(100.0, lambda: clock.signal("close"))
    clock.at(101.0, lambda: clock.signal("user_message", UserMessage(text="more", id="late")))
    clock.at(102.0, lambda: seen.append(clock.status()))
    status = clock.run()
    assert not seen[0].takes_messages
    assert seen[0].undelivered_messages == status.undelivered_messages == ["late"]
    assert any("after the session was closed" in note for note in status.notes)
    assert steps.DELIVER.name not in [name for _, name, _ in clock.calls]


def test_a_flood_of_messages_and_cancels_breaks_no_run() -> None:
    flood = 1_500
    clock = a_run(RUN_AGENT=HANGS, DELIVER=DEAF)
    for number in range(flood):
        message = UserMessage(text="x", id=str(number))
        clock.at(100.0 + number / 100, lambda message=message: clock.signal("user_message", message))
        clock.at(130.0 + number / 100, lambda: ask(clock, "force"))
    status = clock.run(most=150.0 + ENDING)
    assert status.state is TaskState.CANCELLED
    # A server takes 10,000 signals of one run, and 51,200 events.
    assert clock.events * 10_000 / (2 * flood) < 45_000
    assert len(status.undelivered_messages) == 100
    assert any("were waiting already" in note for note in status.notes)
    assert len(status.notes) < 10


def test_a_history_that_is_nearly_full_ends_the_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "WHOLE", Share(10_000, 1_000, 40 * 2**20))
    clock = a_run(RUN_AGENT=HANGS, CLOSE=HANGS)
    clock.manifest.claude.headless = False
    for number in range(1_000):
        clock.at(100.0 + number / 10, lambda: clock.update("end_turn", TurnEnded(results=1)))
    status = clock.run(most=200.0 + ENDING)
    assert (status.state, status.cause) == (TaskState.FAILED, Cause.INTERNAL)
    assert "filled its history" in (status.error or "")


@given(
    name=st.integers(1, 100_000),
    labels=st.integers(0, 300),
    reason=st.integers(1, 1_000_000),
    text=st.integers(1, 1_500_000),
    ident=st.integers(1, 400_000),
    result=st.integers(1, 900_000),
    error=st.integers(1, 900_000),
)
@settings(max_examples=15)
def test_nothing_that_others_say_overfills_history_or_memo(
    name: int, labels: int, reason: int, text: int, ident: int, result: int, error: int
) -> None:
    manifest = a_manifest()
    manifest.metadata.name = "n" * name
    manifest.metadata.labels = {f"label-{number}": "v" * 1_000 for number in range(labels)}
    answer = AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="e" * error, result="r" * result)
    clock = a_run(manifest, RUN_AGENT=always(Act(answer, takes=AGENT_SECONDS)))
    for number in range(5):
        message = UserMessage(text="t" * text, id=f"{'i' * ident}{number}")
        clock.at(100.0 + number, lambda message=message: clock.signal("user_message", message))
    clock.at(600.0, lambda: clock.signal("cancel", CancelRequest(reason="c" * reason)))
    status = clock.run()
    assert status.state is TaskState.CANCELLED
    assert len(status.model_dump_json()) < 300_000
    assert clock.largest_payload < MESSAGE_BYTES * 2 + len("n" * name) + labels * 1_100
    assert all(len(each) <= 200 for each in status.undelivered_messages)


BEHAVIOURS = st.sampled_from([None, None, None, HANGS, DEAF, FAILS, FAILS_SLOWLY, REFUSES])
BROKEN = st.fixed_dictionaries(
    dict.fromkeys(
        ("STAGE", "PROVISION", "SECRETS", "RUN_AGENT", "STOP_AGENT", "DELIVER", "CLOSE", "COLLECT", "RELEASE"),
        BEHAVIOURS,
    )
)


@given(
    broken=BROKEN,
    asked=st.sampled_from([None, "cancel", "force"]),
    at=st.floats(0, 2 * HOUR),
    forced_at=st.none() | st.floats(0, 3 * HOUR),
    away=st.none() | st.tuples(st.floats(0, 2 * HOUR), st.floats(1, 2 * HOUR) | st.just(NEVER)),
    message_at=st.none() | st.floats(0, HOUR),
    turn_at=st.none() | st.floats(0, HOUR),
    preserve=st.booleans(),
)
@settings(max_examples=100)
def test_whatever_breaks_a_run_ends_within_its_limits(
    broken: dict[str, Behaviour | None],
    asked: str | None,
    at: float,
    forced_at: float | None,
    away: tuple[float, float] | None,
    message_at: float | None,
    turn_at: float | None,
    preserve: bool,
) -> None:
    clock = a_run(
        a_manifest(failure_action="preserve" if preserve else "destroy"),
        **{name: behaviour for name, behaviour in broken.items() if behaviour},
    )
    if away:
        clock.away = [(away[0], away[0] + away[1])]
    if asked:
        clock.at(at, lambda: ask(clock, asked))
    if forced_at:
        clock.at(forced_at, lambda: ask(clock, "force"))
    if message_at:
        clock.at(message_at, lambda: clock.signal("user_message", UserMessage(text="more")))
    if turn_at:
        clock.at(turn_at, lambda: clock.update("end_turn", TurnEnded(results=1)))
    stages = 15 * MINUTE + 10 * MINUTE + 20 * MINUTE
    completing = 75 * MINUTE + 25 * MINUTE + 10 * MINUTE
    status = clock.run(most=stages + TIMEOUT + 15 * MINUTE + 15 * MINUTE + ENDING + completing)
    assert status.state.terminal
    assert clock.unheard == []
    assert (status.cause is None) == (status.state is TaskState.COMPLETED)
    assert clock.events < 2_000
    if asked:
        # Who cancels waits at most for the agent's end, the collection and the tear-down.
        assert (clock.ended_at or 0.0) <= max(at + ENDING + 2 * MINUTE + 61 * MINUTE + 11 * MINUTE + MINUTE, 0) or (
            status.state is not TaskState.CANCELLED
        )
