"""The manifests of the quick reference as they are printed, but for the repository's URL, each in a real machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from client import Task
from foundation.errors import InsufficientResources
from foundation.settings import Settings
from machines.host import MachineHost
from tests.e2e.conftest import GITHUB_TOKEN, Site
from tests.e2e.network_site import answers
from tests.seed_pages.replay import PAGES
from worker.egress.registries import registry_rules

REGISTRIES = registry_rules(Settings())

pytestmark = pytest.mark.timeout(900)


def submit(site: Site, page: str) -> str:
    """The id of a run of a page's manifest."""
    text = (PAGES / page).read_text()
    return site.client.submit(text.replace(yaml.safe_load(text)["repository"]["url"], site.repository))


def ended(site: Site, task_id: str) -> tuple[Task, list[dict[str, Any]], list[dict[str, Any]]]:
    """A run at its end, the events of Claude Code, and those of the log."""
    task = site.client.wait(task_id, poll_seconds=0.5)
    lines = [line for line in site.client.logs(task.id) if line.id is not None]
    said = [json.loads(line.data) for line in lines if line.stream == "stdout" and line.data]
    return task, said, [line.event for line in lines if line.data is None]


def results(said: list[dict[str, Any]]) -> list[str]:
    """What the tools answered."""
    blocks = [block for each in said if each["type"] == "user" for block in each["message"]["content"]]
    return [json.dumps(block) for block in blocks if block["type"] == "tool_result"]


def begin_mcp(site: Site) -> dict[str, str]:
    """Its guest fetches and starts programs for minutes, on one of its processors: where there is room, ahead."""
    ahead = all(map(answers, REGISTRIES)) and MachineHost(site.settings).room()[0].memory_bytes > 20 * 2**30
    return {"mcp.yaml": submit(site, "mcp.yaml")} if ahead else {}


@pytest.mark.skipif(not all(map(answers, REGISTRIES)), reason="this host does not reach its package registries")
@pytest.mark.ahead(begin=begin_mcp)
def test_the_task_with_an_mcp_server_that_npx_fetches(site: Site, tmp_path: Path) -> None:
    task, said, events = ended(site, site.begun.pop("mcp.yaml", None) or submit(site, "mcp.yaml"))
    assert (task.state, task.error) == ("completed", None)
    (begin,) = [each for each in said if each["type"] == "system" and each.get("subtype") == "init"]
    assert [server["name"] for server in begin["mcp_servers"]] == ["github"]
    (done,) = results(said)
    assert "get_issue" in done
    assert "elsewhere 403" in done
    assert site.artifact(task.id, "bug-42.patch", tmp_path).read_text().endswith("+mended\n")
    told = {(each["host"], each["verdict"]) for each in events if each["type"] == "network"}
    assert ("elsewhere.example.org", "blocked") in told
    assert {(rule.host, "allowed") for rule in REGISTRIES} & told
    assert task.network is not None
    assert task.network.blocked == 1
    assert task.network_policy is not None
    named = yaml.safe_load((PAGES / "mcp.yaml").read_text())["vm"]["allowed_hosts"]
    assert (task.network_policy.mode, task.network_policy.hosts) == ("outbound", named)
    metadata = json.loads(site.artifact(task.id, "metadata.json", tmp_path).read_text())
    assert metadata["network"]["blocked"] == 1
    assert GITHUB_TOKEN not in json.dumps([said, events, metadata])


def test_the_audit_without_a_network(site: Site, tmp_path: Path) -> None:
    task, said, events = ended(site, submit(site, "audit.yaml"))
    assert (task.state, task.error) == ("completed", None)
    assert "network 403" in results(said)[-1]
    assert site.artifact(task.id, "security-report.md", tmp_path).read_text() == "# Security report\n"
    assert [each["verdict"] for each in events if each["type"] == "network"] == ["blocked"]


def test_the_large_task_is_taken_where_there_is_room_and_refused_with_both_figures_elsewhere(site: Site) -> None:
    capacity = MachineHost(site.settings).room()[0]
    if capacity.cpus >= 16 and capacity.memory_bytes > 33 * 2**30 and capacity.disk_bytes > 200 * 2**30:
        task = site.client.wait(submit(site, "large.yaml"), poll_seconds=0.5)
        assert (task.state, task.error) == ("completed", None)
        return
    with pytest.raises(InsufficientResources) as refused:
        submit(site, "large.yaml")
    assert refused.value.details["requested_memory"] == "32G"
    assert "available_memory" in refused.value.details
