"""The API server over a machine that is an SSH server, with programs on its ports."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx

from api.app import DIALECTS, Service, _make_services
from api.http.serving import listening, make_server
from tests.stack_settings import isolated_settings
from tests.stand_ins.host_site import MACHINE, HostSite, host_site
from tests.stand_ins.ports.guest import SshGuest
from tests.waiting import until

TASK = "fix.Login_2"
DOMAIN = "sandbox.localhost"


class PortSite:
    """The API server over a machine."""

    def __init__(self, host: HostSite, api_port: int) -> None:
        self.host = host
        self.port = api_port
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{api_port}", timeout=30)

    def path(self, port: int, target: str = "/") -> str:
        return f"/api/v1/tasks/{TASK}/ports/{port}{target}"

    def name(self, port: int) -> str:
        return f"{port}-fix--2e--4cogin--5f2.{DOMAIN}:{self.port}"

    async def named(self, port: int, method: str, target: str, **request: Any) -> httpx.Response:
        headers = {"Host": self.name(port), **request.pop("headers", {})}
        return await self.http.request(method, target, headers=headers, **request)


@asynccontextmanager
async def port_site(directory: Path) -> AsyncIterator[PortSite]:
    settings = isolated_settings(directory / "home", sandbox_domain=DOMAIN)
    with SshGuest(directory) as guest:
        async with host_site(settings) as host:
            host.machines.shells[MACHINE] = guest.shell
            machines: Any = SimpleNamespace(finder=lambda task_id: host.found() if task_id == TASK else None)
            services = dataclasses.replace(_make_services(settings), hosts=host.hosts, machines=machines)
            server = make_server(Service(services, DIALECTS))
            server.config.timeout_graceful_shutdown = 1
            server.config.lifespan = "off"
            serving = asyncio.create_task(server.serve(sockets=listening(settings)))
            await until(lambda: server.started, "the API to start")
            made = PortSite(host, settings.api_port)
            yield made
            await made.http.aclose()
            server.should_exit = True
            await serving
