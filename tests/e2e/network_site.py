"""A real machine with the real proxy of its host, and servers behind both, for all tests of what a guest may reach."""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import socket
import ssl
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from activities.machine.trust import trust
from foundation.settings import Settings
from machines.host import MachineHost, Reservation
from machines.images.store import find_image
from tests.escapes.attempts import read_table
from tests.escapes.origin import PLACES
from tests.stand_ins.origins import ADDRESS, Origins, origins
from worker.egress.decisions import Decision
from worker.egress.egress import Egress
from worker.egress.registries import registry_rules
from workflows.specs.hosts import HostRule
from workflows.specs.wire import NetworkMode, NetworkPolicy

GIB = 2**30
ALLOWED, OTHER = "origin.example.org", "other.example.org"
POLICY = NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=[ALLOWED])


class Guest:
    """A machine, the proxy of its host, and what both lead to."""

    def __init__(self, settings: Settings, egress: Egress, servers: Origins, loop: asyncio.AbstractEventLoop) -> None:
        self.settings = settings
        self.egress = egress
        self.origins = servers
        #: On which the proxy runs.
        self.loop = loop
        self.host = MachineHost(settings)
        self.id = f"vm-{secrets.token_hex(8)}"
        deadline = datetime.now(UTC) + timedelta(hours=1)
        self.host.reserve(Reservation(self.id, "task-x", "run-x", 2, GIB, 6 * GIB, deadline))
        self.host.ensure_running(self.id, find_image(settings, "agentic-dev"), lambda _: None)
        self.shell = self.host.connect(self.id)
        #: Whether this host reaches the package registries that it is set to use.
        self.has_registries = False
        self._told: list[Decision] = []

    def as_root(self, command: str, data: bytes = b"") -> str:
        """What a command of bash prints that root runs."""
        return self._said(f"timeout 170 bash -c {shlex.quote(command)}", data)

    def as_agent(self, command: str) -> str:
        """What a command prints that runs with the user and the environment of the agent's session."""
        path = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        agent = "setpriv --reuid=agent --regid=agent --init-groups timeout 170 bash -c"
        return self._said(
            f"env -i HOME=/home/agent PATH={path} $(cat /etc/environment) {agent} {shlex.quote('cd; ' + command)}"
        )

    def decisions(self) -> list[Decision]:
        """All that the proxy has told of this guest so far."""
        self._told += self.egress.drain(self.id, last=True)
        return list(self._told)

    def _said(self, command: str, data: bytes = b"") -> str:
        done = self.shell.run(command, input=data, check=False, timeout=200)
        return (done.stdout + done.stderr).decode(errors="replace")


def look_up(name: str) -> Sequence[str]:
    if known := {ALLOWED: [ADDRESS], **read_table(**PLACES, port="1").names}.get(name):
        return known
    if name.endswith(".example.org"):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return [str(place[0]) for *_, place in socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_STREAM)]


@contextmanager
def serving(egress: Egress) -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(egress.start(), loop).result(30)
    try:
        yield loop
    finally:
        asyncio.run_coroutine_threadsafe(egress.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def guest_on_a_network(directory: Path, repository: Path) -> Iterator[Guest]:
    """A guest in outbound mode, whose policy names ALLOWED, and whose operator the package registries of this host."""
    table = read_table(**PLACES, port="1")
    registries = registry_rules(Settings())
    settings = Settings(
        home=directory / "home",
        image_dir=Settings().images,
        use_snapshots=False,
        # Where a host's registries are of its own network, they are reached all the same.
        egress_private_networks=["127.0.4.0/24", *addresses({rule.host for rule in registries})],
        egress_denied_hosts=table.denied,
    )
    settings.make_home()
    egress = Egress(settings, resolver=look_up)
    with origins(directory, [ALLOWED, OTHER], repository) as servers, serving(egress) as loop:
        running = Guest(settings, egress, servers, loop)
        try:
            egress.set_policy(running.id, POLICY)
            trust(running.shell, servers.authority + host_authorities())
            running.has_registries = all(map(answers, registries))
            yield running
        finally:
            running.host.destroy(running.id)


def host_authorities() -> bytes:
    """Those that this machine trusts, of which one may stand between it and its package registries."""
    path = ssl.get_default_verify_paths().cafile or os.environ.get("SSL_CERT_FILE")
    return Path(path).read_bytes() if path else b""


def addresses(hosts: Iterable[str]) -> list[str]:
    found = set()
    for host in hosts:
        with suppress(OSError):
            found |= {f"{address}/32" for address in look_up(host)}
    return sorted(found)


def answers(rule: HostRule) -> bool:
    with suppress(OSError), socket.create_connection((rule.host, rule.port), 5):
        return True
    return False
