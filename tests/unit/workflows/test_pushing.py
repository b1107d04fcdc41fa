"""The push of a run: what a manifest may say of it, and that nothing which becomes of it keeps a run from ending."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.errors import InvalidManifest
from tests.stand_ins.skipping_clock import Act, Behaviour, SkippingClock
from tests.unit.workflows.test_ending import (
    AGENT_SECONDS,
    DEAF,
    FAILS,
    HANGS,
    MINUTE,
    PHASES,
    REFUSES,
    STEP_SECONDS,
    a_run,
    always,
)
from workflows import steps
from workflows.names import TELL
from workflows.runs.messages import CancelRequest, Pushed
from workflows.runs.requests import AgentResult, CollectResult
from workflows.runs.states import Cause, TaskState
from workflows.specs.manifest import Manifest, parse
from workflows.specs.pushing import own_branch
from workflows.told.record import Change
from workflows.told.states import LocalState

OPENS = {"name": "GIT_TOKEN", "source": "env", "key": "GIT_TOKEN"}
OTHER = {"name": "API_TOKEN", "source": "env", "key": "API_TOKEN"}
DONE = Pushed(branch="taskyard/a", commit="c0ffee")
# When the step begins, in a run in which all goes well.
BEGINS = 1.0 + 4 * STEP_SECONDS + AGENT_SECONDS
LONGEST = 36 * MINUTE


def a_manifest(**repository: Any) -> Manifest:
    return parse(
        {
            "metadata": {"name": "a"},
            "repository": {
                "url": "https://git.invalid/a.git",
                "branch": "main",
                "credentials": "GIT_TOKEN",
                "push": {},
                **repository,
            },
            "claude": {"prompt": "do it"},
            "secrets": [OPENS, OTHER],
        }
    )


def pushing(behaviour: Behaviour, **instead: Behaviour) -> SkippingClock:
    return a_run(a_manifest(), PUSH=behaviour, **instead)


def names(clock: SkippingClock) -> list[str]:
    return [name for _, name, _ in clock.calls]


def test_a_run_that_went_well_is_pushed_before_its_machine_and_its_secrets_go() -> None:
    collected = CollectResult(head="beef")
    clock = pushing(always(Act(DONE, takes=STEP_SECONDS)), COLLECT=always(Act(collected, takes=STEP_SECONDS)))

    status = clock.run()

    assert (status.state, status.pushed) == (TaskState.COMPLETED, DONE)
    order = [steps.COLLECT.name, steps.PUSH.name, steps.RELEASE.name, steps.FINISH.name]
    assert [name for name in names(clock) if name in order] == order


@pytest.mark.parametrize("behaviour", [HANGS, DEAF, FAILS, REFUSES], ids=["hangs", "is deaf", "fails", "refuses"])
def test_a_push_that_comes_to_nothing_is_told_and_costs_the_run_nothing(behaviour: Behaviour) -> None:
    clock = pushing(behaviour)

    status = clock.run(most=BEGINS + LONGEST + 10 * MINUTE)

    assert status.state is TaskState.COMPLETED
    assert status.pushed is not None
    assert "is not known" in f"{status.pushed.error}"


@pytest.mark.parametrize("behaviour", [HANGS, DEAF], ids=["hangs", "is deaf"])
def test_a_cancel_calls_the_push_off(behaviour: Behaviour) -> None:
    clock = pushing(behaviour)
    clock.at(BEGINS + MINUTE, lambda: clock.signal("cancel", CancelRequest()))

    status = clock.run(most=BEGINS + 4 * MINUTE)

    assert status.state is TaskState.CANCELLED
    assert status.pushed is not None
    assert "called off" in f"{status.pushed.error}"


def test_what_did_not_succeed_is_not_pushed() -> None:
    failed = AgentResult(exit_code=1, cause=Cause.AGENT_EXIT, error="It failed.")
    clock = pushing(always(Act(DONE)), RUN_AGENT=always(Act(failed, takes=AGENT_SECONDS)))

    status = clock.run()

    assert status.state is TaskState.FAILED
    assert status.pushed is not None
    assert "did not succeed" in f"{status.pushed.error}"
    assert steps.PUSH.name not in names(clock)


def test_what_a_client_says_has_failed_meanwhile_is_not_pushed() -> None:
    clock = pushing(always(Act(DONE)))
    clock.at(PHASES["COLLECT"] + 5.0, lambda: clock.update(TELL, Change(enter=LocalState.FAILED), lambda _: None))

    status = clock.run()

    assert (status.state, status.cause) == (TaskState.FAILED, Cause.TOLD)
    assert status.pushed is not None
    assert "did not succeed" in f"{status.pushed.error}"
    assert steps.PUSH.name not in names(clock)


def test_secrets_for_the_git_host_are_not_the_agents() -> None:
    manifest = a_manifest(push={"pull_request": {"credentials": "API_TOKEN"}})

    assert manifest.guest_secrets() == []
    opening, pushes, asks = manifest.credentials(), manifest.push_credentials(), manifest.api_credentials()
    assert opening is not None
    assert (opening.name, pushes and pushes.name, asks and asks.name) == ("GIT_TOKEN", "GIT_TOKEN", "API_TOKEN")
    assert [each.name for each in a_manifest(push=None).guest_secrets()] == ["API_TOKEN"]


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"url": "file:///a"}, "repository.push", "needs a git server"),
    ({"credentials": None}, "repository.push.credentials", "is required"),
    ({"push": {"credentials": "NOBODY"}}, "repository.push.credentials", "no secret of this manifest"),
    ({"url": "http://h/a", "credentials": None, "push": {"credentials": "GIT_TOKEN"}}, "repository.push.credentials",
     "unencrypted"),
    ({"push": {"branch": "main"}}, "repository.push.branch", "must not be 'main'"),
    ({"push": {"branch": "next", "pull_request": {"base": "next"}}}, "repository.push.branch", "must not be 'next'"),
    ({"push": {"branch": "HEAD"}}, "repository.push.branch", "no name for a branch"),
    ({"push": {"branch": "refs/tags/v1"}}, "repository.push.branch", "no name for a branch"),
    ({"push": {"branch": "a..b"}}, "repository.push.branch", "not a branch name"),
    ({"push": {"branch": "--force"}}, "repository.push.branch", "not a branch name"),
    ({"push": {"author": "nobody"}}, "repository.push.author", "Name <address>"),
    ({"push": {"author": "A <a@b>\nB <b@c>"}}, "repository.push.author", "Name <address>"),
    ({"push": {"message": " "}}, "repository.push.message", "must not be empty"),
    ({"push": {"message": "a\x00b"}}, "repository.push.message", "control characters"),
    ({"push": {"pull_request": {"title": "a\nb"}}}, "repository.push.pull_request.title", "one line"),
    ({"push": {"pull_request": {"body": "a\x1b"}}}, "repository.push.pull_request.body", "control characters"),
    ({"push": {"pull_request": {"titel": "a"}}}, "repository.push.pull_request.titel", "did you mean 'title'"),
    ({"url": "git@h:a", "push": {"pull_request": {}}}, "repository.push.pull_request.credentials", "opens no API"),
]  # fmt: skip


@pytest.mark.parametrize(("repository", "field", "words"), WRONG, ids=[f"{row[1]}-{row[2][:12]}" for row in WRONG])
def test_what_a_manifest_may_not_say_of_a_push(repository: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        a_manifest(**repository)
    found = {each["field"]: each["message"] for each in refused.value.details["errors"]}
    assert words in found.get(field, f"{found}")


@pytest.mark.parametrize("task_id", ["a", "a..b", "a.lock", "a."])
def test_every_run_has_a_branch_of_its_own_that_git_takes(task_id: str) -> None:
    assert a_manifest(push={"branch": own_branch(task_id)}).repository.push is not None
