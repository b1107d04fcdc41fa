"""Injected credentials in a real machine: its programs use a placeholder, its hosts get the value, it never has it."""

from __future__ import annotations

import asyncio
import base64
import json
import mmap
import shlex
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from temporalio.testing import ActivityEnvironment

from activities.machine.injection import PLACEHOLDER_PREFIX
from activities.machine.secrets import Secrets
from foundation.settings import Settings
from guest.contract import AGENT_USER, ENVIRONMENT
from machines.host import MachineHost, Reservation
from machines.images.store import find_image
from machines.paths import machine_paths
from storage.bucket import Bucket
from tests.e2e.conftest import CANARY as SITE_CANARY
from tests.e2e.conftest import Site, until
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from tests.stand_ins.tls_origin import Origin, tls_origin
from worker.egress.egress import Egress
from worker.egress.injection.injections import Injections
from workflows.runs.requests import SecretsRequest
from workflows.specs.wire import Injection, NetworkMode, NetworkPolicy, SecretReference

MACHINE = "vm-00000000000000e7"
ADDRESS = "127.0.4.7"
API, GIT, OTHER = "api.example.org", "git.example.org", "other.example.net"
CANARY, GIT_CANARY = "tok-canary5d07e1b2a94c8f36A7", "git-canary81c6f0d35b7e29a4Z9"

pytestmark = pytest.mark.timeout(600)


class Guest:
    """A machine with placeholders, the proxy and an origin behind it."""

    def __init__(self, settings: Settings, origin: Origin, egress: Egress) -> None:
        self.settings = settings
        self.origin = origin
        self.egress = egress
        self.host = MachineHost(settings)

    def start(self) -> None:
        deadline = datetime.now(UTC) + timedelta(hours=1)
        self.host.reserve(Reservation(MACHINE, "task-x", "run-x", 2, 2**30, 7 * 2**30, deadline))
        self.host.ensure_running(MACHINE, find_image(self.settings, "agentic-dev"), lambda _: None)
        self.egress.set_policy(MACHINE, NetworkPolicy(mode=NetworkMode.OUTBOUND, hosts=["*.example.org", OTHER]))
        port = self.origin.port
        secrets = [
            _secret("API_TOKEN", Injection(hosts=[f"{API}:{port}"])),
            _secret("GIT_TOKEN", Injection(hosts=[f"{GIT}:{port}"], format="Basic x-access-token:{}")),
        ]
        step = Secrets(self.settings, self.host, cast("Bucket", MemoryBucket())).inject_secrets
        ActivityEnvironment().run(step, SecretsRequest(machine_id=MACHINE, task_id=TASK.id, secrets=secrets))
        self.shell = self.host.connect(MACHINE)

    def says(self, command: str) -> tuple[int, str]:
        """Exit code and output of a command of the agent's user, with the run's secrets in its environment."""
        exported = f"while IFS= read -r -d '' pair; do export \"$pair\"; done <{ENVIRONMENT}; "
        words = f"PORT={self.origin.port} exec setpriv --reuid={AGENT_USER} --regid={AGENT_USER} --init-groups"
        inner = f"cd; {command}"
        script = f"{exported}{words} env HOME=/home/{AGENT_USER} bash -lc {shlex.quote(inner)}"
        done = self.shell.run(f"bash -c {shlex.quote(script)} 2>&1", check=False, timeout=120)
        return done.exit_code, done.stdout.decode(errors="replace")


def _secret(name: str, injection: Injection) -> SecretReference:
    return SecretReference(name=name, source="env", key=f"TASK_{name}", inject=injection)


def _resolve(_: str) -> Sequence[str]:
    return [ADDRESS]


