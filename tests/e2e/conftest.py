"""A whole stack for the end-to-end tests: real Temporal, real S3 server, real machines, real Claude Code."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from activities.machine.authority import ensure_authority
from cli.stack.up import Stack
from client import Task, TaskClient
from examples.hello.serve import serve
from foundation.git.hosts import CredentialReference
from foundation.settings import Settings
from machines.host import MachineHost
from machines.images.store import find_image
from tests.e2e.network_site import Guest, addresses, guest_on_a_network, host_authorities
from tests.stack_settings import free_ports, isolated_settings
from tests.stand_ins.git_host import GitHostStandIn
from worker.egress.registries import registry_rules

SCENARIOS = Path(__file__).parent.parent / "scenarios"
PRICES = SCENARIOS.parent / "prices.yaml"
SMALL = {"cpus": 2, "memory": "1G", "disk": "6G"}
CANARY = "canary-7c1f0e9a2b"
# How long the longest run that is begun ahead may take.
BEGUN_SECONDS_MOST = 1200
GITHUB_TOKEN = "token-5b1e77c04d"
GIT_HOST_TOKEN = "token-e07c3fd19a"
_DEBIANS = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True)
class Site:
    """A running stack, a repository it can clone, and a client of its API."""

    stack: Stack
    settings: Settings
    client: TaskClient
    repository: str
    #: Where an origin at ``localhost`` is to have its certificates, whose authority the worker trusts.
    origin: Path
    #: The git host of the installation, whose private repository is ``org/repo``.
    git_host: GitHostStandIn
    #: Runs that tests with the mark ``ahead`` have begun and not yet looked at: ids by name.
    begun: dict[str, str] = field(default_factory=dict)

    def secret_file(self, name: str, text: str) -> Path:
        """A file that a secret may name."""
        path = self.settings.home / "secrets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    def manifest(self, scenario: str, **parts: dict[str, Any]) -> dict[str, Any]:
        """A manifest for a small machine whose prompt chooses the scripted model's scenario."""
        data: dict[str, Any] = {
            "version": "1",
            "kind": "Task",
            "metadata": {"name": scenario},
            "repository": {"url": self.repository, "branch": "main"},
            "claude": {"prompt": f"Scenario: {scenario}"},
            "vm": SMALL,
            "lifecycle": {"timeout": "10m"},
        }
        for part, fields in parts.items():
            data[part] = {**data.get(part, {}), **fields} if isinstance(fields, dict) else fields
        return data

    def run(self, scenario: str, **parts: dict[str, Any]) -> Task:
        """Submit and wait for the end."""
        return self.client.wait(self.submit(scenario, **parts), poll_seconds=0.5)

    def submit(self, scenario: str, **parts: dict[str, Any]) -> str:
        """Submit; gives the task id."""
        return self.client.submit(self.manifest(scenario, **parts))

    def artifact(self, task_id: str, name: str, into: Path) -> Path:
        target = into / name.replace("/", "_")
        self.client.download(task_id, name, target)
        return target


@dataclass(frozen=True)
class Entered:
    """A run for whoever enters machines: its agent has answered and waits for messages, so that the guest is idle."""

    site: Site
    id: str
    machine: str

    @property
    def url(self) -> str:
        """Of the run in the API; what is below it is asked of its machine."""
        return f"http://127.0.0.1:{self.site.settings.api_port}/api/v1/tasks/{self.id}"

    @property
    def ws_url(self) -> str:
        """The same for WebSockets."""
        return self.url.replace("http", "ws", 1)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """The events of one type in the run's log, once it has one."""

        def found() -> list[dict[str, Any]]:
            return [
                line.event for line in self.site.client.logs(self.id) if line.stream == "event" and line.type == kind
            ]

        return list(until(found))


def until(condition: Callable[[], Any], seconds: float = 60.0, every: float = 0.5) -> Any:
    """What the condition gives once it gives something; fails the test when it does not in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if held := condition():
            return held
        time.sleep(every)
    pytest.fail(f"did not come true within {seconds:.0f} s: {condition}")


def processes_of(home: Path) -> list[str]:
    """Command lines of every process that names the home directory."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or [])
        if str(home) in words and process.pid != os.getpid():
            found.append(words)
    return found


def small_repository(directory: Path) -> Path:
    """A bare repository with a few files and three branches."""
    work, bare = directory / "work", directory / "small.git"
    work.mkdir(parents=True)
    identity = ["-c", "user.name=Test", "-c", "user.email=test@localhost"]
    (work / "README").write_text("a small repository\n")
    (work / "data.bin").write_bytes(bytes(range(256)))
    commit = [*identity, "commit", "-qm", "first"]
    branches = (["branch", name] for name in ("other", "production"))
    for command in (["init", "-qb", "main"], ["add", "-A"], commit, *branches):
        subprocess.run(["git", "-C", str(work), *command], check=True)
    subprocess.run(["git", "clone", "-q", "--bare", str(work), str(bare)], check=True)
    return bare


