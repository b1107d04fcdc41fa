"""The API with a key of its own, and a client that shows it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from tests.api_site import PATIENCE, ApiSite

PROJECT = "/api/projects/7"


@pytest.fixture
async def client(site: ApiSite) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the task-runs dialect, below one project, with the key that the server has made."""
    key = site.settings.client_keys()[0].decode()
    async with httpx.AsyncClient(
        base_url=f"{site.url}{PROJECT}", headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE
    ) as http:
        yield http
