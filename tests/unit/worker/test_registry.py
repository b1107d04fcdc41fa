"""Every step of the table is carried out by the worker, and on the queue that the table names."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import temporalio.activity
import temporalio.workflow

from foundation.settings import Settings
from machines.host import MachineHost
from worker.metrics import WorkerMetrics
from worker.registry import WORKFLOWS, Activity, implementations, placed
from workflows import steps


def name_of(activity: Activity) -> str:
    """The name under which Temporal has it."""
    return str(temporalio.activity._Definition.must_from_callable(activity).name)


async def carried_out(home: Path) -> dict[str, Activity]:
    settings = Settings(home=home)
    return implementations(settings, Mock(), MachineHost(settings), Mock(), Mock(), Mock(), WorkerMetrics())


async def test_each_step_has_one_implementation_that_takes_and_gives_what_the_table_says(tmp_path: Path) -> None:
    found = await carried_out(tmp_path)
    assert found.keys() == steps.BY_NAME.keys()
    for name, activity in found.items():
        definition = temporalio.activity._Definition.must_from_callable(activity)
        step = steps.BY_NAME[name]
        assert definition.name == name
        assert definition.arg_types == [step.request]
        assert definition.ret_type is (step.result or type(None))


async def test_a_step_runs_on_the_queue_of_its_row(tmp_path: Path) -> None:
    work = placed(await carried_out(tmp_path))
    shared, host, agents = ({name_of(each) for each in queue} for queue in (work.shared, work.host, work.agents))
    assert shared == {"reserve_host", "finish_run", "finish_local_run"}
    assert agents == {"run_agent"}
    assert host == steps.BY_NAME.keys() - shared


def test_every_kind_of_workflow_that_has_steps_is_carried_out_too() -> None:
    assert WORKFLOWS.keys() == steps.OF.keys()
    for kind, workflow in WORKFLOWS.items():
        assert temporalio.workflow._Definition.must_from_class(workflow).name == kind.type
