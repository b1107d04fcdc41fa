"""Every route of the dialect wants a key, and tells what is wrong in the bodies of the contract (section 0)."""

from __future__ import annotations

import re
from itertools import product
from uuid import UUID

import httpx

from api.posthog.paths import PUBLIC_KEYS
from tests.api_site import ApiSite

#: What says nothing that is not public.
OPEN = {PUBLIC_KEYS}


def routes(site: ApiSite) -> list[tuple[str, str]]:
    """Method and path of every route, with ids that nothing has."""
    (dialect,) = (each for each in site.app.dialects.all() if PUBLIC_KEYS in each.openapi()["paths"])
    found = [
        (method.upper(), re.sub(r"\{\w+\}", str(UUID(int=0)), path.replace("{project_id}", "7")))
        for path, methods in dialect.openapi()["paths"].items()
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
