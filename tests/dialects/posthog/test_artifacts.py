"""Artifacts and tokens of a run, sentence by sentence of the contract (sections 1.6, 1.7, 1.9 and 2.4)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import jwt
import pytest

from tests.api_site import ApiSite, manifest
from tests.dialects.posthog.conftest import PROJECT
from workflows.parents.messages import ParentFields
from workflows.specs.wire import Manifest
from workflows.told.record import Told

PLAN = {"name": "plan.md", "type": "plan", "source": "agent_output", "content_type": "text/markdown"}


@dataclass
class Run:
    """A run of a parent task, which waits for a host, and its path below the project."""

    task: str
    id: str

    @property
    def path(self) -> str:
        return f"/tasks/{self.task}/runs/{self.id}"


@pytest.fixture
async def run(site: ApiSite) -> Run:
    services = site.app.services
    parent = await services.parents.create("7", ParentFields(description="do it"), created_by="somebody")
    wanted = Manifest.model_validate(manifest(metadata={"id": str(uuid4())}))
    status = await services.core.submit(wanted, parent=parent.id)
    return Run(parent.id, status.id)


async def upload(client: httpx.AsyncClient, run: Run, *artifacts: dict[str, Any]) -> list[dict[str, Any]]:
    reply = await client.post(f"{run.path}/artifacts/", json={"artifacts": list(artifacts)})
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["artifacts"]
    return found


async def test_what_is_uploaded_is_in_the_run_and_comes_back(client: httpx.AsyncClient, run: Run):
    content = bytes(range(256))
    encoded = {"content": base64.b64encode(content).decode(), "content_encoding": "base64"}
    (plan,) = await upload(client, run, {**PLAN, "content": "# Plan ä\n"})
    assert plan.items() >= {**PLAN, "size": 10}.items()
    assert plan.keys() == {"id", "name", "type", "source", "size", "content_type", "storage_path", "uploaded_at"}
    whole = await upload(client, run, {"name": "../a/x.bin", "type": "output", **encoded})
    assert [each["name"] for each in whole] == ["plan.md", "x.bin"]
    assert (await client.get(run.path)).json()["artifacts"] == whole
    for artifact, expected in zip(whole, ["# Plan ä\n".encode(), content], strict=True):
        path = {"storage_path": artifact["storage_path"]}
        presigned = (await client.post(f"{run.path}/artifacts/presign/", json=path)).json()
        assert presigned["expires_in"] == 3600
        async with httpx.AsyncClient() as anyone:
            assert (await anyone.get(presigned["url"])).content == expected
        downloaded = await client.post(f"{run.path}/artifacts/download/", json=path)
        assert downloaded.content == expected
        assert downloaded.headers["content-type"].startswith(artifact["content_type"])


async def test_text_of_any_characters_is_content(client: httpx.AsyncClient, run: Run):
    text = "a\0b\u2028\ufffe"
    (artifact,) = await upload(client, run, {**PLAN, "content": text})
    path = {"storage_path": artifact["storage_path"]}
    assert (await client.post(f"{run.path}/artifacts/download/", json=path)).content == text.encode()
    for wrong, attr in (({"name": "a\0"}, "artifacts__0__name"), ({"content": "\ud800"}, "artifacts__0__content")):
        body = json.dumps({"artifacts": [{**PLAN, "content": text} | wrong]})
        refused = await client.post(f"{run.path}/artifacts/", content=body)
        assert (refused.status_code, refused.json()["attr"]) == (400, attr)


async def test_native_readers_find_it_too(client: httpx.AsyncClient, run: Run, site: ApiSite):
    await upload(client, run, {**PLAN, "content": "plan"}, {**PLAN, "content": "another"})
    listed = (await site.http.get(f"/api/v1/tasks/{run.id}/artifacts")).json()
    first, second = listed["artifacts"] if isinstance(listed, dict) else listed
    assert first["name"] != second["name"]
    got = await site.http.get(second["download_url"])
    assert (got.text, got.headers["x-checksum-sha256"]) == ("another", second["checksum"].removeprefix("sha256:"))


async def test_files_go_directly_to_the_bucket(client: httpx.AsyncClient, run: Run):
    await send_file(client, f"/tasks/{run.task}/staged_artifacts")
    # For a run to come.
    assert (await client.get(run.path)).json()["artifacts"] == []
    made = await send_file(client, f"{run.path}/artifacts")
    assert (await client.get(run.path)).json()["artifacts"] == [made]


async def send_file(client: httpx.AsyncClient, base: str) -> dict[str, Any]:
    """Upload a plan by the form that is prepared below the path; its entry in the manifest."""
    reply = await client.post(f"{base}/prepare_upload/", json={"artifacts": [{**PLAN, "size": 4}]})
    (prepared,) = reply.json()["artifacts"]
    assert prepared.items() >= {**PLAN, "size": 4, "expires_in": 3600}.items()
    finished = {**PLAN, "id": prepared["id"], "storage_path": prepared["storage_path"]}
    early = await client.post(f"{base}/finalize_upload/", json={"artifacts": [finished]})
    assert (early.status_code, early.json()["attr"]) == (400, "artifacts__0__storage_path")
    form = prepared["presigned_post"]
    async with httpx.AsyncClient() as anyone:
        sent = await anyone.post(form["url"], data=form["fields"], files={"file": ("plan.md", b"plan")})
    assert sent.status_code == 204
    for _ in range(2):
        reply = await client.post(f"{base}/finalize_upload/", json={"artifacts": [finished]})
        (made,) = reply.json()["artifacts"]
        assert made.items() >= {**PLAN, "id": prepared["id"], "size": 4}.items()
    entry: dict[str, Any] = made
    return entry


WRONG: list[tuple[str, dict[str, Any], str, str | None]] = [
    ("artifacts/", {}, "artifacts", "required"),
    ("artifacts/", {"artifacts": []}, "artifacts", "empty"),
    ("artifacts/", {"artifacts": None}, "artifacts", None),
    ("artifacts/", {"artifacts": [None]}, "artifacts__0", None),
    ("artifacts/", {"artifacts": [{**PLAN}]}, "artifacts__0__content", "required"),
    ("artifacts/", {"artifacts": [{**PLAN, "type": "film", "content": ""}]}, "artifacts__0__type", None),
    ("artifacts/", {"artifacts": [{**PLAN, "name": "a" * 256, "content": ""}]}, "artifacts__0__name", "max_length"),
    ("artifacts/", {"artifacts": [{**PLAN, "name": 7, "content": ""}]}, "artifacts__0__name", None),
    (
        "artifacts/",
        {"artifacts": [{**PLAN, "content_type": "a\nb", "content": ""}]},
        "artifacts__0__content_type",
        None,
    ),
    (
        "artifacts/",
        {"artifacts": [{**PLAN, "content": "not base64!", "content_encoding": "base64"}]},
        "artifacts__0__content",
        None,
    ),
    ("artifacts/prepare_upload/", {"artifacts": [{**PLAN, "size": 0}]}, "artifacts__0__size", None),
    ("artifacts/prepare_upload/", {"artifacts": [{**PLAN, "size": 2**31}]}, "artifacts__0__size", None),
    (
        "artifacts/prepare_upload/",
        {"artifacts": [{"name": "a.pdf", "type": "user_attachment", "size": 11 * 2**20}]},
        "artifacts__0__size",
        None,
    ),
    (
        "artifacts/finalize_upload/",
        {"artifacts": [{**PLAN, "id": "0" * 32, "storage_path": "tasks/x/record.json"}]},
        "artifacts__0__storage_path",
        None,
    ),
    ("artifacts/presign/", {"storage_path": "a" * 501}, "storage_path", "max_length"),
    ("artifacts/download/", {}, "storage_path", "required"),
]


async def test_what_is_wrong_is_told_by_its_field(client: httpx.AsyncClient, run: Run):
    for path, body, attr, code in WRONG:
        reply = await client.post(f"{run.path}/{path}", json=body)
        told = reply.json()
        assert (reply.status_code, told["type"], told["attr"]) == (400, "validation_error", attr), (path, body)
        assert code is None or told["code"] == code
    assert (await client.get(run.path)).json()["artifacts"] == []


async def test_what_an_earlier_run_left_is_downloaded_through_the_one_that_continues_it(
    client: httpx.AsyncClient, run: Run, site: ApiSite
):
    (artifact,) = await upload(client, run, {**PLAN, "content": "earlier"})
    wanted = Manifest.model_validate(manifest(metadata={"id": str(uuid4())}))
    told = Told(state={"resume_from_run_id": run.id})
    later = Run(run.task, (await site.app.services.core.submit(wanted, parent=run.task, told=told)).id)
    path = {"storage_path": artifact["storage_path"]}
    assert (await client.post(f"{later.path}/artifacts/download/", json=path)).text == "earlier"
    # URLs are signed for what is the run's own.
    assert (await client.post(f"{later.path}/artifacts/presign/", json=path)).status_code == 404
    assert (await client.get(later.path)).json()["artifacts"] == []


async def test_a_path_outside_of_the_manifest_is_never_signed(client: httpx.AsyncClient, run: Run):
    (artifact,) = await upload(client, run, {**PLAN, "content": "x"})
    for path in (f"tasks/{run.id}/record.json", artifact["storage_path"] + "x", "/", "hosts/x.json"):
        for what in ("presign", "download"):
            reply = await client.post(f"{run.path}/artifacts/{what}/", json={"storage_path": path})
            assert reply.status_code == 404
            assert reply.json()["error"].startswith("Artifact not found on this run")
    other = f"/tasks/{run.task}/runs/{uuid4()}/artifacts/presign/"
    assert (await client.post(other, json={"storage_path": artifact["storage_path"]})).status_code == 404


async def test_a_connection_token_opens_what_it_is_for_and_nothing_else(
    client: httpx.AsyncClient, run: Run, site: ApiSite
):
    reply = await client.get(f"{run.path}/connection_token/")
    token = reply.json()["token"]
    keys = (await site.http.get("/.well-known/jwks.json")).json()["keys"]
    key = next(key for key in keys if key["kid"] == jwt.get_unverified_header(token)["kid"])
    claims = jwt.decode(token, jwt.PyJWK(key), algorithms=["RS256"], audience="posthog:sandbox_connection")
    me = (await client.get(f"{site.url}/api/users/@me/")).json()
    assert claims.items() >= {
        "run_id": run.id, "task_id": run.task, "team_id": 7, "user_id": me["id"], "distinct_id": me["distinct_id"],
    }.items()  # fmt: skip
    bearer = {"Authorization": f"Bearer {token}"}
    for method, path in (
        ("GET", ""), ("PATCH", ""), ("GET", "/logs"), ("GET", "/connection_token/"), ("POST", "/artifacts/"),
        ("POST", "/artifacts/presign/"), ("POST", "/start"), ("POST", "/cancel"), ("GET", "/session_logs"),
    ):  # fmt: skip
        assert (await client.request(method, run.path + path, headers=bearer)).status_code == 403
    # The agent of this run does not run yet.
    call = {"jsonrpc": "2.0", "id": 1, "method": "cancel"}
    opened = await client.post(f"{run.path}/command/", json=call, headers=bearer)
    assert (opened.status_code, opened.json()["error"][:17]) == (400, "No active sandbox")
    async with client.stream("GET", f"{run.path}/stream/", headers=bearer) as stream:
        assert stream.status_code == 200
    another = run.path.replace(run.id, str(uuid4()))
    for path in (f"{another}/stream/", f"{another}/command/", "/tasks/", "../users/@me/"):
        method = "POST" if "command" in path else "GET"
        assert (await client.request(method, f"{site.url}{PROJECT}{path}", headers=bearer)).status_code in {403, 404}
    forged = jwt.encode(claims, "k" * 32, algorithm="HS256", headers={"kid": key["kid"]})
    assert (await client.get(run.path, headers={"Authorization": f"Bearer {forged}"})).status_code == 401
