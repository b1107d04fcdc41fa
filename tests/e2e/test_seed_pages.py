"""Every command of the quick reference, in order, on a live stack with a real machine, to a completed task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.e2e.conftest import Site, until
from tests.seed_pages.replay import Done, SeedPages

pytestmark = pytest.mark.timeout(900)

# The one thing that the pages' smallest manifest lacks for the artifact that the pages' commands download.
PATTERNS = 'lifecycle:\n  artifact_patterns: ["report.md"]\n'


def test_the_quick_reference_from_top_to_bottom(site: Site, tmp_path: Path) -> None:
    pages = SeedPages(site.settings, tmp_path)
    pages.put_manifest(site.repository, added=PATTERNS)

    def run(command: str, task_id: str = "") -> Done:
        return good(pages.run(command, task_id))

    by_curl, by_cli = pages.section("submit")
    task_id = json.loads(run(by_curl).out)["task_id"]
    until(lambda: site.client.get(task_id).state == "running", 240)
    # A program of its own, whose run goes on beside this one.
    (tmp_path / "example").mkdir()
    beside = SeedPages(site.settings, tmp_path / "example")
    beside.put_manifest(site.repository, added=PATTERNS)
    example = beside.start_example()
    following = [pages.start(command, task_id) for command in pages.section("follow")]
    events = pages.start_events(task_id)
    for command in pages.section("look"):
        assert task_id in run(command, task_id).out or "/logs" in command or "--label" in command, command
    for process in following:
        assert "completed" in good(pages.end(process)).out
    told = good(pages.end(events)).out
    kinds = {line.split()[1] for line in told.splitlines() if line.startswith("Event:")}
    assert {"state_change", "output", "progress", "metrics"} <= kinds
    assert "memory_total_bytes" in told
    for command in pages.section("artifacts"):
        (tmp_path / "report.md").unlink(missing_ok=True)
        assert "report.md" in run(command, task_id).out or (tmp_path / "report.md").read_text() == "# Report\n"
    for command in pages.section("health"):
        run(command)
    for cancel, submit in zip(pages.section("cancel"), (by_cli, by_cli), strict=True):
        second = run(submit).out.strip()
        run(cancel, second)
        until(lambda second=second: site.client.get(second).state == "cancelled", 240)
    shown = good(pages.end(example)).out
    assert "State: completed" in shown
    assert "Downloading report.md..." in shown


def good(done: Done) -> Done:
    assert done.code == 0, f"{done.command}\n{done.out}\n{done.err}"
    return done
