"""The way to a real machine through its host's service: there, away for a while, and there again as it was."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from api.app import create_app
from api.deps import Services
from api.machines.hosts import MachineReference
from foundation.errors import HostUnreachable, StaleEpoch
from machines.host import MachineHost
from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(300)

_T = TypeVar("_T")


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