@contextmanager
def trusting(directory: Path, pem: str) -> Iterator[None]:
    """Have processes that are started meanwhile trust an authority beside those that this host trusts."""
    places = (os.environ.get("SSL_CERT_FILE"), ssl.get_default_verify_paths().cafile, _DEBIANS)
    own = next((Path(place) for place in places if place and Path(place).exists()), None)
    bundle = directory / "trusted.pem"
    bundle.write_text((own.read_text() if own else "") + pem)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SSL_CERT_FILE", str(bundle))
        yield


def opened_on(git_host: GitHostStandIn, settings: Settings) -> Settings:
    """The settings with a git host, for which the operator has a token."""
    host = git_host.host()
    host.credentials = CredentialReference(source="env", key="GIT_HOST_TOKEN")
    settings.git_hosts = [host]
    return settings


@pytest.fixture(scope="session")
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """One stack for all tests of the session; nothing of it is left afterwards."""
    home = Path(tempfile.mkdtemp(prefix="ty-e2e-"))
    os.environ |= {"CANARY": CANARY, "GITHUB_TOKEN": GITHUB_TOKEN, "GIT_HOST_TOKEN": GIT_HOST_TOKEN}
    own, authorities = host_authorities(), home / "authorities.pem"
    authorities.write_bytes(own)
    settings = isolated_settings(
        home,
        image_dir=Settings().images,
        # Most of what is begun ahead waits, and holds nobody up.
        cpu_overcommit=8,
        scenario=SCENARIOS,
        price_table=PRICES,
        default_vm=SMALL,
        anthropic_api_key=None,
        sandbox_domain="sandbox.localhost",
        # For servers of other homes; those of this one need no address.
        host_listen=f"127.0.0.1:{free_ports(1)}",
        # Origins of these tests are on loopback, where runs reach what their rules name. A host's registries may be on
        # its own network, behind an authority of its own.
        egress_private_networks=["127.0.0.1/32", *addresses(rule.host for rule in registry_rules(Settings()))],
        guest_certificates=authorities if own else None,
    )
    find_image(settings, "agentic-dev")
    origin = home / "tls-origin"
    origin.mkdir()
    with (
        trusting(home, ensure_authority(origin, ["localhost"]).pem),
        serve(small_repository(home / "origin")) as url,
        GitHostStandIn("gitea", home / "git-host", GIT_HOST_TOKEN) as git_host,
        Stack(opened_on(git_host, settings)) as stack,
        TaskClient(f"http://127.0.0.1:{settings.api_port}") as client,
    ):
        running = Site(stack, settings, client, url, origin, git_host)
        for mark in _ahead(request.session.items):
            running.begun.update(mark.kwargs["begin"](running))
        yield running
    host = MachineHost(settings)
    unseen = {f"task-{task_id}" for task_id in running.begun.values()}
    machines = [record.id for record in host.records() if record.owner_workflow not in unseen]
    for record in host.records():
        host.destroy(record.id)
    left = processes_of(home)
    shutil.rmtree(home)
    shutil.rmtree(settings.sockets, ignore_errors=True)
    assert (machines, left) == ([], [])


@pytest.fixture(scope="session", autouse=True)
def _begin_ahead(request: pytest.FixtureRequest) -> None:
    """Begin what is to be begun ahead before the first test, whether that one needs the stack or not."""
    if _ahead(request.session.items):
        request.getfixturevalue("site")


def _ahead(items: Sequence[pytest.Item]) -> list[pytest.Mark]:
    return [mark for item in items for mark in item.iter_markers("ahead")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What was begun ahead is looked at when all else is done. Before come those who end parts of the stack."""

    def place(item: pytest.Item) -> int:
        return 2 if _ahead([item]) else "begun_ended" in getattr(item, "fixturenames", ())

    items.sort(key=place)
    for item in items:
        mark = item.get_closest_marker("timeout")
        if place(item) == 1 and mark is not None:
            # What it waits for before has a limit of its own.
            item.add_marker(pytest.mark.timeout(*mark.args, func_only=True), append=False)


@pytest.fixture(scope="session")
def begun_ended(site: Site) -> Site:
    """The stack once what was begun ahead has ended: for tests that do something to it which is not meant for that."""
    until(lambda: all(site.client.get(task_id).terminal for task_id in site.begun.values()), BEGUN_SECONDS_MOST)
    return site


@pytest.fixture(scope="session")
def entered(begun_ended: Site) -> Iterator[Entered]:
    """One run and its machine for all tests of the way into a machine. They leave it as they have found it."""
    site = begun_ended
    lasting = {"timeout": "2h", "hang_timeout": "2h"}
    task_id = site.submit("open session", claude={"headless": False}, lifecycle=lasting)
    until(lambda: any("Answer 1." in (line.data or "") for line in site.client.logs(task_id)), 300)
    machine = site.client.get(task_id).vm_name
    assert machine is not None
    yield Entered(site, task_id, machine)
    site.client.cancel(task_id, "the tests have ended", force=True)
    site.client.wait(task_id, poll_seconds=0.5, timeout_seconds=120)


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """One machine and its proxy for all tests of what a guest may reach."""
    directory = tmp_path_factory.mktemp("network")
    with guest_on_a_network(directory, small_repository(directory / "repository")) as running:
        yield running
