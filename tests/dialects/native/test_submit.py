"""Submitting, listing, looking at and ending runs over REST, on a real Temporal server.

Above 400 lines: every use of a run, in the order in which a client comes to it.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from pydantic import SecretStr
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from websockets import Origin
from websockets.asyncio.client import connect

from api.native.health import router as health_router
from storage.hosts import HostRoom, live_hosts, say_room, withdraw
from tests.api_site import ApiSite, api_site, as_yaml, manifest, until
from workflows.runs.inbox import WAITING_MOST
from workflows.runs.messages import MESSAGE_BYTES, AgentProgress, UserMessage
from workflows.runs.requests import AgentRequest, AgentResult
from workflows.runs.states import Cause

TASKS = "/api/v1/tasks"
# Ten lines that stand for ten thousand million numbers.
YAML_BOMB = "n0: &n0 [1]\n" + "".join(f"n{n}: &n{n} [{', '.join([f'*n{n - 1}'] * 10)}]\n" for n in range(1, 11))
BASE_KEYS = {
    "id", "name", "state", "state_message", "created_at", "started_at", "state_changed_at", "vm_name", "vm_ip",
    "exit_code", "error", "progress",
}  # fmt: skip


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/yaml", as_yaml(manifest())),
        ("text/x-yaml", as_yaml(manifest(metadata={"id": ""}))),
        ("application/x-www-form-urlencoded", as_yaml(manifest(metadata={"id": None}))),
        (None, as_yaml(manifest())),
    ],
)
async def test_takes_a_manifest_as_yaml_under_every_type_that_clients_send(
    site: ApiSite, content_type: str | None, body: str
) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    reply = await site.http.post(TASKS, content=body, headers=headers)
    assert reply.status_code == 202, reply.text
    accepted = reply.json()
    assert accepted["accepted"] is True
    assert accepted["state"] == "pending"
    assert accepted["links"]["logs"] == f"{TASKS}/{accepted['task_id']}/logs"
    assert datetime.fromisoformat(accepted["created_at"]).tzinfo is not None
    shown = (await site.http.get(f"{TASKS}/{accepted['task_id']}")).json()
    assert shown["created_at"] == accepted["created_at"]


@pytest.mark.parametrize(
    "body",
    [manifest(), {"manifest_yaml": as_yaml(manifest())}, {"manifest": manifest()}],
    ids=["manifest", "envelope of yaml", "envelope of json"],
)
async def test_takes_a_manifest_as_json_bare_or_in_an_envelope(site: ApiSite, body: dict[str, Any]) -> None:
    reply = await site.http.post(TASKS, json=body)
    assert (reply.status_code, reply.json()["accepted"]) == (202, True)


async def test_parts_that_change_nothing_here_are_taken_and_named(site: ApiSite) -> None:
    reply = await site.http.post(TASKS, json=manifest(parent_id="t-1", children={"wait_for_children": True}))
    assert reply.status_code == 202, reply.text
    assert [warning["field"] for warning in reply.json()["warnings"]] == ["parent_id", "children"]
    assert (await site.http.post(TASKS, json=manifest())).json()["warnings"] == []


async def test_bodies_that_are_too_large_are_refused_wherever_they_are_sent(site: ApiSite) -> None:
    task_id = await site.submit()
    most = 2 * 2**20
    largest = {"text": "x" * (most - len('{"text":""}'))}
    for method, path, body in (
        ("DELETE", f"/{task_id}", {"reason": "x" * most}),
        ("POST", f"/{task_id}/messages", {"text": "x" * most}),
        # As large as a body may be, and too large for Temporal with what it adds.
        ("POST", f"/{task_id}/messages", largest),
    ):
        content = json.dumps(body, separators=(",", ":"))
        headers = {"Content-Type": "application/json"}
        reply = await site.http.request(method, f"{TASKS}{path}", content=content, headers=headers)
        assert (reply.status_code, reply.json()["error"]) == (413, "payload_too_large"), path
    assert await site.state(task_id) == "pending"


async def test_refuses_a_manifest_with_every_fault_at_once_and_starts_nothing(site: ApiSite) -> None:
    name = f"refused-{uuid.uuid4().hex}"
    faulty = manifest(
        metadata={"name": name},
        repository={"url": "ftp://git.invalid/a.git", "brunch": "main"},
        claude={"prompt": " "},
        vm={"cpus": 0, "memory": "8 elephants", "network_mode": "open", "allowed_hosts": ["https://a.invalid"]},
        lifecycle={"timeout": "2 days"},
    )
    del faulty["repository"]["branch"]
    reply = await site.http.post(TASKS, json=faulty)
    body = reply.json()
    assert (reply.status_code, body["error"], body["accepted"], body["task_id"]) == (400, "invalid_manifest", False, "")
    faults = {fault["field"]: fault["message"] for fault in body["details"]["errors"]}
    assert set(faults) == {
        "repository.url", "repository.branch", "repository.brunch", "claude.prompt", "vm.cpus", "vm.memory",
        "vm.network_mode", "vm.allowed_hosts[0]", "lifecycle.timeout",
    }  # fmt: skip
    assert "did you mean 'branch'" in faults["repository.brunch"]
    assert "isolated" in faults["vm.network_mode"]
    assert "is a URL" in faults["vm.allowed_hosts[0]"]
    assert body["details"]["field"] in faults
    listed = (await site.http.get(TASKS, params={"limit": 1000})).json()
    assert name not in {task["name"] for task in listed["tasks"]}


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", "{not json", 400, "invalid_manifest"),
        ("application/yaml", "a: [", 400, "invalid_manifest"),
        ("application/yaml", "- a list", 400, "invalid_manifest"),
        ("application/yaml", "", 400, "invalid_manifest"),
        ("application/yaml", YAML_BOMB, 400, "invalid_manifest"),
        ("image/png", "x", 415, "unsupported_media_type"),
        ("application/yaml", "a" * (2 * 2**20 + 1), 413, "payload_too_large"),
    ],
    ids=["broken json", "broken yaml", "list", "empty", "yaml bomb", "type", "size"],
)  # fmt: skip
async def test_refuses_what_is_no_manifest_in_the_one_error_shape(
    site: ApiSite, content_type: str, body: str, status: int, code: str
) -> None:
    reply = await site.http.post(TASKS, content=body.encode(), headers={"Content-Type": content_type})
    assert (reply.status_code, reply.json()["error"]) == (status, code)
    assert reply.json()["message"]


async def test_of_many_submissions_of_one_id_temporal_lets_exactly_one_in(site: ApiSite) -> None:
    task_id = f"race-{uuid.uuid4().hex[:8]}"
    replies = await asyncio.gather(*(site.http.post(TASKS, json=manifest(metadata={"id": task_id})) for _ in range(50)))
    codes = sorted(reply.status_code for reply in replies)
    assert codes == [202] + [409] * 49
    refusal = next(reply.json() for reply in replies if reply.status_code == 409)
    assert refusal["error"] == "duplicate_task_id"
    assert refusal["existing_task"] == refusal["details"]["existing_task"]
    assert (refusal["existing_task"]["id"], refusal["existing_task"]["state"]) == (task_id, "pending")


async def test_what_no_live_host_can_ever_give_is_refused_with_both_figures(
    site: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.runs.admission._KNOWN_SECONDS", 0.0)
    large = manifest(vm={"cpus": 16, "memory": "32G", "disk": "100G"})
    assert (await site.http.post(TASKS, json=large)).status_code == 202
    room = HostRoom(
        host=f"host/{uuid.uuid4().hex}", at=datetime.now(UTC), cpus=8, memory_bytes=16 * 2**30, disk_bytes=2**40,
        free_cpus=0, free_memory_bytes=0, free_disk_bytes=0,
    )  # fmt: skip
    say_room(site.bucket, room)
    try:
        reply = await site.http.post(TASKS, json=large)
        body = reply.json()
        assert (reply.status_code, body["error"], body["accepted"]) == (507, "insufficient_resources", False)
        assert body["details"] == {
            "requested_cpus": 16, "available_cpus": 8, "requested_memory": "32G", "available_memory": "16G",
            "requested_disk": "100G", "available_disk": "1024G", "hosts": 1,
        }  # fmt: skip
        # A host that is full now is waited for.
        assert (await site.http.post(TASKS, json=manifest())).status_code == 202
        say_room(site.bucket, room.model_copy(update={"at": datetime.now(UTC) - timedelta(minutes=2)}))
        assert (await site.http.post(TASKS, json=large)).status_code == 202
    finally:
        withdraw(site.bucket, room.host)
    assert live_hosts(site.bucket) == []


async def test_shows_a_live_run_from_its_worker_with_progress_and_definition(site: ApiSite) -> None:
    over = asyncio.Event()

    async def run(_: AgentRequest) -> AgentResult:
        while not over.is_set():
            activity.heartbeat(AgentProgress(output_bytes=4567, tool_calls=3, current_tool="Bash"))
            await asyncio.sleep(0.05)
        return AgentResult(exit_code=0, result="done", progress=AgentProgress(output_bytes=5000, tool_calls=4))

    site.steps.instead["run_agent"] = run
    secret = {"name": "TOKEN", "source": "env", "key": "TOKEN"}
    servers = {"github": {"command": "npx", "env": {"GITHUB_TOKEN": "${TOKEN}", "MODE": "a literal value"}}}
    async with site.worker():
        task_id = await site.submit(
            secrets=[secret],
            claude={"mcp_config": {"mcpServers": servers}},
            metadata={"labels": {"team": "platform"}},
        )

        async def progressing() -> bool:
            shown = (await site.http.get(f"{TASKS}/{task_id}")).json()
            return shown["state"] == "running" and shown["progress"]["tool_calls"] == 3

        await until(progressing, "live progress")
        shown = (await site.http.get(f"{TASKS}/{task_id}")).json()
        assert shown["progress"]["current_tool"] == "Bash"
        assert shown["live"] is True
        assert shown["labels"] == {"team": "platform"}
        assert shown["definition"]["repository"]["branch"] == "main"
        assert shown["definition"]["vm"]["memory"] == "8G"
        assert "secrets" not in shown["definition"]
        environment = shown["definition"]["claude"]["mcp_config"]["mcpServers"]["github"]["env"]
        assert environment == {"GITHUB_TOKEN": "${TOKEN}", "MODE": "[redacted]"}
        over.set()
        await site.until_state(task_id, "completed")
    ended = (await site.http.get(f"{TASKS}/{task_id}")).json()
    assert set(ended) >= BASE_KEYS
    assert (ended["exit_code"], ended["result"], ended["progress"]["tool_calls"]) == (0, "done", 4)
    assert ended["definition"]["claude"]["prompt"] == "do it"
    assert [step["state"] for step in ended["transitions"]][-1] == "completed"


async def test_still_answers_and_says_so_when_the_worker_is_gone(site: ApiSite) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.until_state(task_id, "running")
    shown = (await site.http.get(f"{TASKS}/{task_id}")).json()
    assert (shown["state"], shown["live"]) == ("running", False)
    assert shown["started_at"] is not None
    assert shown["definition"]["claude"]["prompt"] == "do it"


async def test_shows_the_final_record_of_a_run_that_temporal_has_forgotten(
    site: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with site.worker() as steps:
        steps.instead["run_agent"] = lambda _: AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="code 3")
        task_id = await site.submit()
        # Its final state shows before its last step, which writes the record, has run.
        await site.temporal.get_workflow_handle(f"task-{task_id}").result()
    before = (await site.http.get(f"{TASKS}/{task_id}")).json()
    core = site.app.services.core
    described = await core._executions.describe(task_id)
    await forget(site, task_id)
    with monkeypatch.context() as just_now:
        # As when Temporal forgets it between two requests of one answer.
        just_now.setattr(core._executions, "describe", AsyncMock(return_value=described))
        assert (await site.http.get(f"{TASKS}/{task_id}")).json()["state"] == before["state"]
    after = (await site.http.get(f"{TASKS}/{task_id}")).json()
    assert {key: after[key] for key in BASE_KEYS - {"created_at"}} == {
        key: before[key] for key in BASE_KEYS - {"created_at"}
    }
    assert (after["exit_code"], after["cause"], after["definition"]["claude"]["prompt"]) == (3, "agent_exit", "do it")


async def test_a_run_that_was_terminated_through_temporal_is_shown_as_failed(site: ApiSite) -> None:
    label = {"end": uuid.uuid4().hex}
    task_id = await site.submit(metadata={"labels": label})
    await site.temporal.get_workflow_handle(f"task-{task_id}").terminate()
    shown = (await site.http.get(f"{TASKS}/{task_id}")).json()
    assert (shown["state"], shown["cause"]) == ("failed", "internal_error")
    assert "terminated through Temporal" in shown["error"]

    async def listed_as(state: str) -> int:
        params = {"state": state, "label.end": label["end"]}
        return int((await site.http.get(TASKS, params=params)).json()["total_count"])

    async def failed() -> bool:
        return await listed_as("failed") == 1

    await until(failed, "the run among the failed")
    assert await listed_as("pending,running") == 0


async def test_cancel_without_a_body_ends_the_run_and_a_second_one_is_too_late(site: ApiSite) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.until_state(task_id, "running")
        reply = await site.http.delete(f"{TASKS}/{task_id}")
        body = reply.json()
        assert (reply.status_code, body["success"], body["task_id"]) == (200, True, task_id)
        assert (body["previous_state"], body["new_state"]) == ("running", "cancelled")
        await site.until_state(task_id, "cancelled")
        late = await site.http.delete(f"{TASKS}/{task_id}")
    assert (late.status_code, late.json()["error"], late.json()["success"]) == (409, "task_already_terminal", False)
    assert late.json()["task_state"] == "cancelled"


@pytest.mark.parametrize(
    ("query", "body", "reason", "step"),
    [
        ("", b'{"reason": "changed my mind"}', "changed my mind", "stop"),
        ("?reason=by%20query&force=true", b"", "by query", "stop_force"),
        ("?force=false", b'{"reason": "from the body", "force": true}', "from the body", "stop_force"),
        ("", b"{}", "User requested cancellation", "stop"),
    ],
)
async def test_cancel_takes_reason_and_force_from_body_and_query(
    site: ApiSite, query: str, body: bytes, reason: str, step: str
) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.until_state(task_id, "running")
        reply = await site.http.request("DELETE", f"{TASKS}/{task_id}{query}", content=body)
        assert reply.status_code == 200, reply.text
        await site.until_state(task_id, "cancelled")
    shown = (await site.http.get(f"{TASKS}/{task_id}")).json()
    assert shown["error"] == f"Cancelled: {reason}"
    assert step in steps.calls


async def test_messages_reach_the_agent_in_order_and_once(site: ApiSite) -> None:
    async with site.worker() as steps:
        task_id = await site.submit(claude={"headless": False})
        await steps.agent_running.wait()
        for message in ({"text": "first", "id": "m1"}, {"text": "first", "id": "m1"}, {"text": "second"}):
            reply = await site.http.post(f"{TASKS}/{task_id}/messages", json=message)
            assert reply.status_code == 202, reply.text

        async def delivered() -> bool:
            return len(steps.delivered) == 2

        await until(delivered, "two messages")
        assert steps.delivered == ["first", "second"]
        steps.agent_over.set()
        await site.until_state(task_id, "completed")
        late = await site.http.post(f"{TASKS}/{task_id}/messages", json={"text": "too late"})
        assert (late.status_code, late.json()["error"]) == (409, "task_already_terminal")
        broken = b'{"text": "\\ud800", "id": "\\ud800"}'
        headers = {"Content-Type": "application/json"}
        refused = await site.http.post(f"{TASKS}/{task_id}/messages", content=broken, headers=headers)
        assert (refused.status_code, refused.json()["error"]) == (422, "invalid_body")
        empty = await site.http.post(f"{TASKS}/{task_id}/messages", json={"text": ""})
        assert (empty.status_code, empty.json()["error"]) == (422, "invalid_body")


async def test_a_message_that_cannot_be_delivered_is_refused_and_a_direct_one_is_told(site: ApiSite) -> None:
    held = asyncio.Event()

    async def hold(_: Any) -> None:
        await held.wait()

    async with site.worker() as steps:
        steps.instead["deliver"] = hold
        task_id = await site.submit(claude={"headless": False})
        await steps.agent_running.wait()
        path = f"{TASKS}/{task_id}/messages"
        large = await site.http.post(path, json={"text": "ö" * (MESSAGE_BYTES // 2 + 1)})
        assert (large.status_code, large.json()["error"]) == (413, "payload_too_large")

        run = site.temporal.get_workflow_handle(f"task-{task_id}")
        for number in range(WAITING_MOST):
            await run.signal("user_message", UserMessage(text="more", id=str(number)))
        full = await site.http.post(path, json={"text": "one too many"})
        assert (full.status_code, full.json()["error"]) == (429, "rate_limit_exceeded")

        assert (await site.http.post(f"{TASKS}/{task_id}/close")).status_code == 202
        closed = await site.http.post(path, json={"text": "too late"})
        assert (closed.status_code, closed.json()["error"]) == (409, "session_closed")
        await run.signal("user_message", UserMessage(text="too late", id="late"))
        detail = (await site.http.get(f"{TASKS}/{task_id}")).json()
        assert (detail["state"], detail["undelivered_messages"]) == ("running", ["late"])
        assert any("after the session was closed" in note for note in detail["notes"])
        steps.agent_over.set()
        held.set()
        await site.until_state(task_id, "completed")


@pytest.mark.parametrize("task_id", ["never-was", "x" * 2000, "%2e%2e%2fsecret"], ids=["new", "long", "escaping"])
async def test_an_unknown_run_is_404_wherever_it_is_named(site: ApiSite, task_id: str) -> None:
    for method, path in (
        ("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("GET", "/logs?follow=true"), ("GET", "/artifacts"),
        ("GET", "/artifacts/a.txt"), ("POST", "/close"),
    ):  # fmt: skip
        reply = await site.http.request(method, f"{TASKS}/{task_id}{path}")
        assert reply.status_code == 404, f"{method} {path}: {reply.text}"
        assert reply.json()["error"] in {"task_not_found", "not_found"}


async def test_lists_by_state_and_labels_in_a_stable_order_page_by_page(site: ApiSite) -> None:
    batch = f"b{uuid.uuid4().hex[:8]}"  # has a letter, so that its capitals are another label
    odd = 'it\'s "50%" ♡'
    ids = [
        await site.submit(metadata={"name": f"{batch} {n}", "labels": {"batch": batch, "odd": odd if n % 2 else "no"}})
        for n in range(5)
    ]
    other = await site.submit(metadata={"name": "other", "labels": {"batch": batch.upper()}})

    async def listed(**params: Any) -> dict[str, Any]:
        reply = await site.http.get(TASKS, params={"label.batch": batch} | params)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def all_there() -> bool:
        return int((await listed())["total_count"]) == 5

    await until(all_there, "five runs in the list")
    page = await listed()
    assert [task["id"] for task in page["tasks"]] == ids[::-1]
    assert other not in {task["id"] for task in page["tasks"]}
    assert set(page["tasks"][0]) >= BASE_KEYS | {"labels"}
    assert (page["limit"], page["offset"], page["has_more"]) == (100, 0, False)
    first = await listed(limit=2, sort="name", order="asc")
    second = await listed(limit=2, offset=2, sort="name", order="asc")
    assert [task["id"] for task in first["tasks"] + second["tasks"]] == ids[:4]
    assert (first["total_count"], first["has_more"]) == (5, True)
    assert [task["id"] for task in (await listed(**{"label.odd": odd, "order": "asc"}))["tasks"]] == ids[1::2]
    assert (await listed(state="running, failed"))["total_count"] == 0
    assert (await listed(state="running,pending"))["total_count"] == 5


@pytest.mark.parametrize(
    "query", ["state=runing", "limit=0", "limit=1001", "limit=abc", "offset=-1", "sort=age", "order=up"]
)
async def test_refuses_query_values_that_are_not_allowed(site: ApiSite, query: str) -> None:
    reply = await site.http.get(f"{TASKS}?{query}")
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_parameter")
    assert query.partition("=")[0] in reply.json()["message"] or "is not a state" in reply.json()["message"]


async def test_unknown_paths_and_methods_answer_in_the_one_error_shape(site: ApiSite) -> None:
    for method, path, status, code in (
        ("GET", "/nowhere", 404, "not_found"),
        ("PATCH", TASKS, 405, "method_not_allowed"),
        ("PUT", f"{TASKS}/x", 405, "method_not_allowed"),
    ):
        reply = await site.http.request(method, path)
        assert (reply.status_code, reply.json()["error"]) == (status, code)
        assert path in reply.json()["message"]


@pytest.mark.parametrize(
    ("path", "allowed"),
    [(TASKS, "GET, POST"), (f"{TASKS}/x", "DELETE, GET"), (f"{TASKS}/x/artifacts/y", "GET, HEAD"), ("/health", "GET")],
)
async def test_a_method_that_does_not_work_is_answered_with_those_that_do(
    site: ApiSite, path: str, allowed: str
) -> None:
    reply = await site.http.patch(path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allowed)
    assert f"allowed: {allowed}." in reply.json()["message"]


@pytest.mark.parametrize("query", ["state", "filter", "sort", "limit", "label.a", "https://a:hush@b/"])
async def test_no_refusal_repeats_credentials(site: ApiSite, query: str) -> None:
    for path in (TASKS, f"{TASKS}/x", f"{TASKS}/x/logs", "/https://a:hush@b/", f"{TASKS}/https:%2F%2Fa:hush@b/logs"):
        reply = await site.http.get(path, params={query: "https://a:hush@b/", "since": "https://a:hush@b/"})
        assert "hush" not in reply.text


async def test_health_in_every_spelling_and_metrics_that_move(site: ApiSite) -> None:
    async with site.worker():
        for path in (
            "/health", "/api/health", "/api/v1/health", "/api/v1/health/ready", "/api/v1/health/live", "/healthz",
            "/healthz/http", "/readyz", "/healthz/deep",
        ):  # fmt: skip
            reply = await site.http.get(path)
            assert reply.status_code == 200, f"{path}: {reply.text}"
            assert isinstance(reply.json(), dict)
    await site.submit()
    metrics = await site.http.get("/metrics")
    assert metrics.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "taskyard_tasks_submitted_total 1.0" in metrics.text
    assert 'agentic_tasks_by_state{state="pending"}' in metrics.text
    assert f'route="{TASKS}",status="202"' in metrics.text


async def test_who_asks_too_often_is_refused_where_limits_are_set(site: ApiSite) -> None:
    limits = {"submit": 1, "list": 2, "stream": 1}
    own = site.settings.model_copy(update={"rate_limits": limits})
    async with api_site(own, site.temporal, site.bucket) as strict:
        replies = [await strict.http.get(TASKS) for _ in range(3)]
        assert [reply.status_code for reply in replies] == [200, 200, 429]
        assert [reply.headers["x-ratelimit-remaining"] for reply in replies] == ["1", "0", "0"]
        refused = replies[-1]
        assert (refused.json()["error"], refused.headers["x-ratelimit-limit"]) == ("rate_limit_exceeded", "2")
        assert int(refused.headers["retry-after"]) == refused.json()["details"]["retry_after_seconds"] <= 60
        task_id = await strict.submit()
        again = await strict.http.post(TASKS, json=manifest())
        assert (again.status_code, again.json()["accepted"]) == (429, False)
        assert "x-ratelimit-limit" not in (await strict.http.get(f"{TASKS}/{task_id}")).headers
        url = f"ws://127.0.0.1:{strict.settings.ws_port}{TASKS}/stream?task_id={task_id}"
        async with connect(url) as first:
            await first.recv()
            async with connect(url) as second:
                assert json.loads(await second.recv())["error"] == "rate_limit_exceeded"
                await second.wait_closed()
            assert second.close_code == 4429


async def test_web_pages_of_other_origins_are_refused(site: ApiSite) -> None:
    allowed = "https://tasks.example.org"
    own = site.settings.model_copy(update={"allowed_origins": [allowed]})
    async with api_site(own, site.temporal, site.bucket) as guarded:
        itself = f"http://127.0.0.1:{guarded.settings.api_port}"
        foreign = (
            "https://evil.example.org",
            f"http://evil.example.org:{guarded.settings.api_port}",
            "null",
            "http://[",
        )
        # A page whose name was made to lead here calls itself by the name that it calls the service by.
        asked = [(origin, {}) for origin in foreign] + [(foreign[1], {"host": foreign[1].removeprefix("http://")})]
        for origin, host in asked:
            reply = await guarded.http.post(TASKS, json=manifest(), headers={"origin": origin, **host})
            assert (reply.status_code, reply.json()["error"]) == (403, "origin_refused")
        # No page of the server is an exception, nor is one that is not there.
        pages = [TASKS, "/openapi.json", "/docs", "/static-offline-docs/swagger-ui.css", "/nowhere"]
        pages += [str(route.path) for route in health_router.routes]
        for page in pages:
            reply = await guarded.http.get(page, headers={"host": "evil.example.org"})
            assert (page, reply.status_code, reply.json()["error"]) == (page, 403, "origin_refused")
            assert (await guarded.http.get(page, headers={"origin": foreign[0]})).status_code == 403
        for origin in (itself, allowed):
            assert (await guarded.http.post(TASKS, json=manifest(), headers={"origin": origin})).status_code == 202
        assert (await guarded.http.get(TASKS, headers={"host": "tasks.example.org"})).status_code == 200
        asks = {"origin": allowed, "access-control-request-method": "DELETE"}
        assert (await guarded.http.options(f"{TASKS}/one", headers=asks)).headers[
            "access-control-allow-origin"
        ] == allowed
        url = f"ws://127.0.0.1:{guarded.settings.ws_port}{TASKS}/stream"
        async with connect(url, origin=Origin(foreign[0])) as socket:
            assert json.loads(await socket.recv())["error"] == "origin_refused"
            await socket.wait_closed()
        assert socket.close_code == 4403


async def test_services_that_are_down_give_503_and_only_there(site: ApiSite) -> None:
    away = {"temporal_address": "127.0.0.1:9", "s3_endpoint": "127.0.0.1:9", "s3_access_key": "a"}
    nowhere = site.settings.model_copy(update=away | {"s3_secret_key": SecretStr("b")})
    async with api_site(nowhere, site.temporal, site.bucket) as lost:
        calls = (("POST", TASKS), ("GET", TASKS), ("GET", f"{TASKS}/x"), ("GET", "/readyz"), ("DELETE", f"{TASKS}/x"))
        replies: list[httpx.Response] = await asyncio.gather(
            *(lost.http.request(method, path, json=manifest() if path == TASKS else None) for method, path in calls)
        )
        for reply in replies:
            assert (reply.status_code, reply.json()["error"]) == (503, "engine_unavailable"), reply.text
            assert "127.0.0.1:9" in reply.json()["message"]
            assert reply.headers["retry-after"]
        assert (await lost.http.get("/health")).status_code == 200
    without_bucket = site.settings.model_copy(
        update={"s3_endpoint": "127.0.0.1:9", "s3_access_key": "a", "s3_secret_key": SecretStr("b")}
    )
    async with api_site(without_bucket, site.temporal, site.bucket) as half:
        task_id = await half.submit()
        reply = await half.http.get(f"{TASKS}/{task_id}/artifacts")
        assert (reply.status_code, reply.json()["error"]) == (503, "bucket_unavailable")


async def forget(site: ApiSite, task_id: str) -> None:
    """Delete the run from Temporal, as its retention does."""
    execution = WorkflowExecution(workflow_id=f"task-{task_id}")
    await site.temporal.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(namespace=site.temporal.namespace, workflow_execution=execution)
    )

    async def forgotten() -> bool:
        count = await site.temporal.count_workflows(f"WorkflowId = 'task-{task_id}'")
        return count.count == 0

    await until(forgotten, "Temporal to forget the run")
