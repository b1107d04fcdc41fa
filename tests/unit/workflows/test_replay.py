"""Runs that began under an earlier version go on under this one."""

from __future__ import annotations

from pathlib import Path

import pytest
from temporalio.client import WorkflowHistory
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from worker.registry import WORKFLOWS
from workflows.names import LOCAL_RUNS, PARENTS, RUNS, WorkflowKind

# The folders of recorded histories, each of one kind of workflow.
KINDS = {"runs": RUNS, "parents": PARENTS, "told": LOCAL_RUNS}
HISTORIES = sorted((Path(__file__).parents[2] / "histories").glob("*/*.json"))


def test_there_are_histories_to_replay() -> None:
    assert {path.stem for path in HISTORIES} >= {"completed", "cancelled", "failed_preserved", "not_staged"}
    assert {KINDS[path.parent.name] for path in HISTORIES} == WORKFLOWS.keys()


@pytest.mark.parametrize("runner", [SandboxedWorkflowRunner(), UnsandboxedWorkflowRunner()], ids=["sandbox", "worker"])
@pytest.mark.parametrize(
    ("kind", "name", "recorded"), [(KINDS[path.parent.name], path.stem, path.read_text()) for path in HISTORIES]
)
async def test_a_recorded_history_replays(kind: WorkflowKind, name: str, recorded: str, runner: WorkflowRunner) -> None:
    replayer = Replayer(
        workflows=[WORKFLOWS[kind]],
        data_converter=pydantic_data_converter,
        workflow_runner=runner,
        # Without one, the SDK hashes the code of all modules in the event loop.
        build_id="replayed",
    )
    history = WorkflowHistory.from_json(kind.workflow_id(name), recorded)
    result = await replayer.replay_workflow(history, raise_on_replay_failure=False)
    assert result.replay_failure is None
