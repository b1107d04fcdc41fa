"""``${NAME}`` in a run's MCP servers: the real Claude Code puts in what the guest has, from every source of secrets."""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from activities.agent.steps import _launch
from activities.machine.secrets import environment_block, resolve_all
from foundation.settings import Settings
from guest.contract import MCP_CONFIG
from tests.integration.activities.claude_code import bridge, claude
from tests.manifests import parse_json
from tests.stand_ins.vault_server import VaultServer
from worker.gateway.model_gateway import Gateway
from workflows.runs.requests import AgentRequest

MACHINE = "vm-00112233445566aa"
FIRST = "10000000-0000-4000-8000-000000000001"
ROOT = Path(__file__).parents[3]
VALUES = {"FROM_ENV": "env-4711 with $HOME and ${PATH}", "FROM_FILE": 'file-"4711"\nsecond', "FROM_VAULT": "vault-4711"}
# Tells what it was started with, and answers as little as a server may.
SERVER = """
import json, os, sys
names = ("FIRST", "SECOND", "THIRD", "WITH_DEFAULT", "SET_ALL_THE_SAME", "PARTS")
with open(sys.argv[1] + ".draft", "w") as file:
    json.dump({"args": sys.argv[2:], **{name: os.environ.get(name) for name in names}}, file)
os.rename(sys.argv[1] + ".draft", sys.argv[1])
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        version = asked.get("params", {}).get("protocolVersion", "2025-06-18")
        result = {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    with tempfile.TemporaryDirectory(prefix="ty-") as home, VaultServer(tokens={"t": ["*"]}) as vault:
        vault.stored[("secret", "team/mcp")] = {"token": VALUES["FROM_VAULT"]}
        monkeypatch.setenv("OF_WORKER", VALUES["FROM_ENV"])
        (Path(home) / "secrets").mkdir()
        (Path(home) / "secrets/mcp").write_text(VALUES["FROM_FILE"])
        scenarios = ROOT / "tests/scenarios"
        made = Settings(
            home=Path(home), anthropic_api_key=None, scenario=scenarios, vault_address=vault.url, vault_token="t"
        )
        record = made.machines / MACHINE / "machine.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        yield made


@asynccontextmanager
async def listening(heard: list[dict[str, str]]) -> AsyncIterator[str]:
    """A URL whose requests' heads are heard."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        heard.append(
            {"target": start.split()[1], **{k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}}
        )
        writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


async def test_references_are_put_in_by_claude_code(settings: Settings, tmp_path: Path) -> None:
    heard: list[dict[str, str]] = []
    told = tmp_path / "told.json"
    (tmp_path / "server.py").write_text(SERVER)
    async with listening(heard) as url:
        servers: dict[str, Any] = {
            "one": {
                "command": sys.executable,
                "args": [str(tmp_path / "server.py"), str(told), "--token=${FROM_VAULT}", "${UNSET:-default of args}"],
                "env": {
                    "FIRST": "${FROM_ENV}",
                    "SECOND": "${FROM_FILE}",
                    "THIRD": "${FROM_VAULT}",
                    "WITH_DEFAULT": "${UNSET:-the default}",
                    "SET_ALL_THE_SAME": "${FROM_VAULT:-the default}",
                    "PARTS": "a ${FROM_VAULT} b ${FROM_VAULT}",
                },
            },
            "two": {
                "type": "http",
                "url": "${SERVER_URL:-" + url + "}/mcp?key=${FROM_VAULT}",
                "headers": {"Authorization": "Bearer ${FROM_VAULT}"},
            },
        }
        manifest = parse_json(
            json.dumps(
                {
                    "metadata": {"name": "n"},
                    "repository": {"url": "https://git.example.org/a.git", "branch": "main"},
                    "claude": {"prompt": "Scenario: exit code", "mcp_config": {"mcpServers": servers}},
                    "secrets": [
                        {"name": "FROM_ENV", "source": "env", "key": "OF_WORKER"},
                        {"name": "FROM_FILE", "source": "file", "key": str(settings.home / "secrets/mcp")},
                        {"name": "FROM_VAULT", "source": "vault", "key": "team/mcp:token"},
                    ],
                }
            )
        )
        config = manifest.claude.mcp_config
        assert config is not None
        request = AgentRequest(task_id="t", machine_id=MACHINE, claude=manifest.claude, hang_timeout=60)  # type: ignore[arg-type]
        launch = _launch(request, "token", emulated=False)
        # What lies in the guest beside the values never holds them.
        assert launch.mcp_config == config
        place = tmp_path / "mcp.json"
        place.write_text(json.dumps(launch.mcp_config))
        options = [word.replace(MCP_CONFIG, str(place)) for word in launch.command if "mcp" in word]
        assert len(options) == 2
        block = environment_block(resolve_all(settings, manifest.guest_secrets())).split(b"\0")[:-1]
        given = dict(pair.decode().split("=", 1) for pair in block)
        assert given == VALUES

        (tmp_path / "work").mkdir()
        (tmp_path / "agent").mkdir()
        gateway = Gateway(settings)
        await gateway.start()
        async with (
            bridge(settings.sockets / "gateway.sock") as model,
            claude(model, gateway.token(MACHINE), tmp_path / "work", tmp_path / "agent", *options, **given) as run,
        ):
            await run.say("Scenario: error result", FIRST)
            run.close()
            await run.exit_code()
        await gateway.stop()

    assert json.loads(told.read_text()) == {
        "args": ["--token=vault-4711", "default of args"],
        "FIRST": VALUES["FROM_ENV"],
        "SECOND": VALUES["FROM_FILE"],
        "THIRD": "vault-4711",
        "WITH_DEFAULT": "the default",
        "SET_ALL_THE_SAME": "vault-4711",
        "PARTS": "a vault-4711 b vault-4711",
    }
    assert heard[0]["target"] == "/mcp?key=vault-4711"
    assert heard[0]["authorization"] == "Bearer vault-4711"
