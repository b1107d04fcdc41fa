"""The soak's own judgement: which answers are faults, and what counts as growth."""

from __future__ import annotations

import pytest

from benchmarks.soak.growth import Growth
from benchmarks.soak.truth import Span
from workflows.runs.states import TaskState

PENDING, RUNNING, COMPLETING, COMPLETED, FAILED = (
    TaskState(name) for name in ("pending", "running", "completing", "completed", "failed")
)
EVERY = frozenset(TaskState)
SPAN = Span(
    before={"steady": RUNNING, "moved": RUNNING, "gone": COMPLETED},
    after={"steady": RUNNING, "moved": COMPLETED, "new": RUNNING},
)


@pytest.mark.parametrize(
    ("shown", "faults"),
    [
        ({"steady": RUNNING, "moved": RUNNING}, 0),
        ({"steady": RUNNING, "moved": COMPLETED, "gone": COMPLETED, "new": PENDING}, 0),
        ({"steady": RUNNING, "moved": COMPLETING, "just submitted": PENDING}, 0),
        ({"steady": PENDING, "moved": RUNNING}, 1),
        ({"steady": COMPLETED, "moved": RUNNING}, 1),
        ({"steady": RUNNING, "moved": FAILED}, 1),
        ({"steady": RUNNING}, 1),
        ({"steady": RUNNING, "moved": RUNNING, "gone": RUNNING}, 1),
        ({"steady": RUNNING, "moved": RUNNING, "long gone": COMPLETED}, 1),
    ],
)
def test_a_list_may_show_what_was_true_at_some_time_of_the_answer(shown: dict[str, TaskState], faults: int) -> None:
    rows = [{"id": task_id, "state": state.value} for task_id, state in shown.items()]
    assert len(SPAN.faults_of_list(rows, EVERY)) == faults


def test_a_filter_lets_through_what_it_may_and_misses_nothing_that_it_must_show() -> None:
    assert SPAN.faults_of_list([{"id": "steady", "state": "running"}], frozenset({RUNNING})) == []
    assert len(SPAN.faults_of_list([], frozenset({RUNNING}))) == 1
    assert len(SPAN.faults_of_list([{"id": "moved", "state": "completed"}], frozenset({RUNNING}))) == 2


@pytest.mark.parametrize(("count", "fault"), [(0, True), (1, False), (3, False), (4, True)])
def test_a_count_lies_between_what_must_and_what_may_be_counted(count: int, fault: bool) -> None:
    assert bool(SPAN.fault_of_count("running", count, frozenset({RUNNING}))) is fault


@pytest.mark.parametrize(("gained", "grows"), [(-50, False), (20, False), (30, True)])
def test_growth_counts_when_it_is_more_than_noise(gained: float, grows: bool) -> None:
    assert Growth("server", "MiB", 110, gained).too_much is grows
