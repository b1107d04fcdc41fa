"""A run in a real machine through the endpoints of the task-runs dialect alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.dialects.posthog.watcher import Watcher
from tests.e2e.conftest import Site
from tests.git_servers import git

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def client(site: Site) -> AsyncIterator[httpx.AsyncClient]:
    key = site.settings.client_keys()[0].decode()
    url = f"http://127.0.0.1:{site.settings.api_port}/api/projects/1"
    async with httpx.AsyncClient(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
        yield http


async def staged_file(client: httpx.AsyncClient, task: str, content: bytes) -> str:
    """A file that is uploaded for a run to come; its id."""
    base, plan = f"/tasks/{task}/staged_artifacts", {"name": "plan.md", "type": "plan", "content_type": "text/markdown"}
    wanted = {"artifacts": [{**plan, "size": len(content)}]}
    (prepared,) = (await client.post(f"{base}/prepare_upload/", json=wanted)).raise_for_status().json()["artifacts"]
    form = prepared["presigned_post"]
    async with httpx.AsyncClient() as anybody:
        sent = await anybody.post(form["url"], data=form["fields"], files={"file": ("plan.md", content)})
    sent.raise_for_status()
    told = {"artifacts": [{**plan, "id": prepared["id"], "storage_path": prepared["storage_path"]}]}
    (made,) = (await client.post(f"{base}/finalize_upload/", json=told)).raise_for_status().json()["artifacts"]
    return str(made["id"])


async def seen(watcher: Watcher, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The first event shown that fits."""
    async with asyncio.timeout(300):
        while True:
            if found := next((event for event in watcher.shown if fits(event)), None):
                return dict(found)
            await asyncio.sleep(0.2)


def is_a(method: str, update: str = "") -> Callable[[dict[str, Any]], bool]:
    def fits(event: dict[str, Any]) -> bool:
        said = event["notification"]
        return said["method"] == method and (not update or said["params"]["update"]["sessionUpdate"] == update)

    return fits


async def test_a_run_is_streamed_steered_and_read_back_through_these_endpoints_alone(
    site: Site, client: httpx.AsyncClient
) -> None:
    # A private repository of the installation's git host, variables, and a file that goes with the first message.
    task = (await client.post("/tasks/", json={"description": "Scenario: told", "repository": "org/repo"})).json()
    variables = {"name": "Fast", "network_access_level": "custom", "environment_variables": {"MODE": "canary-fast"}}
    environment = (await client.post("/sandbox_environments/", json=variables)).raise_for_status().json()
    options = {
        "sandbox_environment_id": environment["id"],
        "pending_user_artifact_ids": [await staged_file(client, task["id"], b"The plan is to be granted.")],
        "mode": "interactive",
        "branch": "main",
        "runtime_adapter": "claude",
        "model": "claude-sonnet-4-5",
        "initial_permission_mode": "default",
    }
    run = (await client.post(f"/tasks/{task['id']}/run/", json=options)).raise_for_status().json()["latest_run"]
    path = f"/tasks/{task['id']}/runs/{run['id']}"

    async def say(method: str, **params: Any) -> dict[str, Any]:
        body = {"jsonrpc": "2.0", "id": f"{method}-1", "method": method, "params": params}
        reply = await client.post(f"{path}/command/", json=body)
        assert reply.status_code == 200, reply.text
        answer: dict[str, Any] = reply.json()
        assert answer["id"] == body["id"]
        return dict(answer["result"])

    # The stream breaks twice, and goes on behind the event that came last.
    watcher = Watcher(client, path, cuts=[3, 4])
    watching = asyncio.create_task(watcher.watch())
    asked = (await seen(watcher, is_a("_posthog/permission_request")))["notification"]["params"]
    granted = {"requestId": asked["requestId"], "optionId": "allow"}
    assert await say("permission_response", **granted) == {"resolved": True}
    await seen(watcher, is_a("session/update", "tool_call_update"))
    # The agent asks its model for what comes next, which thinks for long.
    await asyncio.sleep(2)
    assert await say("cancel") == {"cancelled": True}
    assert await say("user_message", content="Please finish now") == {"queued": True}
    await seen(watcher, lambda event: "Finished as the message asked." in str(event))
    assert await say("close") == {"closed": True}
    async with asyncio.timeout(300):
        await watching

    whole = (await client.get(f"{path}/session_logs/", params={"limit": 5000})).json()
    assert watcher.shown == whole
    assert len({entry["event_id"] for entry in whole}) == len(whole)
    assert watcher.connections >= 3
    ended = (await client.get(f"{path}/")).json()
    assert (ended["status"], ended["error_message"]) == ("completed", None)
    assert "Finished" in ended["output"]["final_message"]
    assert "The plan is to be granted." in str(whole)
    # The work has gone where it came from.
    pushed = ended["output"]
    assert pushed["commit_sha"] == site.git_host.tip(pushed["head_branch"])
    assert pushed["pr_url"].endswith(f"/{site.git_host.pulls[-1]['number']}")
    assert git(site.git_host.repository, "show", f"{pushed['head_branch']}:granted.txt") == "granted 11"
    patch = next(artifact for artifact in ended["artifacts"] if artifact["name"] == f"{run['id']}.patch")
    where = (await client.post(f"{path}/artifacts/presign/", json={"storage_path": patch["storage_path"]})).json()
    async with httpx.AsyncClient() as anybody:
        content = (await anybody.get(where["url"])).raise_for_status().text
    assert "+granted 11" in content
    assert "canary-fast" not in content + str(whole)
    assert len(content.encode()) == patch["size"]
