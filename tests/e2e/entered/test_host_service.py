"""The way to a real machine through its host's service: there, away for a while, and there again as it was."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from api.app import create_app
from api.deps import Services
from api.machines.hosts import MachineReference
from client import TaskClient
from foundation.errors import HostUnreachable, ServiceUnavailable, StaleEpoch
from machines.host import MachineHost
from tests.e2e.conftest import Entered, until
from tests.stack_settings import free_ports

pytestmark = pytest.mark.timeout(300)

_T = TypeVar("_T")
SANDBOX = str(Path(__file__).parents[3] / ".venv/bin/sandbox")


def asked(entered: Entered, question: Callable[[Services], Awaitable[_T]]) -> _T:
    """What another server of the same installation is told."""

    async def ask() -> _T:
        services = create_app(entered.site.settings).services
        try:
            return await question(services)
        finally:
            await services.hosts.close()

    return asyncio.run(ask())


def test_a_worker_that_is_killed_makes_the_host_unreachable_and_no_run_dead(entered: Entered) -> None:
    async def confirmed(services: Services) -> MachineReference:
        return await services.hosts.confirmed(services.machines.finder(entered.id))

    before = asked(entered, confirmed)
    record = MachineHost(entered.site.settings).record(entered.machine)
    assert (before.id, before.epoch) == (entered.machine, record.epoch)
    assert record.epoch

    stack = entered.site.stack
    worker = stack.pids()["worker"]
    # One that is stopped takes connections and says nothing; one that is killed takes none.
    os.kill(worker, signal.SIGSTOP)
    with pytest.raises(HostUnreachable):
        asked(entered, confirmed)
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(HostUnreachable):
        asked(entered, confirmed)
    assert entered.site.client.get(entered.id).state == "running"

    def again() -> MachineReference | None:
        try:
            return asked(entered, confirmed)
        except HostUnreachable:
            return None

    assert until(again) == before
    assert stack.pids()["worker"] != worker


def test_another_start_of_the_machine_is_another_machine(entered: Entered) -> None:
    async def earlier(services: Services) -> None:
        now = await services.machines.of(entered.id)

        async def find(_: bool) -> MachineReference:
            return MachineReference(now.host, now.id, "0123456789abcdef")

        await services.hosts.confirmed(find)

    with pytest.raises(StaleEpoch):
        asked(entered, earlier)


def test_a_server_of_another_host_enters_over_tls(entered: Entered, tmp_path: Path) -> None:
    """It shares the bucket, the engine and the key, and finds by the bucket where the machine's host answers."""
    settings = entered.site.settings
    access, secret = settings.s3_credentials()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")} | {
        "TASKYARD_HOME": str(tmp_path),
        "TASKYARD_HOST_NAME": "another-host",
        "TASKYARD_HOST_KEY": settings.service_key().decode(),
        "TASKYARD_TEMPORAL_ADDRESS": settings.temporal_target,
        "TASKYARD_S3_ENDPOINT": settings.s3_target,
        "TASKYARD_S3_ACCESS_KEY": access,
        "TASKYARD_S3_SECRET_KEY": secret,
        "TASKYARD_API_PORT": str(port := free_ports(2)),
        "TASKYARD_WS_PORT": str(port + 1),
    }
    log = tmp_path / "server.log"
    with (
        log.open("wb") as output,
        subprocess.Popen([SANDBOX, "server"], env=environment, stdout=output, stderr=output) as server,
        TaskClient(f"http://127.0.0.1:{port}") as client,
    ):
        try:

            def answers() -> bool:
                assert server.poll() is None, log.read_text()
                try:
                    return client.get(entered.id).state == "running"
                except ServiceUnavailable:
                    return False

            until(answers)
            done = client.exec(entered.id, shell="cat; id -un", stdin=b"over TLS\n" * 10_000)
            assert (done.exit_code, done.stdout) == (0, b"over TLS\n" * 10_000 + b"agent\n")
            assert "agent" in {process.key for process in client.processes(entered.id)}
        finally:
            server.terminate()
            server.wait(30)
