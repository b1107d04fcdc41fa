"""Every route of the dialect wants a key, and tells what is wrong in the bodies of the contract (section 0)."""

from __future__ import annotations

import re

import httpx
import pytest
from fastapi.routing import APIRoute

from api.app import _make_services
from api.posthog.dialect import make_posthog
from foundation.settings import Settings
from tests.api_site import ApiSite

ROUTES = sorted(
    (
        method,
        re.sub(
            r"\{project_id\}",
            "7",
            re.sub(r"\{(?!project_id)\w+\}", "0" * 8 + "-0000-0000-0000-" + "0" * 12, route.path),
        ),
    )
    for route in make_posthog(_make_services(Settings())).routes
    if isinstance(route, APIRoute)
    for method in route.methods
)


@pytest.mark.parametrize("given", [None, "Bearer nobody's", "Basic QTpC", "Bearer ", "nothing"])
async def test_every_route_refuses_whoever_shows_no_key_that_is_known(site: ApiSite, given: str | None):
    for method, path in ROUTES:
        reply = await site.http.request(method, path, headers={"Authorization": given} if given else {})
        assert reply.status_code == 401, path
        body = reply.json()
        assert (body["type"], body["attr"]) == ("authentication_error", None)
        assert body["detail"]
        assert reply.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "path",
    [
        "/tasks/no-uuid/",
        "/tasks/00000000-0000-0000-0000-000000000000",
        "/tasks/00000000-0000-0000-0000-000000000000/runs/x",
    ],
)
async def test_what_is_not_there_is_told_as_not_found(client: httpx.AsyncClient, path: str):
    reply = await client.get(path)
    assert reply.status_code == 404
    assert reply.json()["type"] == "invalid_request"
    assert reply.json()["code"] == "not_found"
