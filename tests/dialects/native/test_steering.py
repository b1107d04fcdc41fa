"""Steering a run over the API and the command line: what the agent confirms, its requests, its queue, wrong ways."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client import AsyncTaskClient
from foundation.errors import Conflict
from tests.api_site import ApiSite
from tests.integration.cli.test_task import Sandbox
from workflows import names
from workflows.runs.requests import AgentRequest, AgentResult, SteerRequest
from workflows.runs.steering.messages import AgentSaid, ControlAnswer, PermissionRequest

TASKS = "/api/v1/tasks"
QUESTIONS = {"questions": [{"question": "Which colour?"}]}


@pytest.fixture
async def task_id(site: ApiSite) -> AsyncIterator[str]:
    """A run whose agent confirms whatever it is asked, as an agent at work does."""
    client = site.temporal

    async def steer(request: SteerRequest) -> None:
        if request.line["type"] == "control_request":
            answer = ControlAnswer(id=request.control_id, in_turn=True)
            await client.get_workflow_handle(names.RUNS.workflow_id(request.task_id)).signal(
                names.AGENT_SAID, AgentSaid(answered=[answer])
            )

    async def run(_: AgentRequest) -> AgentResult:
        await site.steps.agent_over.wait()
        return AgentResult(exit_code=0)

    site.steps.instead |= {"steer": steer, "run_agent": run}
    async with site.worker():
        task_id = await site.submit(claude={"skip_permissions": False, "permission_timeout": "1h"})
        await site.until_state(task_id, "running")
        await site.steps.agent_running.wait()
        yield task_id
        site.steps.agent_over.set()
        await site.until_state(task_id, "completed")


async def ask(site: ApiSite, task_id: str, *requests: PermissionRequest) -> None:
    client = site.temporal
    said = AgentSaid(asked=list(requests))
    await client.get_workflow_handle(names.RUNS.workflow_id(task_id)).signal(names.AGENT_SAID, said)


def a_request(request_id: str, tool: str = "Bash", **tool_input: Any) -> PermissionRequest:
    return PermissionRequest(request_id=request_id, tool=tool, input=tool_input, asked_at=datetime.now(UTC))


async def test_a_run_is_steered_over_the_api(site: ApiSite, task_id: str) -> None:
    here = f"{TASKS}/{task_id}"
    http = site.http
    assert (await http.post(f"{here}/interrupt")).json() == {"task_id": task_id, "interrupted": True}
    changed = await http.patch(f"{here}/agent", json={"model": "claude-opus-4-1", "permission_mode": "plan"})
    assert changed.json() == {"task_id": task_id, "model": "claude-opus-4-1", "permission_mode": "plan"}
    assert (await http.get(f"{here}/messages")).json() == {"task_id": task_id, "messages": []}
    assert (await http.delete(f"{here}/messages")).json() == {"task_id": task_id, "cleared": [], "delivering": None}

    await ask(site, task_id, a_request("a", command="id"), a_request("b/2", "AskUserQuestion", **QUESTIONS))
    shown = (await http.get(f"{here}/permissions")).json()["permission_requests"]
    assert [(each["request_id"], each["input"]) for each in shown] == [("a", {"command": "id"}), ("b/2", QUESTIONS)]
    assert (await http.get(here)).json()["permission_requests"] == shown
    for path, body, status, code in (
        ("permissions/a", {"decision": "maybe"}, 422, "invalid_body"),
        ("permissions/a", {}, 422, "invalid_body"),
        ("permissions/a", {"decision": "deny", "message": "x" * 20_000}, 422, "invalid_body"),
        ("permissions/gone", {"decision": "deny"}, 409, "conflict"),
        ("permissions/a", {"decision": "allow", "answers": {"Why?": "so"}}, 400, "invalid_parameter"),
        ("agent", {}, 400, "invalid_parameter"),
        ("agent", {"permission_mode": "nonsense"}, 422, "invalid_body"),
        ("agent", {"model": "a b"}, 400, "invalid_parameter"),
    ):
        method = http.patch if path == "agent" else http.post
        refused = await method(f"{here}/{path}", json=body)
        assert refused.status_code == status, (path, body, refused.text)
        assert refused.json()["error"] == code, refused.text
    for text in (rb'"\ud800"', rb"null, 1", rb'{"a": 1}'):
        body = rb'{"decision": "deny", "message": ' + text + b"}"
        assert 400 <= (await http.post(f"{here}/permissions/a", content=body)).status_code < 500, text
    allowed = await http.post(f"{here}/permissions/a", json={"decision": "allow"})
    assert allowed.json() == {"task_id": task_id, "request_id": "a", "decision": "allow", "delivered": True}
    assert (await http.post(f"{here}/permissions/a", json={"decision": "deny"})).status_code == 409
    async with AsyncTaskClient(site.url) as client:
        (left,) = await client.permission_requests(task_id)
        assert left.questions() == ["Which colour?"]
        both = await asyncio.gather(
            *(client.answer(task_id, left.request_id, answers={"Which colour?": each}) for each in ("red", "blue")),
            return_exceptions=True,
        )
        assert not isinstance(both[0], BaseException)
        with pytest.raises(Conflict):
            await client.answer(task_id, left.request_id, "deny")
    assert (await http.get(f"{TASKS}/none/permissions")).status_code == 404


async def test_a_run_is_steered_by_command(site: ApiSite, task_id: str, tmp_path: Path) -> None:
    sandbox = Sandbox(site.url, tmp_path)
    assert (await sandbox("task", "interrupt", task_id)).err.strip() == "Interrupted."
    assert (await sandbox("task", "configure", task_id, "--permission-mode", "plan")).code == 0
    assert (await sandbox("task", "messages", task_id, "--clear")).code == 0
    nothing = await sandbox("task", "approve", task_id)
    assert (nothing.code, "asks nothing" in nothing.err) == (3, True)
    await ask(site, task_id, a_request("a", command="id\x1b[31m"), a_request("b", "AskUserQuestion", **QUESTIONS))
    shown = (await sandbox("task", "status", task_id)).out
    assert f"sandbox task approve {task_id}" in shown
    assert "Which colour?" in shown
    assert "\x1b" not in shown
    unclear = await sandbox("task", "deny", task_id)
    assert (unclear.code, "2 requests" in unclear.err) == (2, True)
    assert (await sandbox("task", "answer", task_id, "Blue", "--request", "a")).code == 2
    assert (await sandbox("task", "answer", task_id, "Blue", "Red", "--request", "b")).code == 2
    assert (await sandbox("task", "answer", task_id, "Blue", "--request", "b")).code == 0
    assert (await sandbox("task", "deny", task_id, "-m", "no")).err.strip() == "Answered."
    assert site.steps.steered[-1]["response"]["response"] == {"behavior": "deny", "message": "no"}
