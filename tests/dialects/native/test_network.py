"""The network of a run over the API: as it stands, changed while the run goes on, and each way to ask wrongly."""

from __future__ import annotations

import json
from typing import Any

import pytest
from temporalio import activity

from tests.api_site import ApiSite, until
from tests.dialects.native.test_logs import ended_run
from workflows.runs.messages import HostUse, LiveProgress, NetworkUse
from workflows.runs.requests import AgentResult

TASKS = "/api/v1/tasks"
USE = NetworkUse(allowed=12, blocked=2, hosts=[HostUse(host="a.example.org", port=443, allowed=12)])


@pytest.fixture
async def running(site: ApiSite) -> Any:
    """The id of a run whose agent runs and asks for the network."""

    async def follow(_: Any) -> None:
        activity.heartbeat(LiveProgress(network=USE))
        await site.steps.agent_over.wait()

    site.steps.instead["run_agent"] = follow
    site.steps.agent_result = AgentResult(exit_code=0, result="done", network=USE)
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.until_state(task_id, "running")
        yield task_id
        steps.agent_over.set()
        await site.until_state(task_id, "completed")


async def test_a_network_is_shown_changed_and_kept(site: ApiSite, running: str) -> None:
    shown = (await site.http.get(f"{TASKS}/{running}/network")).json()
    assert (shown["policy"], shown["in_force"], shown["live"]) == ({"mode": "isolated", "hosts": []}, True, True)
    sent = {"allow": ["Api.example.org", "*.example.net:443"]}
    changed = (await site.http.patch(f"{TASKS}/{running}/network", json=sent)).json()
    assert changed["policy"] == {"mode": "isolated", "hosts": ["api.example.org", "*.example.net:443"]}
    assert [each["field"] for each in changed["warnings"]] == ["allow"]
    changed = await site.http.patch(
        f"{TASKS}/{running}/network", json={"mode": "outbound", "remove": ["api.example.org"]}
    )
    assert changed.json()["policy"] == {"mode": "outbound", "hosts": ["*.example.net:443"]}
    assert changed.json()["warnings"] == []
    unchanged = await site.http.patch(f"{TASKS}/{running}/network", json={})
    assert (unchanged.status_code, unchanged.json()["policy"]) == (200, changed.json()["policy"])

    async def used() -> bool:
        return bool((await site.http.get(f"{TASKS}/{running}/network")).json()["use"])

    await until(used, "the use of the network")
    site.steps.agent_over.set()
    await site.until_state(running, "completed")
    detail = (await site.http.get(f"{TASKS}/{running}")).json()
    assert detail["network"]["hosts"][0]["host"] == "a.example.org"
    assert detail["network_policy"] == {"mode": "outbound", "hosts": ["*.example.net:443"]}
    ended = (await site.http.get(f"{TASKS}/{running}/network")).json()
    assert (ended["policy"], ended["use"]["allowed"]) == (detail["network_policy"], 12)


BODIES: list[tuple[Any, int, str, str]] = [
    # body, status, code, field
    ({"allow": "example.org"}, 422, "invalid_body", "allow"),
    ({"allow": [7]}, 422, "invalid_body", "allow[0]"),
    ({"allow": ["a.example.org", "https://example.org/x"]}, 422, "invalid_body", "allow[1]"),
    ({"allow": ["exämple.org"]}, 422, "invalid_body", "allow[0]"),
    ({"allow": ["\u202eexample.org"]}, 422, "invalid_body", "allow[0]"),
    ({"allow": ["*"]}, 422, "invalid_body", "allow[0]"),
    ({"allow": [f"h{n}.example.org" for n in range(10_000)]}, 422, "invalid_body", "allow"),
    ({"allow": ["x" * 100_000]}, 422, "invalid_body", "allow[0]"),
    ({"remove": [""]}, 422, "invalid_body", "remove[0]"),
    ({"remove": None}, 422, "invalid_body", "remove"),
    ({"mode": "open"}, 422, "invalid_body", "mode"),
    ({"mode": True}, 422, "invalid_body", "mode"),
    ({"hosts": ["a.example.org"]}, 422, "invalid_body", "hosts"),
    ([], 422, "invalid_body", ""),
    ({"remove": ["b.example.org"]}, 409, "conflict", "remove"),
    ({"allow": ["b.example.org"], "remove": ["B.example.org"]}, 409, "conflict", "remove"),
]


async def test_what_makes_no_sense_is_refused_with_its_field_and_changes_nothing(site: ApiSite, running: str) -> None:
    for body, status, code, field in BODIES:
        reply = await site.http.patch(f"{TASKS}/{running}/network", json=body)
        assert (reply.status_code, reply.json()["error"]) == (status, code), (str(body)[:100], reply.text)
        details = reply.json()["details"]
        fields = [each["field"] for each in details["errors"]] if "errors" in details else [details["field"]]
        assert fields == [field], reply.text
        assert len(reply.content) < 5000
    assert (await site.http.get(f"{TASKS}/{running}/network")).json()["policy"] == {"mode": "isolated", "hosts": []}


async def test_a_run_that_has_ended_or_never_was_is_not_changed(site: ApiSite) -> None:
    ended = await ended_run(site, "one")
    body = {"allow": ["a.example.org"]}
    reply = await site.http.patch(f"{TASKS}/{ended}/network", json=body)
    assert (reply.status_code, reply.json()["error"]) == (409, "task_already_terminal"), reply.text
    reply = await site.http.patch(f"{TASKS}/never-was/network", json=body)
    assert (reply.status_code, reply.json()["error"]) == (404, "task_not_found")
    assert (await site.http.get(f"{TASKS}/never-was/network")).status_code == 404


async def test_decisions_show_in_every_form_of_the_log(site: ApiSite) -> None:
    task_id = await ended_run(site, "one")
    event = {"type": "network", "message": "network: blocked b.example.org:443", "host": "b.example.org", "port": 443}
    async with site.worker() as steps:
        steps.agent_over.clear()
        task_id = await site.submit()
        await site.write_event(task_id, **event, verdict="blocked", count=3)
        steps.agent_over.set()
        await site.until_state(task_id, "completed")
    logs = f"{TASKS}/{task_id}/logs?stream=events"
    plain = (await site.http.get(logs)).text
    assert "[EVENT]" in plain
    assert "network: blocked b.example.org:443" in plain
    lines = (await site.http.get(logs, headers={"Accept": "application/x-ndjson"})).text.splitlines()
    told = [json.loads(line) for line in lines if line.strip()]
    assert next(each for each in told if each.get("type") == "network").items() >= event.items()
    sse = await site.http.get(logs, headers={"Accept": "text/event-stream"})
    assert "event: event" in sse.text
    assert '"verdict": "blocked"' in sse.text
