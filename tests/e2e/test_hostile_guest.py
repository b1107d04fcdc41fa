"""Guests whose agent, which is root there, does what it can to keep its run from ending; all of them at once.

What they take is most of all the patience of the worker with a silent agent: so they go on beside other tests.
"""

from __future__ import annotations

import pytest

from tests.e2e.conftest import BEGUN_SECONDS_MOST, Site

pytestmark = pytest.mark.timeout(1500)

# What the agent does, and the causes with which its run may end.
ROWS = {
    "hostile disks": {"agent_exit", "agent_no_result", "agent_error", "no_output_timeout", None},
    "hostile unit": {"agent_exit"},
    "hostile frozen": {"no_output_timeout"},
    "hostile network": {"no_output_timeout", "machine_lost"},
}


def begin(site: Site) -> dict[str, str]:
    vm = {"cpus": 1, "memory": "1G", "disk": "4G"}
    runs = {}
    for row, causes in ROWS.items():
        # Who ends by silence alone waits no longer than it must; an agent at work on a busy host is silent for long.
        hang = "8m" if "agent_exit" in causes else "4m"
        lifecycle = {"hang_timeout": hang, "timeout": "16m", "artifact_patterns": ["result.txt"]}
        runs[row] = site.submit(row, lifecycle=lifecycle, vm=vm)
    return runs


@pytest.mark.ahead(begin=begin)
def test_no_guest_keeps_its_run_from_ending(site: Site) -> None:
    runs = {row: site.begun.pop(row) for row in ROWS}
    ended = {row: site.client.wait(task_id, poll_seconds=1) for row, task_id in runs.items()}
    assert {row: (task.cause, task.error) for row, task in ended.items() if task.cause not in ROWS[row]} == {}
    took = {row: (task.state_changed_at - task.created_at).total_seconds() for row, task in ended.items()}
    assert {row: seconds for row, seconds in took.items() if seconds > BEGUN_SECONDS_MOST} == {}
    for row, task_id in runs.items():
        assert "metadata.json" in {artifact.name for artifact in site.client.artifacts(task_id)}, row
    names = {artifact.name for artifact in site.client.artifacts(runs["hostile disks"])}
    assert "result.txt" in names, (ended["hostile disks"].cause, ended["hostile disks"].notes)
