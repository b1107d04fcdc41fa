"""What holds for every test, and the services that many share: real Temporal and a real S3 server, started once."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from temporalio.client import Client

from cli.stack.up import Stack
from foundation.engine import connect_engine
from foundation.settings import Settings
from storage.bucket import Bucket
from tests.api_site import ApiSite, api_site
from tests.loop_guard import LoopGuard
from tests.stack_settings import isolated_settings

# How long an example takes tells of the machine's load, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell makes what it starts in the background deaf to Ctrl-C, and so every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _temporary_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Of what is made in the temporary directory, the sockets of homes with long paths too, nothing stays."""
    # That one stays where it is: people look into it after a failure.
    tmp_path_factory.getbasetemp()
    directory = tempfile.mkdtemp(prefix="ty-")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", directory)
        patched.setattr(tempfile, "tempdir", directory)
        yield
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def loop_guard() -> Iterator[LoopGuard]:
    """The one guard of this process's event loops."""
    guard = LoopGuard()
    guard.start()
    yield guard
    guard.stop()


@pytest.fixture(autouse=True)
def loops_go_on(loop_guard: LoopGuard) -> Iterator[None]:
    """Fail a test in which an event loop stood still."""
    yield
    if stalls := loop_guard.take():
        pytest.fail("\n".join(map(str, stalls)), pytrace=False)


@pytest.fixture(autouse=True)
def _images_of_their_own(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only tests with machines use the images that this host is told to have: others make and remove some."""
    if "e2e" not in request.path.parts:
        monkeypatch.delenv("TASKYARD_IMAGE_DIR", raising=False)


@pytest.fixture(autouse=True)
def _no_wait_for_a_first_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the shared services nobody ever speaks of a host's room unless a test does."""
    if "services" in request.fixturenames:
        monkeypatch.setattr("api.runs.admission.FIRST_SECONDS", 0.0)


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
