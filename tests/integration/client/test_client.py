"""The Python client against the API: its types, its errors, and what it bears with."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from client import AsyncTaskClient, LogLine, TaskClient, faults
from foundation.errors import (
    ArtifactNotFound,
    DuplicateTaskId,
    Forbidden,
    InvalidManifest,
    ServiceUnavailable,
    TaskAlreadyTerminal,
    TaskNotFound,
    TaskyardError,
    TimedOut,
    Unauthorized,
)
from foundation.settings import Settings
from storage import artifacts
from storage.layout import TASKS
from tests.api_site import ApiSite, api_site, manifest, until


async def test_the_client_raises_the_errors_of_the_server(site: ApiSite) -> None:
    def calls() -> None:
        with TaskClient(site.url) as client:
            task_id = client.submit(manifest())
            assert client.get(task_id).state == "pending"
            with pytest.raises(DuplicateTaskId) as duplicate:
                client.submit(manifest(metadata={"id": task_id}))
            assert duplicate.value.details["existing_task"]["id"] == task_id
            with pytest.raises(InvalidManifest, match=r"claude\.prompt") as refused:
                client.submit("claude: {}")
            assert "claude.prompt" in {fault["field"] for fault in faults(refused.value)}
            with pytest.raises(TaskNotFound):
                client.get("never-was")
            assert client.find(limit=1).limit == 1
        with TaskClient("http://127.0.0.1:9") as nobody, pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            nobody.get("x")
        with TaskClient("no url") as wrong, pytest.raises(TaskyardError, match="not the URL"):
            wrong.get("x")

    await asyncio.to_thread(calls)


async def test_the_client_follows_on_over_a_restart_of_the_server(services: Settings, site: ApiSite) -> None:
    told: list[LogLine] = []

    def follow(url: str, task_id: str) -> None:
        with TaskClient(url) as client:
            told.extend(client.logs(task_id, follow=True))

    async with site.worker() as steps:
        async with api_site(services, site.temporal, site.bucket, like=None) as first:
            task_id = await site.submit()
            await steps.agent_running.wait()
            following = asyncio.create_task(asyncio.to_thread(follow, first.url, task_id))
            await site.write_log(task_id, "one", "two")

            async def two() -> bool:
                return len(told) == 2 or first.app.services.followers.followed != {}

            await until(two, "the follower")
        await site.write_log(task_id, "three")
        async with api_site(services, site.temporal, site.bucket, like=first):
            await site.write_log(task_id, "four")
            steps.agent_over.set()
            async with asyncio.timeout(60):
                await following
    assert [line.data for line in told if line.stream == "stdout"] == ["one\n", "two\n", "three\n", "four\n"]
    assert (told[-1].type, told[-1].event["state"]) == ("completed", "completed")


async def test_the_async_client_takes_a_run_from_submission_to_its_artifacts(site: ApiSite, tmp_path: Path) -> None:
    async with site.worker() as steps, AsyncTaskClient(site.url) as client:
        task_id = await client.submit(manifest(metadata={"labels": {"kind": "async"}}, claude={"headless": False}))
        with pytest.raises(TimedOut, match="goes on"):
            await client.wait(task_id, poll_seconds=0.1, timeout_seconds=0.2)
        await steps.agent_running.wait()
        await client.message(task_id, "and the changelog", "m-1")
        await site.write_log(task_id, "one", "two")
        stored = await asyncio.to_thread(
            artifacts.store, site.bucket, TASKS.place(task_id), "a/report.md", b"# Report\n"
        )
        await asyncio.to_thread(artifacts.write_index, site.bucket, TASKS.place(task_id), [stored])
        await client.close_session(task_id)
        steps.agent_over.set()
        told = [line async for line in client.logs(task_id, follow=True)]
        ended = await client.wait(task_id)
        assert (ended.state, ended.terminal) == ("completed", True)
        assert [line.data for line in told if line.stream == "stdout"] == ["one\n", "two\n"]
        assert told[-1].type == "completed"
        found = await client.find(labels={"kind": "async"})
        assert [task.id for task in found.tasks] == [task_id]
        (artifact,) = await client.artifacts(task_id)
        assert await client.download(task_id, artifact.name, tmp_path / "report.md") == 9
        assert (tmp_path / "report.md").read_bytes() == b"# Report\n"
        with pytest.raises(ArtifactNotFound):
            await client.download(task_id, "other", tmp_path / "other")
        with pytest.raises(TaskAlreadyTerminal):
            await client.cancel(task_id)
        assert [path.name for path in tmp_path.iterdir()] == ["report.md"]  # noqa: ASYNC240 -- its own directory
    async with AsyncTaskClient("http://127.0.0.1:9") as nobody:
        with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9"):
            await nobody.get("x")


async def test_damaged_bytes_are_refused_unless_they_are_wanted(site: ApiSite, tmp_path: Path) -> None:
    task_id = await site.submit()

    def calls() -> None:
        stored = artifacts.store(site.bucket, TASKS.place(task_id), "report.md", b"# Report\n")
        artifacts.write_index(site.bucket, TASKS.place(task_id), [stored])
        site.bucket.put(TASKS.place(task_id).artifact_key("report.md"), b"# Rep0rt\n")
        with TaskClient(site.url) as client:
            with pytest.raises(TaskyardError, match="arrived damaged"):
                client.download(task_id, "report.md", tmp_path / "report.md")
            assert list(tmp_path.iterdir()) == []
            assert client.download(task_id, "report.md", tmp_path / "report.md", verify=False) == 9

    await asyncio.to_thread(calls)


@contextmanager
def gatekeeper() -> Iterator[str]:
    """The URL of something that stands before a server, and lets one token in, to be told that it may not."""

    class Keeper(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = 403 if self.headers["Authorization"] == "Bearer known" else 401
            self.send_response(status)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"no")

        def log_message(self, *_: object) -> None:
            return

    with socketserver.TCPServer(("127.0.0.1", 0), Keeper) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("token", "refused"), [(None, Unauthorized), ("other", Unauthorized), ("known", Forbidden)])
def test_a_token_is_sent_and_refusals_of_others_have_their_class(
    token: str | None, refused: type[TaskyardError]
) -> None:
    with gatekeeper() as url, TaskClient(url, token=token) as client, pytest.raises(refused, match="status 40") as told:
        client.get("x")
    assert told.value.exit_code == 4
