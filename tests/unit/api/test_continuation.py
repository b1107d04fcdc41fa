"""Which runs a manifest may continue, and what a run that is resumed is started with."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

import pytest

from api.runs.continuation.rules import chain_of
from api.runs.core import Core, TaskView
from api.runs.retrying import resume
from foundation.errors import Conflict, InvalidManifest, TaskNotFound
from workflows.runs.messages import CHAIN_MOST, TaskStatus
from workflows.runs.states import TaskState
from workflows.specs.manifest import parse
from workflows.specs.wire import Manifest

AT = datetime(2026, 1, 2, tzinfo=UTC)
BASE = "c0ffee00" * 5
REPOSITORY = {"url": "https://example.org/app.git", "branch": "main"}


def manifest(repository: dict[str, Any] | None = None, **parts: Any) -> Manifest:
    data = {
        "version": "1",
        "kind": "Task",
        "metadata": {"name": "x", "labels": {"team": "a"}},
        "repository": REPOSITORY | (repository or {}),
        "claude": {"prompt": "begin", "permission_mode": "plan"},
    }
    return parse(data | parts)


class Runs:
    """One run, called ``first``; keeps what is submitted."""

    def __init__(self, state: TaskState = TaskState.COMPLETED, **facts: Any) -> None:
        given = {"manifest": manifest(), "base_commit": BASE} | facts
        self.run = TaskStatus(id="first", name="x", state=state, created_at=AT, state_changed_at=AT, **given)
        self.submitted: Manifest | None = None
        self.viewer: str | None = None

    async def status_of(self, task_id: str) -> TaskStatus:
        if task_id != self.run.id:
            raise TaskNotFound(f"There is no task '{task_id}'.")
        return self.run

    async def status(self, task_id: str, *, definition: bool) -> TaskView:
        assert definition
        return TaskView(await self.status_of(task_id), live=True)

    async def submit(self, again: Manifest, *, viewer: str | None) -> TaskStatus:
        self.submitted, self.viewer = again, viewer
        return TaskStatus(id="second", name="x", created_at=AT, state_changed_at=AT)


@pytest.mark.parametrize("state", [state for state in TaskState if state.terminal])
async def test_any_run_that_has_ended_can_be_continued_however_it_ended(state: TaskState) -> None:
    runs = Runs(state)
    for repository in ({}, {"commit": BASE}, {"commit": BASE[:8].upper()}):
        wanted = manifest(repository, resume={"run": "first"})
        assert await chain_of(wanted, runs.status_of) == ["first"]
    assert await chain_of(manifest(), runs.status_of) == []


@pytest.mark.parametrize("state", [state for state in TaskState if not state.terminal])
async def test_a_run_that_goes_on_is_not_continued(state: TaskState) -> None:
    with pytest.raises(Conflict) as refused:
        await chain_of(manifest(resume={"run": "first"}), Runs(state).status_of)
    assert f"is {state} and can be continued once it has ended" in refused.value.message


@pytest.mark.parametrize(
    ("repository", "run", "field"),
    [
        ({}, "another", "resume.run"),
        ({"url": "https://example.org/other.git"}, "first", "repository.url"),
        ({"branch": "dev"}, "first", "repository.branch"),
        ({"commit": "0123456789"}, "first", "repository.commit"),
    ],
)
async def test_what_does_not_fit_the_earlier_run_is_refused_by_its_field(
    repository: dict[str, str], run: str, field: str
) -> None:
    with pytest.raises(InvalidManifest) as refused:
        await chain_of(manifest(repository, resume={"run": run}), Runs().status_of)
    assert [error["field"] for error in refused.value.details["errors"]] == [field]


async def test_a_chain_names_its_last_runs() -> None:
    long = [f"run-{number}" for number in range(CHAIN_MOST)]
    chain = await chain_of(manifest(resume={"run": "first"}), Runs(continues=long).status_of)
    assert chain == [*long[1:], "first"]


async def test_a_resumed_run_has_the_manifest_of_the_earlier_one_with_another_prompt() -> None:
    runs = Runs(manifest=manifest({"commit": BASE}, resume={"run": "zero", "conversation": False}))
    await resume(cast("Core", runs), "first", "somebody", "go on", new_id="third")
    assert runs.viewer == "somebody"
    assert runs.submitted is not None
    assert runs.submitted.resume is not None
    assert (runs.submitted.resume.run, runs.submitted.resume.conversation) == ("first", True)
    assert (runs.submitted.metadata.id, runs.submitted.metadata.labels) == ("third", {"team": "a"})
    assert (runs.submitted.claude.prompt, runs.submitted.claude.permission_mode) == ("go on", "plan")
    assert runs.submitted.repository.commit is None
    with pytest.raises(InvalidManifest, match=r"claude\.prompt"):
        await resume(cast("Core", runs), "first", "somebody", "  ")
    with pytest.raises(Conflict):
        await resume(cast("Core", Runs(manifest=None)), "first", "somebody", "go on")
