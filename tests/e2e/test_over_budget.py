"""Runs that use up their budget, in real machines: stopped within one request, or asleep until somebody decides."""

from __future__ import annotations

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from client import Task
from foundation.errors import (
    Conflict,
    GuestUnreachable,
    HostUnreachable,
    InvalidParameter,
    MachineUnavailable,
    ServiceUnavailable,
    TaskyardError,
)
from tests.e2e.conftest import Site, until

pytestmark = pytest.mark.timeout(600)

# The first request brings a run over it; the second is one too many.
ONE_REQUEST = {"max_tokens_total": 1}


def events_of(site: Site, task_id: str) -> list[dict[str, Any]]:
    return [json.loads(line.data) for line in site.client.logs(task_id) if line.stream == "stdout" and line.data]


def steps_in(site: Site, task_id: str, into: Path) -> list[str]:
    patch = site.artifact(task_id, f"{task_id}.patch", into).read_text()
    return [line for line in patch.splitlines() if line.startswith("+paid-step-")]


def in_state(site: Site, task_id: str, state: str) -> Task | None:
    task = site.client.get(task_id)
    assert not task.terminal or task.state == state, task.error
    return task if task.state == state else None


# Counted, so that what is kept of it shows gaps and doubles.
TICKS = 'n=0; while :; do n=$((n + 1)); echo "tick $n"; sleep 0.5; done'


class Beside:
    """What runs in a machine beside its agent: a command that somebody waits for, and one that nobody does."""

    def __init__(self, site: Site, task_id: str) -> None:
        self._client, self._id = site.client, task_id
        until(self._enters, 300)
        self._attached = ThreadPoolExecutor(1).submit(self._client.exec, task_id, shell="sleep 7021")
        self._detached = self._client.start_process(task_id, "ticks", shell=TICKS, keep=True)
        self.let_agent_take("/tmp/step-1")

    def let_agent_take(self, steps: str) -> None:
        assert self._client.exec(self._id, shell=f"touch {steps}").exit_code == 0

    def see_pause(self) -> None:
        with pytest.raises(MachineUnavailable, match="paused"):
            self._client.exec(self._id, ["true"])
        # A command ends with its connection, which a machine that is paused cannot keep; whoever waited is told.
        assert isinstance(self._attached.exception(120), TaskyardError)

    def see_machine_again(self) -> None:
        until(self._enters, 300)
        until(lambda: self._client.exec(self._id, ["pgrep", "-af", "[s]leep 7021"]).stdout == b"")
        ticks = self._client.process(self._id, "ticks")
        assert (ticks.state, ticks.started_at) == ("running", self._detached.started_at)
        self._ticks = len(b"".join(self._client.process_output(self._id, "ticks")).splitlines())

    def see_what_is_kept(self) -> None:
        """The machine is gone, and what it was left with can be read."""
        assert [(each.key, each.state) for each in self._client.processes(self._id)] == [("ticks", "lost")]
        lines = b"".join(self._client.process_output(self._id, "ticks")).decode().splitlines()
        assert lines == [f"tick {number}" for number in range(1, len(lines) + 1)]
        # It ran on after the machine had slept, until the run had ended.
        assert len(lines) > self._ticks
        with pytest.raises(MachineUnavailable, match="has ended"):
            self._client.process(self._id, "never-was")

    def _enters(self) -> bool:
        try:
            return self._client.exec(self._id, ["true"]).exit_code == 0
        except (MachineUnavailable, HostUnreachable, GuestUnreachable):
            return False


