"""The log of a run as its host tells it, which followers in this server prefer to the bucket."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from api.machines.hosts import Hosts
from api.runs.machine import RunMachines
from foundation.service.paths import log_path
from storage.follower import LiveNews
from storage.layout import Place
from storage.live.wire import heard


class HostedLogs:
    """Where each run's host tells of its log. For the event loop alone."""

    def __init__(self, machines: RunMachines, hosts: Hosts) -> None:
        self._machines = machines
        self._hosts = hosts

    async def listen(self, place: Place, after_id: int) -> AsyncGenerator[LiveNews]:
        """As ``storage.follower.LiveSource`` says. Raises MachineUnavailable for a run that is on no host now."""
        subject = place.prefix.rstrip("/")
        host = (await self._machines.of(place.id)).host
        params = {"after": str(after_id)}
        async with (
            self._hosts.request(host, subject, "log", "GET", log_path(subject), params=params) as response,
            aclosing(heard(response.aiter_raw())) as coming,
        ):
            async for news in coming:
                yield news
