"""The budget of a run over the API: shown while it is spent, awaiting a decision, continued, and each wrong way to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from temporalio import activity

from tests.api_site import ApiSite
from tests.dialects.native.test_ws import next_of, stream, told
from tests.waiting import until
from workflows.runs.messages import AgentProgress, LiveProgress, TokenUsage
from workflows.runs.requests import AgentRequest, AgentResult
from workflows.runs.states import Cause

TASKS = "/api/v1/tasks"
SPENT = "The budget of this run is used up: $5.00 of $5.00 are spent."
PAUSE = {"claude": {"max_budget_usd": 5}, "lifecycle": {"budget_action": "pause"}}


@pytest.fixture
async def agent(site: ApiSite) -> AsyncIterator[asyncio.Event]:
    """An agent that spends, uses up what it has once the event is set, and is done in its second turn."""
    spends_all = asyncio.Event()

    async def follow(request: AgentRequest) -> AgentResult:
        limit = request.budget.usd if request.budget else None
        usage = TokenUsage(requests=1, input_tokens=100, cost_usd=1.5, budget_usd=limit)
        if site.steps.calls.count("run_agent") > 1:
            await site.steps.agent_over.wait()
            return AgentResult(exit_code=0, result="done", usage=usage)
        progress = AgentProgress(output_bytes=10, last_activity_at=activity.info().started_time)
        activity.heartbeat(LiveProgress(**progress.model_dump(), usage=usage))
        await spends_all.wait()
        spent = usage.model_copy(update={"cost_usd": limit})
        return AgentResult(running=True, cause=Cause.BUDGET_EXCEEDED, error=SPENT, usage=spent)

    site.steps.instead["run_agent"] = follow
    async with site.worker():
        yield spends_all


async def get(site: ApiSite, task_id: str) -> Any:
    return (await site.http.get(f"{TASKS}/{task_id}")).json()


async def test_a_run_shows_what_it_spends_waits_and_is_continued(site: ApiSite, agent: asyncio.Event) -> None:
    task_id = await site.submit(**PAUSE)
    spends = asyncio.Event()
    watching = asyncio.create_task(watched(site, task_id, spends))
    await asyncio.wait_for(spends.wait(), 60)

    shown = (await get(site, task_id))["usage"]
    assert (shown["cost_usd"], shown["budget_usd"], shown["budget_tokens"]) == (1.5, 5.0, None)
    early = await site.http.post(f"{TASKS}/{task_id}/continue", json={"budget_usd": 5})
    assert (early.status_code, early.json()["error"]) == (409, "conflict"), early.text

    agent.set()
    await site.until_state(task_id, "awaiting_decision")
    waiting = await get(site, task_id)
    assert (waiting["state_message"], waiting["usage"]["cost_usd"]) == (SPENT, 5.0)
    assert waiting["decision_until"] is not None
    assert waiting["error"] is None

    async def is_listed() -> bool:
        listed = (await site.http.get(TASKS, params={"state": "awaiting_decision"})).json()["tasks"]
        return task_id in [each["id"] for each in listed]

    # Lists are of what Temporal's visibility store has, which comes a moment after the run's own answer.
    await until(is_listed, "the run in the list of those that wait")

    for body, status, code in BODIES:
        reply = await site.http.post(f"{TASKS}/{task_id}/continue", json=body)
        assert (reply.status_code, reply.json()["error"]) == (status, code), (body, reply.text)
    assert (await get(site, task_id))["usage"]["budget_usd"] == 5.0

    reply = await site.http.post(f"{TASKS}/{task_id}/continue", json={"budget_usd": 2.5, "tokens": 7})
    assert reply.status_code == 202
    assert reply.json() == {"accepted": True, "task_id": task_id, "budget_usd": 7.5, "budget_tokens": None}
    twice = await site.http.post(f"{TASKS}/{task_id}/continue", json={"budget_usd": 2.5})
    assert twice.status_code == 409
    await site.until_state(task_id, "running")
    assert (await get(site, task_id))["decision_until"] is None
    assert site.steps.requests["resume"].budget.usd == 7.5
    site.steps.agent_over.set()
    await site.until_state(task_id, "completed")
    ended = await get(site, task_id)
    assert [each["state"] for each in ended["transitions"]][-5:] == [
        *("running", "awaiting_decision", "running", "completing", "completed")
    ]
    events = await asyncio.wait_for(watching, 60)
    assert [each["new_state"] for each in events if each["type"] == "state_change"][-4:] == [
        *("awaiting_decision", "running", "completing", "completed")
    ]
    assert events[0]["usage"]["cost_usd"] == 1.5
    late = await site.http.post(f"{TASKS}/{task_id}/continue", json={"budget_usd": 5})
    assert (late.status_code, late.json()["error"]) == (409, "task_already_terminal")
    assert (await site.http.post(f"{TASKS}/never-was/continue", json={"tokens": 1})).status_code == 404


async def watched(site: ApiSite, task_id: str, spends: asyncio.Event) -> list[Any]:
    async with stream(site, f"task_id={task_id}&filter=state_change,progress") as socket:
        progress = await next_of(socket, "progress")
        spends.set()
        return [progress, *await told(socket)]


BODIES: list[tuple[Any, int, str]] = [
    ({}, 400, "invalid_parameter"),
    ({"tokens": 10**9}, 400, "invalid_parameter"),
    ({"budget_usd": 0}, 422, "invalid_body"),
    ({"budget_usd": -5}, 422, "invalid_body"),
    ({"budget_usd": True}, 422, "invalid_body"),
    ({"budget_usd": "5"}, 422, "invalid_body"),
    ({"budget_usd": 1e300}, 422, "invalid_body"),
    ({"tokens": 1.5}, 422, "invalid_body"),
    ({"tokens": True}, 422, "invalid_body"),
    ({"tokens": 10**30}, 422, "invalid_body"),
    ({"budget": 5}, 422, "invalid_body"),
    ([5], 422, "invalid_body"),
]


async def test_a_run_that_waits_is_ended_by_a_cancel(site: ApiSite, agent: asyncio.Event) -> None:
    agent.set()
    task_id = await site.submit(**PAUSE)
    await site.until_state(task_id, "awaiting_decision")
    sent = await site.http.post(f"{TASKS}/{task_id}/messages", json={"text": "more"})
    assert sent.status_code == 202
    assert (await site.http.delete(f"{TASKS}/{task_id}")).status_code == 200
    await site.until_state(task_id, "cancelled")
    assert "resume" not in site.steps.calls
    assert "collect" in site.steps.calls


async def test_a_pause_without_a_limit_is_warned_of(site: ApiSite) -> None:
    reply = await site.http.post(f"{TASKS}?dry_run=true", json=site_manifest())
    assert [each["field"] for each in reply.json()["warnings"]] == ["lifecycle.budget_action"]


def site_manifest() -> dict[str, Any]:
    return {
        "metadata": {"name": "a"},
        "repository": {"url": "https://git.example.org/a.git", "branch": "main"},
        "claude": {"prompt": "do it"},
        "lifecycle": {"budget_action": "pause"},
    }
