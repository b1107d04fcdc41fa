"""Every route of the dialect wants a key, and tells what is wrong in the bodies of the contract (section 0)."""

from __future__ import annotations

import asyncio
import re
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from temporalio.client import Client

from api.http.tokens import TokenKeys
from api.posthog.paths import PUBLIC_KEYS
from foundation.settings import Settings
from storage.bucket import Bucket
from tests.api_site import ApiSite, api_site, until

#: What says nothing that is not public.
OPEN = {PUBLIC_KEYS}


def described(site: ApiSite) -> dict[str, dict[str, Any]]:
    """Paths of the dialect, with what their methods do."""
    (dialect,) = (each for each in site.app.dialects.all() if PUBLIC_KEYS in each.openapi()["paths"])
    paths: dict[str, dict[str, Any]] = dialect.openapi()["paths"]
    return paths


def routes(site: ApiSite) -> list[tuple[str, str]]:
    """Method and path of every route, with ids that nothing has."""
    found = [
        (method.upper(), re.sub(r"\{\w+\}", str(UUID(int=0)), path.replace("{project_id}", "7")))
        for path, methods in described(site).items()
        for method in methods
        if path not in OPEN
    ]
    assert len(found) > 10
    return found


async def test_every_route_refuses_whoever_shows_no_key_that_is_known(site: ApiSite):
    given_ones = [None, "Bearer nobody's", "Basic QTpC", "Bearer", "nothing", "Bearer a.b.c"]
    for given, (method, path) in product(given_ones, routes(site)):
        reply = await site.http.request(method, path, headers={"Authorization": given} if given else {})
        assert reply.status_code == 401, path
        body = reply.json()
        assert (body["type"], body["attr"]) == ("authentication_error", None)
        assert body["detail"]
        assert reply.headers["www-authenticate"].startswith("Bearer")


async def test_what_is_not_there_is_told_as_not_found(client: httpx.AsyncClient):
    for path in (
        "/tasks/no-uuid/",
        "/tasks/00000000-0000-0000-0000-000000000000",
        "/tasks/00000000-0000-0000-0000-000000000000/runs/x",
    ):
        reply = await client.get(path)
        assert reply.status_code == 404
        assert reply.json()["type"] == "invalid_request"
        assert reply.json()["code"] == "not_found"


async def test_head_is_get_without_a_body_and_options_says_what_there_is(site: ApiSite, client: httpx.AsyncClient):
    task = (await client.post("/tasks/", json={"title": "t"})).json()["id"]
    run = (await client.post(f"/tasks/{task}/runs/", json={})).json()["id"]
    for path, methods in described(site).items():
        named = path.format(project_id="7", task_id=task, run_id=run, environment_id=UUID(int=0))
        there = site.url + named
        options = await client.options(there)
        allowed = set(options.headers["allow"].split(", "))
        assert options.status_code == 200
        # A word that is a path of its own may also be taken for an id.
        assert allowed >= {method.upper() for method in methods} | {"OPTIONS"}, path
        assert ("HEAD" in allowed) == ("GET" in allowed)
        assert options.json().keys() == {"name", "description", "renders", "parses"}
        head = await client.head(f"{there}/")
        assert head.content == b""
        if "GET" not in allowed:
            assert (head.status_code, head.headers["allow"]) == (405, options.headers["allow"])
        elif path.endswith("/stream"):
            # The run has not ended, and its stream would not either.
            assert (head.status_code, head.headers["content-type"][:17]) == (200, "text/event-stream")
        else:
            got = await client.get(there)
            facts = [(each.status_code, each.headers["content-type"]) for each in (head, got)]
            assert facts[0] == facts[1], path
    await until(lambda: asyncio.sleep(0, not site.app.services.followers.followed), "the stream to be closed")
    refused = await client.put(f"/tasks/{task}/runs/")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS, POST")
    assert refused.json()["code"] == "method_not_allowed"
    for method in ("OPTIONS", "HEAD"):
        assert (await client.request(method, "/nothing/")).status_code == 404


async def test_a_key_of_the_server_that_cannot_be_read_is_not_told_as_the_clients_fault(
    services: Settings, temporal_client: Client, bucket: Bucket, tmp_path: Path
):
    def signed(audience: str) -> str:
        return TokenKeys(services).sign(audience, {"run_id": str(UUID(int=0)), "distinct_id": "somebody"}, 60)

    broken = services.model_copy(update={"token_keys": [tmp_path / "missing.pem"]})
    async with api_site(broken, temporal_client, bucket) as site:
        for audience in ("posthog:sandbox_connection", "posthog:run_stream", "posthog:sandbox_event_ingest"):
            token = await asyncio.to_thread(signed, audience)
            reply = await site.http.get("/api/users/@me/", headers={"Authorization": f"Bearer {token}"})
            assert (reply.status_code, reply.json()["code"]) == (503, "host_not_ready")
            assert "TASKYARD_TOKEN_KEYS" in reply.json()["error"]
        key = {"Authorization": f"Bearer {broken.client_keys()[0].decode()}"}
        assert (await site.http.get("/api/users/@me/", headers=key)).status_code == 200
