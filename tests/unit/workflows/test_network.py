"""Changes of a network keep no run from its end and fill no history, whatever its host does: on a skipping clock."""

from __future__ import annotations

import pytest

from tests.stand_ins.skipping_clock import Behaviour, SkippingClock
from tests.unit.workflows.test_ending import AGENT_SECONDS, DEAF, FAILS, HANGS, MINUTE, PHASES, REFUSES, a_run, ask
from workflows import steps
from workflows.runs import network
from workflows.runs.messages import NetworkChange
from workflows.runs.states import Cause, TaskState

BEHAVIOURS = pytest.mark.parametrize(
    "behaviour", [FAILS, REFUSES, HANGS, DEAF], ids=["fails", "refuses", "hangs", "is deaf"]
)


def allow(clock: SkippingClock, at: float, name: str) -> None:
    clock.at(at, lambda: clock.signal("network", NetworkChange(allow=[name])))


@BEHAVIOURS
def test_a_change_that_its_host_does_not_take_is_told_and_ends_nothing(behaviour: Behaviour) -> None:
    clock = a_run(NETWORK=behaviour)
    allow(clock, 100.0, "a.example.org")
    allow(clock, 101.0, "b.example.org")
    status = clock.run(most=AGENT_SECONDS + 10 * MINUTE)
    assert (status.state, status.network_in_force) == (TaskState.COMPLETED, False)
    assert status.network_policy is not None
    assert status.network_policy.hosts == []
    assert any("A change of the network was refused" in note for note in status.notes)
    assert clock.unheard == []


@BEHAVIOURS
def test_a_change_before_the_agent_that_its_host_does_not_take_ends_the_run(behaviour: Behaviour) -> None:
    clock = a_run(NETWORK=behaviour)
    allow(clock, PHASES["PROVISION"] + 1.0, "a.example.org")
    status = clock.run(most=30 * MINUTE)
    assert status.state is TaskState.FAILED
    assert status.cause in {Cause.PROVISION, Cause.INTERNAL}
    assert not [name for _, name, _ in clock.calls if name == steps.RUN_AGENT.name]


@pytest.mark.parametrize("asked", ["cancel", "force"])
def test_a_cancel_does_not_wait_for_a_change(asked: str) -> None:
    clock = a_run(NETWORK=DEAF)
    for number in range(5):
        allow(clock, 100.0 + number, f"h{number}.example.org")
    clock.at(200.0, lambda: ask(clock, asked))
    status = clock.run(most=200.0 + 15 * MINUTE)
    assert status.state is TaskState.CANCELLED
    assert clock.unheard == []
    assert {request.revision for _, name, request in clock.calls if name == steps.NETWORK.name} == {1}


@pytest.mark.parametrize("seconds", [0.0, 1.0], ids=["at once", "one after another"])
def test_a_flood_of_changes_costs_no_more_than_one_run_bears(seconds: float) -> None:
    clock = a_run()
    for number in range(2 * network.CHANGES_MOST):
        allow(clock, 100.0 + number * seconds, f"h{number % 150}.example.org")
        clock.at(
            100.5 + number * seconds,
            lambda number=number: clock.signal(  # type: ignore[misc]
                "network", NetworkChange(remove=[f"h{number % 150}.example.org"])
            ),
        )
    status = clock.run(most=AGENT_SECONDS * 2)
    assert status.state is TaskState.COMPLETED
    made = [request for _, name, request in clock.calls if name == steps.NETWORK.name]
    assert len(made) <= network.CHANGES_MOST
    assert [request.revision for request in made] == list(range(1, len(made) + 1))
    assert any("changes of the network are waiting" in note or "the most for one run" in note for note in status.notes)
    assert len(status.notes) <= 12
    assert clock.events < 25_000
