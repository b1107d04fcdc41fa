"""Sandbox environments: what goes in, what comes out, who sees them, and how a run gets their variables."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from activities.machine.secrets import resolve_all
from api.environments.core import applied
from foundation.errors import SecretUnavailable
from storage.environments.store import EnvironmentStore
from tests.api_site import ApiSite, manifest
from workflows.specs.manifest import SecretReference, parse

PATH = "/sandbox_environments/"
CANARY = "canary-5d31c0ffee"
NOBODY = "00000000-0000-0000-0000-000000000000"


async def made(client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    reply = await client.post(PATH, json={"name": "Web", **fields})
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


async def test_an_environment_lives_and_its_values_never_come_out(client: httpx.AsyncClient, site: ApiSite):
    one = await made(
        client,
        network_access_level="custom",
        allowed_domains=["*.example.org", "api.example.org:8443"],
        environment_variables={"API_KEY": CANARY, "MODE": "fast"},
        private=False,
    )
    changed = await client.patch(f"{PATH}{one['id']}/", json={"name": "Web app", "unknown": 1, "private": None})
    shown = await client.get(f"{PATH}{one['id']}")
    page = (await client.get(PATH, params={"limit": 1})).json()

    assert shown.json() == changed.json()
    assert shown.json() == one | {"name": "Web app", "updated_at": shown.json()["updated_at"]}
    assert shown.json()["environment_variable_keys"] == ["API_KEY", "MODE"]
    assert page["results"][0]["id"] == one["id"]
    assert CANARY not in shown.text + str(page)
    stored = b"".join(site.bucket.get(each.key) or b"" for each in site.bucket.list("environments/"))
    assert CANARY.encode() not in stored

    assert (await client.delete(f"{PATH}{one['id']}/")).status_code == 204
    for request in ("GET", "PATCH", "DELETE"):
        gone = await client.request(request, f"{PATH}{one['id']}/", json={} if request == "PATCH" else None)
        assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_a_run_gets_the_variables_as_secrets_and_the_network(client: httpx.AsyncClient, site: ApiSite):
    one = await made(
        client,
        network_access_level="custom",
        allowed_domains=["example.org"],
        environment_variables={"API_KEY": CANARY, "TOKEN": "the environment's"},
    )
    store = EnvironmentStore(site.bucket, site.settings.service_key)
    environment = await asyncio.to_thread(store.newest, one["id"])
    wanted = parse(
        applied(
            environment,
            {
                "metadata": {"name": "a"},
                "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
                "claude": {"prompt": "do it"},
                "secrets": [{"name": "TOKEN", "source": "env", "key": "TOKEN"}],
            },
        )
    )

    assert [(each.name, each.source) for each in wanted.secrets] == [("TOKEN", "env"), ("API_KEY", "environment")]
    assert (wanted.vm.network_mode, wanted.vm.allowed_hosts) == ("outbound", ["example.org"])
    assert CANARY not in wanted.model_dump_json()
    reference = wanted.secrets[1]
    assert await asyncio.to_thread(resolve_all, site.settings, [reference]) == {"API_KEY": CANARY}

    other = site.settings.model_copy(update={"host_key": SecretStr("x" * 40)})
    with pytest.raises(SecretUnavailable, match="TASKYARD_HOST_KEY"):
        await asyncio.to_thread(resolve_all, other, [reference])
    await client.patch(f"{PATH}{one['id']}/", json={"environment_variables": {}})
    with pytest.raises(SecretUnavailable, match="does not exist any more"):
        await asyncio.to_thread(resolve_all, site.settings, [reference])


async def test_changes_at_once_all_count_and_a_private_one_is_its_owners(client: httpx.AsyncClient, site: ApiSite):
    one = await made(client)
    changes = [{"name": "A"}, {"network_access_level": "trusted"}, {"repositories": ["org/repo"]}, {"private": True}]
    replies = await asyncio.gather(*(client.patch(f"{PATH}{one['id']}/", json=change) for change in changes))

    assert {reply.status_code for reply in replies} == {200}
    after = (await client.get(f"{PATH}{one['id']}/")).json()
    assert (after["name"], after["network_access_level"], after["repositories"]) == ("A", "trusted", ["org/repo"])
    assert (await site.http.get(f"/api/projects/8{PATH}{one['id']}/", headers=client.headers)).status_code == 404


async def test_a_manifest_names_what_whoever_submits_it_may_see(client: httpx.AsyncClient, site: ApiSite):
    private = await made(client, environment_variables={"API_KEY": CANARY}, private=True)
    public = await made(client, environment_variables={"API_KEY": CANARY}, private=False)
    deleted = await made(client, environment_variables={"API_KEY": CANARY}, private=False)
    await client.delete(f"{PATH}{deleted['id']}/")
    own = dict(client.headers)

    async def submitted(path: str, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        shown = {"Authorization": headers["authorization"]} if headers else {}
        return await site.http.post(f"/api/v1/tasks{path}", json=body, headers=shown)

    def naming(environment: dict[str, Any], name: str = "API_KEY") -> dict[str, Any]:
        secret = {"name": "API_KEY", "source": "environment", "key": f"{environment['id']}/{name}"}
        return manifest(secrets=[secret])

    assert (await submitted("", naming(public))).status_code == 202
    for body in (naming(private), naming(public, "OTHER"), naming(deleted), naming({"id": NOBODY})):
        for path in ("", "?dry_run=true"):
            for headers in (None, {"authorization": "Bearer another"}):
                reply = await submitted(path, body, headers)
                assert (reply.status_code, reply.json()["details"]["field"]) == (400, "secrets[0].key")
    accepted = await submitted("", naming(private), own)
    assert accepted.status_code == 202
    again = f"/{accepted.json()['task_id']}/retry"
    assert (await submitted(again, {})).status_code == 400
    assert (await submitted(again, {}, own)).status_code == 202


WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "name"),
    ({"name": ""}, "name"),
    ({"name": " "}, "name"),
    ({"name": "x" * 256}, "name"),
    ({"name": 7}, "name"),
    ({"name": "a", "network_access_level": "open"}, "network_access_level"),
    ({"name": "a", "allowed_domains": ["https://example.org/"]}, "allowed_domains__0"),
    ({"name": "a", "allowed_domains": ["example.org"] * 101}, "allowed_domains"),
    ({"name": "a", "allowed_domains": "example.org"}, "allowed_domains"),
    ({"name": "a", "environment_variables": {"PATH": "/bin"}}, "environment_variables"),
    ({"name": "a", "environment_variables": {"A B": "x"}}, "environment_variables"),
    ({"name": "a", "environment_variables": {"A": ""}}, "environment_variables"),
    ({"name": "a", "environment_variables": {"A": "\0"}}, "environment_variables__A"),
    ({"name": "a", "environment_variables": {"A": 1}}, "environment_variables__A"),
    ({"name": "a", "environment_variables": {"A": "x" * 65537}}, "environment_variables"),
    ({"name": "a", "environment_variables": {f"A{n}": "x" for n in range(51)}}, "environment_variables"),
]


@pytest.mark.parametrize(("body", "field"), WRONG, ids=[f"{field}-{number}" for number, (_, field) in enumerate(WRONG)])
async def test_what_is_wrong_is_told_by_its_field(client: httpx.AsyncClient, body: dict[str, Any], field: str):
    reply = await client.post(PATH, json=body)
    assert reply.status_code == 400, reply.text
    assert reply.json()["attr"] == field
    assert reply.json()["type"] == "validation_error"


@pytest.mark.parametrize("environment_id", [NOBODY, "x", "..%2f..", "%00"])
async def test_what_is_no_environment_is_not_found(client: httpx.AsyncClient, environment_id: str):
    assert (await client.get(f"{PATH}{environment_id}/")).status_code == 404


def test_no_secret_of_a_manifest_leads_to_other_objects():
    for key in ("x/A", f"{NOBODY}/../A", f"{NOBODY}/A/B", f"{NOBODY}/", NOBODY):
        with pytest.raises(ValueError, match="ID/NAME"):
            SecretReference(name="A", source="environment", key=key)
