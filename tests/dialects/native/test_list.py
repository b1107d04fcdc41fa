"""Lists among many runs: filters, totals, order, deep pages and stable paging, over what Temporal really holds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from temporalio.client import Client

from benchmarks.cases.finished_runs import make_ended_runs
from foundation.settings import Settings
from storage.bucket import Bucket
from tests.api_site import ApiSite, api_site, until
from tests.dialects.native.test_submit import forget
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

TASKS = "/api/v1/tasks"
RUNS = 300


@pytest.fixture(scope="module")
def ended() -> dict[str, list[TaskStatus]]:
    """The runs of this module, made by its first test that asks for them."""
    return {}


@pytest.fixture
async def runs(temporal_client: Client, ended: dict[str, list[TaskStatus]]) -> list[TaskStatus]:
    if "runs" not in ended:
        ended["runs"] = await make_ended_runs(temporal_client, RUNS, batch=f"many-{uuid.uuid4().hex[:8]}")
    return ended["runs"]


async def listed(site: ApiSite, runs: list[TaskStatus], query: str = "") -> dict[str, Any]:
    reply = await site.http.get(f"{TASKS}?label.batch={runs[0].labels['batch']}&{query}")
    assert reply.status_code == 200, reply.text
    return dict(reply.json())


async def all_shown(site: ApiSite, runs: list[TaskStatus], count: int = RUNS) -> None:
    async def shown() -> bool:
        return int((await listed(site, runs))["total_count"]) == count

    await until(shown, f"{count} runs in the list")


KEYS: dict[str, Callable[[TaskStatus], Any]] = {
    "created_at": lambda run: run.created_at,
    "started_at": lambda run: run.started_at,
    "state_changed_at": lambda run: run.state_changed_at,
    "name": lambda run: run.name,
}


async def test_every_order_pages_through_all_runs_once_and_in_it(site: ApiSite, runs: list[TaskStatus]) -> None:
    await all_shown(site, runs)
    for sort, key in KEYS.items():
        for order in ("asc", "desc"):
            expected = [run.id for run in sorted(runs, key=lambda run: (key(run), run.id), reverse=order == "desc")]
            pages = [
                await listed(site, runs, f"sort={sort}&order={order}&limit=70&offset={offset}")
                for offset in range(0, RUNS, 70)
            ]
            assert [task["id"] for page in pages for task in page["tasks"]] == expected
            assert {page["total_count"] for page in pages} == {RUNS}
            assert [page["has_more"] for page in pages] == [True, True, True, True, False]


async def test_filters_and_totals_are_exact_at_any_depth(site: ApiSite, runs: list[TaskStatus]) -> None:
    await all_shown(site, runs)
    wanted = [run for run in runs if run.state is TaskState.COMPLETED and run.labels["team"] == "team-4"]
    page = await listed(site, runs, "state=completed&label.team=team-4&order=asc&limit=1000")
    assert [task["id"] for task in page["tasks"]] == [run.id for run in wanted]
    two = [run for run in runs if run.state in {TaskState.FAILED, TaskState.CANCELLED}]
    page = await listed(site, runs, f"state=failed%2Ccancelled&order=asc&limit=100&offset={len(two) - 3}")
    assert [task["id"] for task in page["tasks"]] == [run.id for run in two[-3:]]
    assert (page["total_count"], page["has_more"]) == (len(two), False)
    beyond = await listed(site, runs, f"offset={RUNS}")
    assert (beyond["tasks"], beyond["total_count"], beyond["has_more"]) == ([], RUNS, False)
    assert (await listed(site, runs, "state=running"))["total_count"] == 0


async def test_a_row_shows_what_the_run_left(site: ApiSite, runs: list[TaskStatus]) -> None:
    await all_shown(site, runs)
    row = (await listed(site, runs, "state=failed&order=asc&limit=1"))["tasks"][0]
    run = next(run for run in runs if run.state is TaskState.FAILED)
    assert (row["id"], row["exit_code"], row["error"]) == (run.id, 1, run.error)
    assert row["labels"] == run.labels
    for field in ("created_at", "started_at", "state_changed_at"):
        assert datetime.fromisoformat(row[field]) == getattr(run, field)


async def test_paging_stays_stable_while_newer_runs_come(site: ApiSite, temporal_client: Client) -> None:
    runs = await make_ended_runs(temporal_client, 30)
    await all_shown(site, runs, 30)
    first = await listed(site, runs, "order=asc&limit=10")
    labels = {"batch": runs[0].labels["batch"]}
    later = [await site.submit(metadata={"labels": labels}) for _ in range(3)]
    second = await listed(site, runs, "order=asc&limit=10&offset=10")
    assert [task["id"] for task in first["tasks"] + second["tasks"]] == [run.id for run in runs[:20]]
    # A run that this server has started is listed at once, before Temporal's visibility has it.
    newest = await listed(site, runs, "limit=3")
    assert ([task["id"] for task in newest["tasks"]], newest["total_count"]) == (later[::-1], 33)


async def test_another_server_sees_the_same_and_what_temporal_forgot_is_gone(
    services: Settings, site: ApiSite, temporal_client: Client, bucket: Bucket
) -> None:
    runs = await make_ended_runs(temporal_client, 20)
    async with api_site(services, temporal_client, bucket) as other:
        for server in (site, other):
            await all_shown(server, runs, 20)
        label = {"batch": runs[0].labels["batch"]}
        task_id = await site.submit(metadata={"labels": label})
        for server in (site, other):
            await all_shown(server, runs, 21)
        async with site.worker() as steps:
            steps.agent_over.set()
            await site.until_state(task_id, "completed")
        for server in (site, other):

            async def completed(server: ApiSite = server) -> bool:
                page = await listed(server, runs, "limit=1")
                return bool(page["tasks"][0]["state"] == "completed")

            await until(completed, "the end of the run in the list")
        await forget(site, runs[0].id)
        for server in (site, other):
            await all_shown(server, runs, 20)


async def test_what_temporal_dates_earlier_than_what_it_showed_before_is_listed_at_once(
    services: Settings, site: ApiSite, temporal_client: Client, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a clock of Temporal's was put back: nothing that happens is since the last look, by its times."""
    monkeypatch.setattr("api.temporal.index._SPAN_ROWS", 3)
    monkeypatch.setattr("api.temporal.index._SLOW_LOOK_SECONDS", 0.5)
    runs = await make_ended_runs(temporal_client, 20)
    await all_shown(site, runs, 20)
    async with api_site(services, temporal_client, bucket) as other:
        await all_shown(other, runs, 20)
        index = other.app.services.index
        index._reached += timedelta(hours=1)
        labels = {"batch": runs[0].labels["batch"]}
        ids = [await site.submit(metadata={"labels": labels}) for _ in range(2)]
        await all_shown(site, runs, 22)
        # Past the half second in which looks are shared, the very first answer has it.
        await asyncio.sleep(0.6)
        assert (await listed(other, runs, "state=pending"))["total_count"] == 2
        async with site.worker() as steps:
            steps.agent_over.set()
            for task_id in ids:
                await site.until_state(task_id, "completed")
                await site.until_listed(task_id, "completed")
        await asyncio.sleep(0.6)
        index._reached += timedelta(hours=1)
        newest = await listed(other, runs, "limit=2")
        assert [task["state"] for task in newest["tasks"]] == ["completed", "completed"]
