"""Real Temporal and a real S3 server, started once for all integration tests that need them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from temporalio.client import Client

from cli.stack import Stack
from foundation.engine import connect_engine
from foundation.settings import Settings
from storage.bucket import Bucket
from tests.integration.api_site import ApiSite, api_site
from tests.stack_settings import isolated_settings


@pytest.fixture(autouse=True)
def _no_wait_for_a_first_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here nobody ever speaks of a host's room unless a test does."""
    monkeypatch.setattr("api.admission.FIRST_SECONDS", 0.0)


@pytest.fixture(scope="session")
def services() -> Iterator[Settings]:
    """Settings of a running Temporal server, with its search attributes, and of a running S3 server with its bucket."""
    home = Path(tempfile.mkdtemp(prefix="ty-services-"))
    settings = isolated_settings(home, anthropic_api_key=None)
    try:
        with Stack(settings, parts=("temporal", "bucket")):
            yield settings
    finally:
        shutil.rmtree(home, ignore_errors=True)
        shutil.rmtree(settings.sockets, ignore_errors=True)


@pytest.fixture
async def temporal_client(services: Settings) -> Client:
    return await connect_engine(services)


@pytest.fixture(scope="session")
def bucket(services: Settings) -> Bucket:
    return Bucket(services)


@pytest.fixture
async def site(services: Settings, temporal_client: Client, bucket: Bucket) -> AsyncIterator[ApiSite]:
    async with api_site(services, temporal_client, bucket) as running:
        yield running