@contextmanager
def _on_a_loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    home = tmp_path_factory.mktemp("injected")
    repositories = home / "repositories"
    bare = repositories / "small.git"
    subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(bare)], check=True)
    settings = Settings(
        home=home, image_dir=Settings().images, egress_allowed_hosts=[], egress_private_networks=["127.0.4.0/24"]
    )
    with pytest.MonkeyPatch.context() as environment, _on_a_loop() as loop:

        def run(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result(120)

        environment.setenv("TASK_API_TOKEN", CANARY)
        environment.setenv("TASK_GIT_TOKEN", GIT_CANARY)
        serving = tls_origin(home / "origin", ADDRESS, "*.example.org", ("h2", "http/1.1"))
        origin = run(serving.__aenter__())
        origin.repositories, origin.credentials = repositories, _basic(f"x-access-token:{GIT_CANARY}")
        environment.setenv("SSL_CERT_FILE", str(origin.authority))
        egress = Egress(settings, resolver=_resolve)
        run(egress.start())
        it = Guest(settings, origin, egress)
        try:
            it.start()
            yield it
        finally:
            it.host.destroy(MACHINE)
            run(egress.stop())
            run(serving.__aexit__(None, None, None))


def _basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


URL = f"https://{API}:$PORT/echo"
PYTHON = f"""import os, sys
from urllib.request import Request, urlopen
from pip._vendor import requests
url = f"https://{API}:{{os.environ['PORT']}}/echo"
headers = {{"Authorization": "token " + os.environ["API_TOKEN"]}}
"""
NODE = f"""const url = `https://{API}:${{process.env.PORT}}/echo`;
const headers = {{authorization: "token " + process.env.API_TOKEN}};
fetch(url, {{headers}}).then(answer => answer.text()).then(console.log);"""
OPENSSL = f"openssl s_client -quiet -verify_return_error -verify_hostname {API} -servername {API} -connect {API}:$PORT"
PROGRAMS = {
    "curl": (f"curl -sS {URL}", f"Bearer {CANARY}"),
    "curl with the placeholder": (f'curl -sS -H "Authorization: token $API_TOKEN" {URL}', f"token {CANARY}"),
    "curl, by the redirect": (f"curl -sS --noproxy '*' {URL}", f"Bearer {CANARY}"),
    "curl, user and password": (f'curl -sS -u "me:$API_TOKEN" {URL}', _basic(f"me:{CANARY}")),
    "python": (
        f"python3 -c {shlex.quote(PYTHON + 'print(urlopen(Request(url, headers=headers)).read().decode())')}",
        f"token {CANARY}",
    ),
    "requests": (
        f"python3 -c {shlex.quote(PYTHON + 'print(requests.get(url, headers=headers).text)')}",
        f"token {CANARY}",
    ),
    "node": (f"node -e {shlex.quote(NODE)}", f"token {CANARY}"),
    "openssl": (
        f"echo -en 'GET /echo HTTP/1.1\\nHost: {API}:'$PORT'\\nConnection: close\\n\\n' | {OPENSSL} 2>/dev/null",
        f"Bearer {CANARY}",
    ),
}


@pytest.mark.parametrize("program", PROGRAMS)
def test_programs_use_a_secret_that_they_do_not_have(guest: Guest, program: str) -> None:
    command, header = PROGRAMS[program]
    before = len(guest.origin.asked)
    code, output = guest.says(command)
    assert code == 0, output
    asked = guest.origin.asked[before:]
    assert [each["headers"]["authorization"] for each in asked] == [header], output
    # What the host repeats of it comes as the placeholder.
    assert CANARY not in output
    assert json.loads(output[output.index("{") :].splitlines()[0])["path"] == "/echo"


def test_git_clones_and_pushes_with_it(guest: Guest) -> None:
    url = f"https://{GIT}:$PORT/git/small.git"
    identity = "-c user.name=agent -c user.email=agent@localhost"
    with_placeholder = f"https://x-access-token:$GIT_TOKEN@{GIT}:$PORT/git/small.git"
    code, output = guest.says(
        f"set -e; rm -rf one two; git clone -q {url} one 2>&1; cd one; echo first >file; git add file; "
        f"git {identity} commit -qm first; git push -q origin HEAD:main; cd ..; "
        f"git clone -q {with_placeholder} two; cd two; echo second >>file; git {identity} commit -qam second; "
        "git push -q origin HEAD:main; git log --format=%s; cat .git/config"
    )
    assert code == 0, output
    assert "second\nfirst\n" in output
    assert PLACEHOLDER_PREFIX in output
    log = ["git", "-C", str(guest.origin.repositories / "small.git"), "log", "--format=%s", "main"]
    assert subprocess.run(log, capture_output=True, text=True, check=True).stdout == "second\nfirst\n"
    assert GIT_CANARY not in output


def test_the_placeholder_opens_nothing_else(guest: Guest) -> None:
    before = len(guest.origin.asked)
    refused = {
        "in the address": f"curl -sS -w '%{{http_code}}' {URL}?key=$API_TOKEN",
        "in another header": f'curl -sS -w "%{{http_code}}" -H "X-Key: $API_TOKEN" {URL}',
        "in the body": f'curl -sS -w "%{{http_code}}" -d "{{$API_TOKEN}}" {URL}',
        "of the other secret": f'curl -sS -w "%{{http_code}}" -H "Authorization: Bearer $GIT_TOKEN" {URL}',
        "another credential": f'curl -sS -w "%{{http_code}}" -H "Authorization: Bearer mine" {URL}',
    }
    for what, command in refused.items():
        _, output = guest.says(command)
        assert f"blocked by the task's network policy: {API} (" in output, what
        assert output.endswith("403"), what
    assert not any(each["complete"] for each in guest.origin.asked[before:])
    # Another host's TLS is not ended, and its certificate is its own: nobody of this machine trusts it.
    code, output = guest.says(f"curl -sS https://{OTHER}:$PORT/")
    assert (code, "certificate" in output) == (60, True), output


def test_the_values_are_nowhere_in_the_guest(guest: Guest) -> None:
    # Everything that was done with them before this, and once more with what stays in memory.
    guest.says(f"setsid bash -c 'held=$(curl -sS {URL}); sleep 1000' </dev/null >/dev/null 2>&1 & sleep 2")
    code, output = guest.says("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'")
    assert code in {0, 1}
    assert PLACEHOLDER_PREFIX in output
    assert CANARY not in output
    paths = machine_paths(guest.settings, MACHINE)
    guest.host.pause(MACHINE)
    try:
        memory = _occurrences(paths.memory)
        assert memory["placeholder"] > 0
        for path in [paths.memory, *paths.directory.iterdir()]:
            if path.is_file():
                counts = _occurrences(path)
                assert (path.name, counts["value"]) == (path.name, 0)
        arguments = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
        assert CANARY not in arguments
    finally:
        guest.host.resume(MACHINE)

    # Last, for what is looked for comes into the guest with it. The disks were read whole, as their host sees them.
    found = guest.shell.run(
        f"grep -rIl -e {CANARY} -e {GIT_CANARY} /etc /home /root /run /tmp /var 2>/dev/null; "
        f"grep -qa {PLACEHOLDER_PREFIX} {ENVIRONMENT} && echo found",
        check=False,
        timeout=300,
    )
    assert found.stdout.decode().split() == ["found"]


def test_a_worker_that_starts_again_goes_on_with_the_same_placeholders(guest: Guest) -> None:
    knows = Injections(guest.settings, MACHINE, ssl.create_default_context())
    assert {secret.name for secret in knows.all()} == {"API_TOKEN", "GIT_TOKEN"}
    code, output = guest.says(f"curl -sS {URL}")
    assert code == 0, output


def _occurrences(path: Path) -> dict[str, int]:
    """How often values stand in the file, also as base64 writes them, and placeholders."""
    values = [
        CANARY.encode(),
        GIT_CANARY.encode(),
        *(base64.b64encode(f"x-access-token:{GIT_CANARY}".encode())[24:-4],),
    ]
    if path.stat().st_size == 0:
        return {"value": 0, "placeholder": 0}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {
            "value": sum(data.find(value) >= 0 for value in values),
            "placeholder": int(data.find(PLACEHOLDER_PREFIX.encode()) >= 0),
        }


# --- a whole run

# A server of the Model Context Protocol with one tool, which asks the host with what it was given in its environment.
MCP_SERVER = """
import http.client, json, os, sys

def ask():
    connection = http.client.HTTPSConnection("10.0.2.101", 3128)
    host, _, port = os.environ["API"].partition(":")
    connection.set_tunnel(host, int(port))
    connection.request("GET", "/mcp", headers={"Authorization": "token " + os.environ["KEY"]})
    return f"{connection.getresponse().status} for {os.environ['KEY']}"

for line in sys.stdin:
    asked = json.loads(line)
    match asked.get("method"):
        case "initialize":
            server = {"name": "host", "version": "1"}
            version = asked["params"]["protocolVersion"]
            result = {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": server}
        case "tools/list":
            result = {"tools": [{"name": "ask", "description": "Ask the host.", "inputSchema": {"type": "object"}}]}
        case "tools/call":
            result = {"content": [{"type": "text", "text": ask()}]}
        case _:
            result = {}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.fixture
def local_origin(site: Site) -> Iterator[Origin]:
    """An origin at the name that every host has, which the stack's worker trusts."""
    with _on_a_loop() as loop:
        serving = tls_origin(site.origin, "127.0.0.1", "localhost", ("h2", "http/1.1"))
        yield asyncio.run_coroutine_threadsafe(serving.__aenter__(), loop).result(60)
        asyncio.run_coroutine_threadsafe(serving.__aexit__(None, None, None), loop).result(60)


def test_a_run_uses_a_secret_that_it_never_holds(site: Site, local_origin: Origin, tmp_path: Path) -> None:
    api = f"localhost:{local_origin.port}"
    server = {"command": "python3", "args": ["-c", MCP_SERVER], "env": {"KEY": "${API_TOKEN}", "API": api}}
    inject = {"hosts": [api]}
    task_id = site.submit(
        "injected",
        claude={"mcp_config": {"mcpServers": {"host": server}}, "prompt": f"Scenario: injected. API={api}"},
        vm={"network_mode": "outbound", "allowed_hosts": [api]},
        secrets=[
            {"name": "API_TOKEN", "source": "env", "key": "CANARY", "inject": inject},
            {"name": "API", "source": "file", "key": str(site.secret_file("api", api))},
        ],
        lifecycle={"artifact_patterns": ["out/*"]},
    )
    seen: set[str] = set()

    def ended() -> bool:
        for process in psutil.process_iter(["cmdline"]):
            if SITE_CANARY in (words := " ".join(process.info["cmdline"] or [])):
                seen.add(words)
        return site.client.get(task_id).terminal

    until(ended, 300)
    task = site.client.get(task_id)
    assert (task.state, task.error, seen) == ("completed", None, set())

    # The host has received the value, from the command and from the server; the refused request did not reach it.
    got = [(each["path"], each["headers"]["authorization"]) for each in local_origin.asked]
    assert got == [("/echo", f"Bearer {SITE_CANARY}"), ("/mcp", f"token {SITE_CANARY}")]
    log = "".join(line.data or "" for line in site.client.logs(task_id))
    assert "answered 200" in log
    assert "answered 403" in log
    assert "the placeholder of secret API_TOKEN stands in" in log
    token = site.artifact(task_id, "out/token.txt", tmp_path).read_text().removeprefix("token=").strip()
    assert token.startswith(PLACEHOLDER_PREFIX)
    assert f"200 for {token}" in log
    assert token in site.artifact(task_id, "out/answer.json", tmp_path).read_text()
    # Nothing that is left of it anywhere has the value, and nothing was there to be taken out.
    assert "[redacted:API_TOKEN]" not in log
    for name in (artifact.name for artifact in site.client.artifacts(task_id)):
        assert SITE_CANARY.encode() not in site.artifact(task_id, name, tmp_path).read_bytes()
    temporal = [Path(sys.executable).parent / "temporal", "--address", site.settings.temporal_target]
    shown = [*temporal, "workflow", "show", "-o", "json", "-w", f"task-{task_id}"]
    assert SITE_CANARY not in subprocess.run(shown, capture_output=True, check=True, text=True).stdout
    grep = ["grep", "--recursive", "--text", "--files-with-matches", SITE_CANARY, str(site.settings.home)]
    assert subprocess.run(grep, capture_output=True, text=True, check=False).stdout == ""