def test_runs_over_budget_stop_within_one_request_and_lose_nothing(site: Site, tmp_path: Path) -> None:
    pause = {"budget_action": "pause", "decision_timeout": "1s"}
    stopped = site.submit("budget", claude={"max_budget_usd": 0.01})
    forgotten = site.submit("budget", claude=ONE_REQUEST, lifecycle=pause)
    for task_id, words in ((stopped, "of $0.01 are spent"), (forgotten, "Nobody continued it")):
        task = site.client.wait(task_id, poll_seconds=0.5)
        assert (task.state, task.cause) == ("failed", "budget_exceeded")
        assert words in (task.error or "")
        assert task.usage is not None
        assert task.usage.requests == 1
        assert task.usage.cost_usd == pytest.approx(task.usage.tokens / 1000)
        # What the agent had done by then is there, though its machine slept and its disk was never unmounted.
        assert steps_in(site, task_id, tmp_path) == ["+paid-step-1"]
        (own := tmp_path / task_id).mkdir()
        metadata = json.loads(site.artifact(task_id, "metadata.json", own).read_text())
        assert metadata["cause"] == "budget_exceeded"
        assert metadata["usage"]["cost_usd"] == task.usage.cost_usd
    # The agent itself was told why.
    assert "The budget of this run is used up" in events_of(site, stopped)[-1]["result"]


@pytest.mark.usefixtures("begun_ended")
def test_a_run_is_continued_in_the_same_session_after_everything_was_restarted(site: Site, tmp_path: Path) -> None:
    patterns = {"artifact_patterns": ["sessions.txt"]}
    task_id = site.submit(
        "budget",
        claude=ONE_REQUEST,
        lifecycle={"budget_action": "pause", **patterns},
        secrets=[{"name": "HELD", "source": "file", "key": str(site.secret_file("held", "yes"))}],
    )
    with pytest.raises(Conflict):
        site.client.continue_task(task_id, tokens=10**9)
    beside = Beside(site, task_id)
    waiting = until(lambda: in_state(site, task_id, "awaiting_decision"), 300)
    assert waiting.usage.budget_tokens == 1
    assert waiting.decision_until is not None
    records = site.settings.machines / str(waiting.vm_name) / "machine.json"
    until(lambda: json.loads(records.read_text())["state"] == "paused", 120)
    assert json.loads(records.read_text())["holds_room"] is False
    beside.see_pause()

    before = {part: site.stack.pids()[part] for part in ("worker", "server", "temporal")}
    for pid in before.values():
        os.kill(pid, signal.SIGKILL)
    until(lambda: all(site.stack.pids().get(part) not in {None, pid} for part, pid in before.items()))

    def answers() -> Task | None:
        try:
            return in_state(site, task_id, "awaiting_decision")
        except ServiceUnavailable:
            return None

    until(answers, 120)
    site.client.message(task_id, "Go on as before.")

    def refused() -> bool:
        try:
            site.client.continue_task(task_id, tokens=1)
        except ServiceUnavailable:
            return False
        except InvalidParameter as error:
            return "is not enough" in error.message
        return False

    until(refused, 120)
    first = waiting.usage.tokens
    # Enough for one more request, and then for all.
    assert site.client.continue_task(task_id, tokens=first + 1).budget_tokens == first + 2
    beside.see_machine_again()
    beside.let_agent_take("/tmp/step-{2..6}")
    until(lambda: (site.client.get(task_id).usage or waiting.usage).requests == 2, 300)
    again = until(lambda: in_state(site, task_id, "awaiting_decision"), 300)
    assert again.usage.requests == 2
    site.client.continue_task(task_id, tokens=10**9)
    task = site.client.wait(task_id, poll_seconds=0.5)
    assert (task.state, task.cause, task.undelivered_messages) == ("completed", None, [])

    beside.see_what_is_kept()
    events = events_of(site, task_id)
    assert len({event["session_id"] for event in events if "session_id" in event}) == 1
    assert [event.get("subtype") for event in events].count("init") >= 1
    assert site.artifact(task_id, "sessions.txt", tmp_path).read_text().strip() == "1"
    assert steps_in(site, task_id, tmp_path) == [f"+paid-step-{number}" for number in range(1, 7)]
    lines = [line for line in site.client.logs(task_id) if line.id is not None]
    assert [line.id for line in lines] == list(range(1, len(lines) + 1))
    said = [line.event.get("state") for line in lines if line.type == "state_change"]
    assert said.count("awaiting_decision") == 2
    assert said.count("running") == 3
