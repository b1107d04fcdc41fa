"""Tasks and their runs, created, changed, listed and looked at (contract, sections 1.0 to 1.4, 1.15 and 1.16)."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest

from tests.api_site import ApiSite, until

REPOSITORY = "https://git.invalid/org/repo.git"
NOBODY = "00000000-0000-0000-0000-000000000000"


async def made_task(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await client.post("/tasks/", json={"description": "Fix it", "repository": REPOSITORY} | fields)
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


async def test_a_task_has_a_number_a_slug_and_a_title_of_its_own(client: httpx.AsyncClient):
    first = await made_task(client, description="\nFix the login\nof all", repository="Org/Repo")
    second = await made_task(client, title="Another", json_schema={"type": "object"}, ci_prompt="wait")
    assert first["title"] == "Fix the login"
    assert first["repository"] == "org/repo"
    assert second["task_number"] == first["task_number"] + 1
    assert second["slug"] == f"TASK-{second['task_number']}"
    assert (second["json_schema"], second["ci_prompt"]) == ({"type": "object"}, "wait")
    assert second["latest_run"] is None
    me = (await client.get(f"{client.base_url.copy_with(path='/api/users/@me/')}")).json()
    assert second["created_by"] == me
    # With and without the last slash, and whatever project of digits it is; another project's task is not there.
    assert (await client.get(f"/tasks/{first['id']}")).json()["id"] == first["id"]
    other = str(client.base_url).replace("/7/", "/8/")
    assert (await client.get(f"{other}tasks/{first['id']}/")).status_code == 404


async def test_a_task_is_changed_found_and_deleted(site: ApiSite, client: httpx.AsyncClient):
    word = uuid.uuid4().hex
    task = await made_task(client, title=f"Look for {word}", origin_product="slack")
    path = f"/tasks/{task['id']}/"
    assert (await client.patch(path, json={"title": " "})).status_code == 400
    async with site.worker():
        changed = (await client.patch(path, json={"title": f"Now {word}", "archived": True, "unknown": 1})).json()
        assert (changed["title"], changed["archived"], changed["origin_product"]) == (f"Now {word}", True, "slack")
        assert changed["description"] == "Fix it"

        async def shown() -> bool:
            found = await client.get("/tasks/", params={"search": word.upper(), "archived": True})
            return [each["title"] for each in found.json()["results"]] == [f"Now {word}"]

        await until(shown, "the change in the list")
        assert (await client.get("/tasks/", params={"search": word})).json()["count"] == 0
        short = await client.post("/tasks/summaries/", json={"ids": [task["id"], NOBODY]})
        assert [each["title"] for each in short.json()["results"]] == [f"Now {word}"]
        assert (await client.delete(path)).status_code == 204
        assert (await client.get(path)).status_code == 404
        assert (await client.delete(path)).status_code == 404


@pytest.mark.parametrize(
    ("body", "attr", "code"),
    [
        (b'{"title": "' + b"t" * 256 + b'"}', "title", "max_length"),
        (b'{"repository": "no-repository"}', "repository", "value_error"),
        (b'{"repository": "https://user:secret@git.invalid/a.git"}', "repository", "value_error"),
        (b'{"title": 1}', "title", "string_type"),
        (b'{"json_schema": "text"}', "json_schema", "dict_type"),
        (b'{"json_schema": {"type": "obj"}}', "json_schema", "value_error"),
        (b'{"json_schema": {"$ref": "https://schemas.invalid/a"}}', "json_schema", "value_error"),
        (b'{"description": "\\ud800"}', "description", "unicode"),
        (b'{"description": "a\\u0000"}', "description", "nul"),
        (b'{"signal_report": "x"}', "signal_report", "value_error"),
        (b"[]", None, "invalid"),
        (b"{", None, "parse_error"),
        (b'{"json_schema": ' + b'{"a":' * 100 + b"1" + b"}" * 101, None, "parse_error"),
    ],
)
async def test_what_is_wrong_with_a_task_is_told_by_its_field(client: httpx.AsyncClient, body: bytes, attr, code):
    reply = await client.post("/tasks/", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400
    told = reply.json()
    assert (told["type"], told["attr"], told["code"]) == ("validation_error", attr, code)
    assert told["detail"]
    assert "secret@" not in reply.text


async def test_a_run_in_the_cloud_goes_from_queued_to_its_end(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client)
    options = {
        "mode": "interactive",
        "branch": "main",
        "runtime_adapter": "claude",
        "model": "claude-sonnet-5",
        "reasoning_effort": "high",
        "pending_user_message": "  Begin here ",
    }
    begun = await client.post(f"/tasks/{task['id']}/run/", json=options)
    assert begun.status_code == 200, begun.text
    assert begun.json()["id"] == task["id"]
    run = begun.json()["latest_run"]
    assert (run["task"], run["status"], run["environment"], run["branch"]) == (task["id"], "queued", "cloud", "main")
    assert (run["model"], run["reasoning_effort"]) == ("claude-sonnet-5", "high")
    assert run["state"]["mode"] == "interactive"
    assert run["state"]["pending_user_message"] == "Begin here"
    assert run["log_url"].endswith(f"/runs/{run['id']}/logs/")
    assert run["completed_at"] is None
    path = f"/tasks/{task['id']}/runs/{run['id']}"
    assert (await client.head(f"{path}/")).status_code == 200
    assert (await client.put(f"{path}/")).status_code == 405
    native = (await site.http.get(f"/api/v1/tasks/{run['id']}")).json()
    assert native["definition"]["claude"]["prompt"] == "Begin here"
    async with site.worker():
        await site.until_state(run["id"], "running")
        assert (await client.get(path)).json()["status"] == "in_progress"
        told = {"stage": "build", "output": {"head_branch": "fix"}, "state": {"sandbox_id": "x", "step": 1}}
        patched = (await client.patch(f"{path}/", json=told)).json()
        assert (patched["stage"], patched["output"]["head_branch"]) == ("build", "fix")
        assert "sandbox_id" not in patched["state"]
        assert patched["state"]["step"] == 1
        patched = (await client.patch(f"{path}/", json={"state_remove_keys": ["step"], "stage": None})).json()
        assert "step" not in patched["state"]
        assert patched["stage"] is None
        ended = await client.post(f"{path}/cancel/", json={"reason": "Enough"})
        assert ended.status_code == 202
        await site.until_state(run["id"], "cancelled")
        again = await client.post(f"{path}/cancel/")
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        assert "Enough" in again.json()["error_message"]
        assert again.json()["completed_at"] is not None
    late = await client.patch(f"{path}/", json={"status": "in_progress", "stage": "late"})
    assert (late.status_code, late.json()["status"], late.json()["stage"]) == (200, "cancelled", None)


async def test_a_run_is_created_and_started_later(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client)
    runs = f"/tasks/{task['id']}/runs"
    reply = await client.post(f"{runs}/", json={"environment": "cloud"})
    assert reply.status_code == 201, reply.text
    run = reply.json()
    assert (run["status"], run["environment"], run["state"]) == ("queued", "cloud", {"mode": "background"})
    async with site.worker() as steps:
        message = await client.post(
            f"{runs}/{run['id']}/command/",
            json={"jsonrpc": "2.0", "id": 1, "method": "cancel"},
        )
        assert message.status_code == 400
        assert message.json()["error"].startswith("No active sandbox")
        assert not steps.agent_running.is_set()
        started = await client.post(f"{runs}/{run['id']}/start/", json={"pending_user_message": "Now"})
        assert started.status_code == 200, started.text
        assert started.json()["latest_run"]["id"] == run["id"]
        await site.until_state(run["id"], "running")
        native = (await site.http.get(f"/api/v1/tasks/{run['id']}")).json()
        assert native["definition"]["claude"]["prompt"] == "Now"
        refused = await client.post(f"{runs}/{run['id']}/start/")
        assert refused.status_code == 400
        assert refused.json()["error"]
        await client.post(f"{runs}/{run['id']}/cancel/")
        await site.until_state(run["id"], "cancelled")


async def test_a_run_that_waits_for_its_host_loses_no_first_message(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client)
    runs = f"/tasks/{task['id']}/runs"
    run = (await client.post(f"{runs}/", json={"environment": "cloud", "mode": "interactive"})).json()
    async with site.worker() as steps:
        steps.hold("stage")
        steps.hold("reserve")
        # The second one is sent again, as after an answer that was lost.
        for said in ("Now", "Now", "And this", "And this"):
            started = await client.post(f"{runs}/{run['id']}/start/", json={"pending_user_message": said})
            assert started.status_code == 200, started.text
        for go_on in steps.go_on.values():
            go_on.set()

        async def delivered() -> bool:
            return bool(steps.delivered)

        await until(delivered, "the second message")
        native = (await site.http.get(f"/api/v1/tasks/{run['id']}")).json()
        assert native["definition"]["claude"]["prompt"] == "Now"
        assert (await client.post(f"{runs}/{run['id']}/cancel/")).status_code == 202
        await site.until_state(run["id"], "cancelled")
        assert steps.delivered == ["And this"]


async def test_a_run_is_cancelled_only_while_it_has_no_message_where_that_is_asked(
    site: ApiSite, client: httpx.AsyncClient
):
    task = await made_task(client)
    runs = f"/tasks/{task['id']}/runs"
    only = {"only_if_awaiting_first_message": True}
    waiting, started = [(await client.post(f"{runs}/", json={"environment": "cloud"})).json()["id"] for _ in range(2)]
    async with site.worker() as steps:
        assert (await client.post(f"{runs}/{started}/start/")).status_code == 200
        await steps.agent_running.wait()
        spared = await client.post(f"{runs}/{started}/cancel/", json=only)
        assert (spared.status_code, spared.json()["status"]) == (200, "in_progress")
        ended = await client.post(f"{runs}/{waiting}/cancel/", json=only)
        assert ended.status_code == 202
        await site.until_state(waiting, "cancelled")
        again = await client.post(f"{runs}/{waiting}/cancel/", json=only)
        assert (again.status_code, again.json()["status"]) == (200, "cancelled")
        assert (await client.get(f"{runs}/{started}/")).json()["status"] == "in_progress"
        assert (await client.post(f"{runs}/{started}/cancel/")).status_code == 202
        await site.until_state(started, "cancelled")


async def test_a_local_run_is_told_from_beginning_to_end(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client, repository=None)
    runs = f"/tasks/{task['id']}/runs"
    run = (await client.post(f"{runs}/", json={"mode": "interactive", "branch": "fix"})).json()
    assert (run["status"], run["environment"], run["branch"]) == ("queued", "local", "fix")
    path = f"{runs}/{run['id']}/"
    async with site.worker():
        assert (await client.patch(path, json={"status": "in_progress"})).json()["status"] == "in_progress"
        back = await client.patch(path, json={"status": "queued"})
        assert back.status_code == 409
        assert back.json()["error"]
        for other in ("start", "cancel"):
            assert (await client.post(f"{path}{other}/")).status_code == 400
        said = {"jsonrpc": "2.0", "id": "a", "method": "user_message", "params": {"content": "Hello"}}
        refused = await client.post(f"{path}command/", json=said)
        assert (refused.status_code, refused.json()["error"]) == (400, "No active sandbox for this task run")
        ended = (await client.patch(path, json={"status": "completed", "output": {"pr_url": "https://a"}})).json()
        assert (ended["status"], ended["output"]) == ("completed", {"pr_url": "https://a"})
        assert ended["completed_at"] is not None
    assert (await client.patch(path, json={"status": "failed"})).json()["status"] == "completed"
    shown = (await client.get(f"/tasks/{task['id']}/")).json()["latest_run"]
    assert (shown["id"], shown["status"]) == (run["id"], "completed")
    assert (await client.get(f"{path}peers/")).json() == {"peers": []}
    assert (await client.post(f"{path}relay_message/", json={"text": "Hello"})).json() == {"status": "skipped"}
    assert (await client.post(f"{path}relay_message/", json={"text": " "})).status_code == 400


async def test_runs_are_listed_in_pages_newest_first(client: httpx.AsyncClient):
    task = await made_task(client)
    path = f"/tasks/{task['id']}/runs/"
    made = [(await client.post(path, json={})).json()["id"] for _ in range(3)]
    page = (await client.get(path, params={"limit": 2})).json()
    assert (page["count"], page["previous"]) == (3, None)
    assert [run["id"] for run in page["results"]] == made[:0:-1]
    rest = (await client.get(page["next"])).json()
    assert [run["id"] for run in rest["results"]] == made[:1]
    assert rest["next"] is None
    assert (await client.get(rest["previous"])).json()["results"] == page["results"]
    for wrong in ({"limit": 0}, {"offset": -1}, {"limit": "many"}):
        assert (await client.get(path, params=wrong)).status_code == 400
    other = await made_task(client)
    assert (await client.get(f"/tasks/{other['id']}/runs/{made[0]}/")).status_code == 404


@pytest.mark.parametrize(
    ("body", "attr"),
    [
        ({"mode": "fast"}, "mode"),
        ({"branch": "a..b"}, "branch"),
        ({"branch": "b" * 256}, "branch"),
        ({"model": "claude-sonnet-5"}, None),
        ({"runtime_adapter": "codex", "model": "gpt"}, "runtime_adapter"),
        ({"initial_permission_mode": "plan"}, None),
        ({"runtime_adapter": "claude", "model": "a", "initial_permission_mode": "never"}, "initial_permission_mode"),
        ({"resume_from_run_id": "x"}, "resume_from_run_id"),
        ({"resume_from_run_id": NOBODY}, "resume_from_run_id"),
        ({"sandbox_environment_id": 1}, "sandbox_environment_id"),
        ({"pending_user_artifact_ids": ["x" * 129]}, "pending_user_artifact_ids__0"),
    ],
)
async def test_options_that_no_run_can_have_start_nothing(client: httpx.AsyncClient, body: dict[str, Any], attr):
    task = await made_task(client)
    reply = await client.post(f"/tasks/{task['id']}/run/", json=body)
    assert (reply.status_code, reply.json()["attr"]) == (400, attr), reply.text
    assert (await client.get(f"/tasks/{task['id']}/runs/")).json()["count"] == 0


async def test_artifacts_that_were_never_staged_are_named(client: httpx.AsyncClient):
    task = await made_task(client)
    reply = await client.post(f"/tasks/{task['id']}/run/", json={"pending_user_artifact_ids": ["a", "b"]})
    assert (reply.status_code, reply.json()["missing_artifact_ids"]) == (400, ["a", "b"])


async def test_a_local_run_is_handed_over_to_the_cloud(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client)
    runs = f"/tasks/{task['id']}/runs"
    local = (await client.post(f"{runs}/", json={})).json()
    async with site.worker():

        async def resumed() -> dict[str, Any]:
            reply = await client.post(f"{runs}/{local['id']}/resume_in_cloud/")
            assert reply.status_code == 200, reply.text
            return dict(reply.json())

        run, second = await asyncio.gather(resumed(), resumed())
        assert second["id"] == run["id"]
        assert (run["environment"], run["state"]["mode"]) == ("cloud", "interactive")
        assert run["state"]["resume_from_run_id"] == local["id"]
        before = (await client.get(f"{runs}/{local['id']}/")).json()
        assert (before["status"], before["error_message"]) == ("cancelled", "handoff")
        # An answer that was lost is asked for again.
        assert (await resumed())["id"] == run["id"]
        assert (await client.get(f"{runs}/")).json()["count"] == 2
        active = await client.post(f"{runs}/{run['id']}/resume_in_cloud/")
        assert (active.status_code, active.json()["error"]) == (400, "The run is active in the cloud already.")
        # Back to a desktop: the run in the cloud is ended by that.
        back = (await client.patch(f"{runs}/{run['id']}/", json={"environment": "local"})).json()
        assert back["id"] == run["id"]
        await site.until_state(run["id"], "cancelled")
        # What came of it has ended: now there is another one to go on with.
        another = await resumed()
        assert another["id"] not in {local["id"], run["id"]}
        assert another["state"]["resume_from_run_id"] == local["id"]
        assert (await resumed())["id"] == another["id"]


async def test_what_cannot_be_resumed_in_the_cloud_goes_on_where_it_is(client: httpx.AsyncClient):
    task = await made_task(client, repository=None)
    runs = f"/tasks/{task['id']}/runs"
    local = (await client.post(f"{runs}/", json={})).json()
    refused = await client.post(f"{runs}/{local['id']}/resume_in_cloud/")
    assert (refused.status_code, refused.json()["attr"]) == (400, "repository")
    assert (await client.get(f"{runs}/{local['id']}/")).json()["status"] == "queued"
    assert (await client.get(f"{runs}/")).json()["count"] == 1


CODEX = {
    "runtime_adapter": "codex",
    "model": "gpt-5",
    "reasoning_effort": "high",
    "initial_permission_mode": "read-only",
}


async def test_an_agent_of_another_kind_works_elsewhere_alone(site: ApiSite, client: httpx.AsyncClient):
    task = await made_task(client)
    runs = f"/tasks/{task['id']}/runs"
    made = await client.post(f"{runs}/", json=CODEX)
    assert made.status_code == 201, made.text
    local = made.json()
    assert CODEX.items() <= local["state"].items()
    assert (local["runtime_adapter"], local["provider"], local["model"]) == ("codex", "openai", "gpt-5")
    for wrong in (CODEX | {"environment": "cloud"}, CODEX | {"initial_permission_mode": "plan"}):
        refused = await client.post(f"{runs}/", json=wrong)
        field = "runtime_adapter" if "environment" in wrong else "initial_permission_mode"
        assert (refused.status_code, refused.json()["attr"]) == (400, field)
        assert "codex" in refused.json()["detail"]
    # In the cloud another agent goes on with the task.
    async with site.worker():
        resumed = (await client.post(f"{runs}/{local['id']}/resume_in_cloud/")).json()
        assert (resumed["environment"], resumed["runtime_adapter"]) == ("cloud", "claude")
        assert "model" not in resumed["state"]
        await client.post(f"{runs}/{resumed['id']}/cancel/")
        await site.until_state(resumed["id"], "cancelled")
