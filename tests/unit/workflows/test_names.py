"""The table of names is what the workflow, the files for people and every room go by."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import temporalio.workflow
import yaml

from workflows import names
from workflows.runs.workflow import TaskWorkflow

ROOT = Path(__file__).resolve().parents[3]
ROOMS = ("foundation", "workflows", "activities", "machines", "storage", "api", "worker", "client", "cli", "benchmarks")
TABLE = ROOT / "workflows" / "names.py"


def test_the_workflow_of_a_run_is_reached_by_these_names_and_no_others() -> None:
    definition = temporalio.workflow._Definition.must_from_class(TaskWorkflow)
    assert definition.name == names.RUNS.type
    public = {names.CANCEL, names.USER_MESSAGE, names.CLOSE, names.CONTINUE, names.NETWORK}
    steering = {names.INTERRUPT, names.ANSWER, names.CONFIGURE, names.CLEAR_MESSAGES}
    assert set(definition.signals) == {*public, *steering, names.TURN_ENDED, names.AGENT_SAID}
    steered = {names.INTERRUPT_TURN, names.ANSWER_REQUEST, names.CONFIGURE_AGENT, names.CLEAR_WAITING}
    assert set(definition.updates) == {names.END_TURN, names.CHANGE_NETWORK, names.CONTINUE_RUN, *steered}
    assert set(definition.queries) == {names.STATUS, names.MESSAGES}


def test_an_id_tells_the_kind_of_its_workflow() -> None:
    assert names.RUNS.resource_id(names.RUNS.workflow_id("1ssrg4b-k3f9q")) == "1ssrg4b-k3f9q"
    assert names.RUNS.resource_id(names.RUNS.workflow_id("task-1")) == "task-1"
    assert names.RUNS.resource_id("another-1ssrg4b") is None


def test_people_register_the_search_attributes_that_are_written() -> None:
    listed = yaml.safe_load((ROOT / "temporal-dev" / "search-attributes.yaml").read_text())
    assert listed == {key.name: key._metadata_type for key in names.SEARCH_ATTRIBUTES}
    written = {value.name for value in vars(names).values() if isinstance(value, names.SearchAttributeKey)}
    assert written == set(listed)


@pytest.mark.parametrize("room", ROOMS)
def test_no_room_writes_such_a_name_by_itself(room: str) -> None:
    known = {names.RUNS.type, names.RUNS.id_prefix, *(key.name for key in names.SEARCH_ATTRIBUTES)}
    literal = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted((ROOT / room).rglob("*.py"))
        if path != TABLE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in known
    }
    assert not literal
