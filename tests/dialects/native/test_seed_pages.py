"""Every command of the quick reference, in order, on a real stack whose machines are stand-ins."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from storage import artifacts
from storage.hosts import HostRoom, say_room, withdraw
from storage.layout import TASKS
from tests.api_site import ApiSite
from tests.seed_pages.replay import Done, SeedPages
from workflows.runs.requests import AgentResult, CollectRequest

Run = Callable[..., Awaitable[Done]]


@pytest.fixture
def pages(site: ApiSite, tmp_path: Path) -> SeedPages:
    made = SeedPages(site.settings, tmp_path)
    made.put_manifest("https://git.invalid/a.git")

    async def collect(request: CollectRequest) -> None:
        def store() -> None:
            report = artifacts.store(site.bucket, TASKS.place(request.task_id), "report.md", b"# Report\n")
            artifacts.write_index(site.bucket, TASKS.place(request.task_id), [report])

        await asyncio.to_thread(store)

    site.steps.instead["collect"] = collect
    return made


@pytest.fixture
def run(pages: SeedPages) -> Run:
    async def run_one(command: str, task_id: str = "") -> Done:
        done = await asyncio.to_thread(pages.run, command, task_id)
        assert done.code == 0, f"{done.command}\n{done.out}\n{done.err}"
        return done

    return run_one


async def test_health(pages: SeedPages, run: Run) -> None:
    for command in pages.section("health"):
        out = (await run(command)).out
        assert "agentic_tasks_total" in out if command.endswith("/metrics") else json.loads(out)


async def test_a_task_from_submission_to_its_artifacts(site: ApiSite, pages: SeedPages, run: Run) -> None:
    by_curl, by_cli = pages.section("submit")
    async with site.worker() as steps:
        task_id = json.loads((await run(by_curl)).out)["task_id"]
        await steps.agent_running.wait()
        await site.until_state(task_id, "running")
        await site.until_listed(task_id, "running")
        await site.write_log(task_id, '{"type":"assistant","message":{"content":[{"type":"text","text":"Hello."}]}}')
        for command in pages.section("look"):
            out = (await run(command, task_id)).out
            # The one filter that lets nothing through here.
            assert task_id in out or "/logs" in command or "--label" in command, command
            assert "Hello." in out or "/logs" not in command, command
        following = [pages.start(command, task_id) for command in pages.section("follow")]
        events = pages.start_events(task_id)
        steps.agent_over.set()
        for ended in await asyncio.gather(*(asyncio.to_thread(pages.end, one) for one in [*following, events])):
            assert ended.code == 0, f"{ended.command}\n{ended.out}\n{ended.err}"
            assert "Hello." in ended.out or "completed" in ended.out
            if ended.command.startswith("const ws"):
                told = [line.split()[1] for line in ended.out.splitlines() if line.startswith("Event:")]
                assert {"state_change", "output"} <= set(told)
                assert "new_state: 'completed'" in ended.out
        for command in pages.section("artifacts"):
            (pages.directory / "report.md").unlink(missing_ok=True)
            out = (await run(command, task_id)).out
            if "-o report.md" in command or "download" in command:
                assert (pages.directory / "report.md").read_bytes() == b"# Report\n"
            else:
                assert "report.md" in out
        second = (await run(by_cli)).out.strip()
        assert (await site.http.get(f"/api/v1/tasks/{second}")).status_code == 200


async def test_cancel(site: ApiSite, pages: SeedPages, run: Run) -> None:
    submit = pages.section("submit")[0]
    async with site.worker() as steps:
        for command in pages.section("cancel"):
            # The stop of the run before ended every agent of these steps.
            steps.agent_over.clear()
            task_id = json.loads((await run(submit)).out)["task_id"]
            await run(command, task_id)
            await site.until_state(task_id, "cancelled")


async def test_the_python_example(site: ApiSite, pages: SeedPages) -> None:
    site.steps.instead["run_agent"] = lambda _: AgentResult(exit_code=0, result="done")
    async with site.worker():
        done = await asyncio.to_thread(pages.end, pages.start_example())
    assert done.code == 0, done.err
    assert done.out.splitlines()[-2:] == ["State: completed", "Downloading report.md..."]
    assert (pages.directory / "report.md").read_bytes() == b"# Report\n"


async def test_the_large_task_is_refused_where_no_host_is_large_enough(
    site: ApiSite, pages: SeedPages, run: Run
) -> None:
    pages.put_manifest("https://git.invalid/a.git", "large.yaml")
    small = {"cpus": 8, "memory_bytes": 16 * 2**30, "disk_bytes": 2**40}
    free = {f"free_{name}": value for name, value in small.items()}
    say_room(site.bucket, HostRoom(host="small", at=datetime.now(UTC), **small, **free))
    try:
        refused = json.loads((await run(pages.section("submit")[0])).out)
    finally:
        withdraw(site.bucket, "small")
    assert (refused["error"], refused["details"]["requested_memory"]) == ("insufficient_resources", "32G")
