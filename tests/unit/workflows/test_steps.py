"""The table of steps: each row belongs to a kind of workflow, and the sentences about the rows are true."""

from __future__ import annotations

import re
from datetime import timedelta

from workflows import steps
from workflows.names import RUNS

WAITS = {None: "-", steps.HOST_PATIENCE: "HOST_PATIENCE", steps.ABSENCE: "ABSENCE"}


def written(limit: timedelta) -> str:
    """As the table has it: days in hours, and nothing that is zero."""
    seconds = int(limit.total_seconds())
    parts = ((seconds // 3600, "h"), (seconds // 60 % 60, "min"), (seconds % 60, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number)


def told() -> dict[str, list[str]]:
    """The rows of the docstring by the names of their steps: wait, time, and all in all."""
    _, _, table = (steps.__doc__ or "").partition("at most\n")
    rows = [re.split(r"\s{2,}", line.strip()) for line in table.partition("\n\n")[0].splitlines()]
    return {name: cells for name, *cells in rows}


def test_every_step_belongs_to_a_kind_of_workflow_and_has_a_name_of_its_own() -> None:
    defined = {step.name for step in vars(steps).values() if isinstance(step, steps.Step)}
    rows = [step.name for step in {id(step): step for row in steps.OF.values() for step in row}.values()]
    assert sorted(rows) == sorted(defined)
    assert len(rows) == len(steps.BY_NAME)


def test_the_sentences_about_the_steps_of_a_run_are_true() -> None:
    names = {id(step): name for name, step in vars(steps).items() if isinstance(step, steps.Step)}
    rows = told()
    exception = rows.pop("preserve")
    assert list(rows) == [names[id(step)] for step in steps.OF[RUNS]]
    for step in steps.OF[RUNS]:
        wait, takes, in_all = rows[names[id(step)]]
        assert wait == WAITS[step.wait]
        assert takes == (written(step.bound) if step.bound else "-")
        if step.bound:
            assert in_all.partition(";")[0] == written(step.bound + (step.wait or timedelta()))
        elif step.queue is steps.Queue.HOST:
            assert in_all.startswith("lifecycle.")
    assert steps.RELEASE.bound is not None
    assert exception == [
        "HOST_PATIENCE",
        written(steps.RELEASE.bound),
        written(steps.RELEASE.bound + steps.HOST_PATIENCE),
    ]
