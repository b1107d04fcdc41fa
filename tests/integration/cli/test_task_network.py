"""`sandbox task network`: what a run's machine may reach, shown and changed from a terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.api_site import ApiSite
from tests.integration.cli.test_task import Sandbox
from workflows.runs.messages import HostUse, NetworkUse
from workflows.runs.requests import AgentResult

# A name as no resolver gives it, and as a process of another version might.
HOSTILE = "b\x1b[31m.example.org"
USE = NetworkUse(
    allowed=12,
    blocked=2,
    hosts=[
        HostUse(host="a.example.org", port=443, allowed=12, received_bytes=2048),
        HostUse(host=HOSTILE, port=53, blocked=2, reason="no rule names it"),
    ],
)


@pytest.fixture
def sandbox(site: ApiSite, tmp_path: Path) -> Sandbox:
    return Sandbox(site.url, tmp_path)


async def test_a_network_is_shown_and_changed(site: ApiSite, sandbox: Sandbox) -> None:
    site.steps.agent_result = AgentResult(exit_code=0, result="done", network=USE)
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        shown = await sandbox("task", "network", task_id)
        assert shown.out.splitlines() == ["Network   isolated", "In force  yes"]
        changed = await sandbox("task", "network", task_id, "--allow", "a.example.org", "--allow", "*.example.net:443")
        assert changed.code == 0
        assert "allow opens nothing: the mode is 'isolated'" in changed.err
        changed = await sandbox("task", "network", task_id, "--mode", "outbound", "--remove", "a.example.org", "--json")
        assert json.loads(changed.out)["policy"] == {"mode": "outbound", "hosts": ["*.example.net:443"]}
        assert (await sandbox("task", "network", task_id, "-o", "name")).out.split() == ["*.example.net:443"]
        for arguments, code, words in (
            (("--remove", "a.example.net"), 3, "what allows it is '*.example.net:443'"),
            (("--allow", "https://example.org"), 1, "allow[0]: is a URL"),
            (("--mode", "open"), 1, "mode"),
            (("--allow",), 2, "requires an argument"),
        ):
            refused = await sandbox("task", "network", task_id, *arguments)
            assert (refused.code, refused.out) == (code, ""), refused
            assert words in refused.err
        steps.agent_over.set()
        await site.until_state(task_id, "completed")
    status = await sandbox("task", "status", task_id)
    assert "outbound, 1 host; 12 connections let through, 2 refused" in status.out
    table = (await sandbox("task", "network", task_id)).out.splitlines()
    assert table[4].split() == ["HOST", "PORT", "LET", "THROUGH", "REFUSED", "SENT", "RECEIVED", "WHY"]
    assert table[5].split()[:4] == ["a.example.org", "443", "12", "0"]
    assert "\x1b" not in "".join(table)
    assert table[6].endswith("no rule names it")
