"""Every curl, sandbox, temporal, Python and JavaScript snippet of README.md and docs/ runs as it stands there.

Only addresses and the words ID, ID1, ID2, NAME and my-task are put in place. Where a page speaks of a run, one is there
that fits the command: one that is under way for what steers it, a completed one with artifacts for everything else.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from machines.host import MachineHost
from storage import artifacts
from storage.layout import TASKS
from tests.api_site import ApiSite, as_yaml, manifest
from tests.docs_snippets import PAGES, ROOT, snippets
from tests.integration.cli.test_task import say
from tests.seed_pages.replay import NODE
from worker.metrics import WorkerMetrics
from worker.scripted_model.scenario import read_scenario
from workflows import names
from workflows.runs.messages import TokenUsage
from workflows.runs.requests import AgentRequest, AgentResult, CollectRequest, SteerRequest, StopAgentRequest
from workflows.runs.states import Cause
from workflows.runs.steering.messages import AgentSaid, ControlAnswer, PermissionRequest

# What is not run here, and why. Each of these stands in some page.
NOT_RUN = {
    r"make ": "sets up a host, builds images, runs a machine, or is this very suite",
    r"(\.venv/bin/)?sandbox doctor": "looks at the whole host; tests/unit/cli/test_doctor.py shows it",
    r"sandbox bench": "measures for minutes, with machines",
    r"sandbox machine (ssh|extend|release)": "needs a kept machine; tests/unit/api/test_preservation.py shows it",
    r"(\.venv/bin/)?sandbox task (exec|shell)": "needs a machine; tests/e2e/entered/test_attached.py shows it",
    r"(\.venv/bin/)?sandbox task cp": "needs a machine; tests/e2e/entered/test_files.py shows it",
    r"curl .*/files/": "needs a machine; tests/e2e/entered/test_files.py shows it",
    r"(\.venv/bin/)?sandbox task port|curl .*/ports/": "needs a machine; tests/e2e/entered/test_ports.py shows it",
    r"curl .*/exec ": "needs a machine; tests/e2e/entered/test_attached.py shows it",
    r"curl .*/processes": "needs a machine; tests/e2e/entered/test_processes.py shows it",
    r"pip install \./client": "changes an environment; tests/integration/client/test_package.py shows it",
    r"export ANTHROPIC_API_KEY": "would have a real model answer, for money",
}

# Commands that need a run that is under way.
_STEERS = re.compile(
    r"task (cancel|message|close|network|interrupt|approve)|DELETE|PATCH|/messages|/close|/interrupt|/permissions/|"
    r"workflow signal"
)
# And one that has used up its budget.
_CONTINUES = re.compile(r"task continue|/continue|--name continue")
_PATIENCE = 60.0


@dataclass
class Yard:
    """A site with a worker whose runs complete at once, unless they are to be steered."""

    site: ApiSite
    directory: Path
    steered: set[str] = field(default_factory=set)
    spent: set[str] = field(default_factory=set)
    stopped: dict[str, asyncio.Event] = field(default_factory=dict)

    def __post_init__(self) -> None:
        programs = self.directory / "bin"
        programs.mkdir()
        self._program(programs / "sandbox", f"{sys.executable} -P -m cli")
        self._program(programs / "temporal", str(Path(sys.executable).parent / "temporal"))
        metadata = {"name": "a task", "labels": {"team": "platform"}}
        (self.directory / "task.yaml").write_text(as_yaml(manifest(metadata=metadata)))
        settings = self.site.settings
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TASKYARD_")},
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "XDG_CONFIG_HOME": str(self.directory),
            "TASKYARD_SERVER": self.site.url,
            "TEMPORAL_ADDRESS": settings.temporal_target,
            "TEMPORAL_NAMESPACE": settings.temporal_namespace,
        }

    async def run(self, command: str) -> None:
        """Run a command of a page. Fails when it does."""
        state = "running" if _STEERS.search(command) else "completed"
        state = "awaiting_decision" if _CONTINUES.search(command) else state
        for word in dict.fromkeys(re.findall(r"\bID\d?\b|\bmy-task\b", command)):
            command = re.sub(rf"\b{word}\b", await self._task(state), command)
        command = re.sub(r"\bNAME\b", "report.md", command).replace(".venv/bin/sandbox", "sandbox")
        command = re.sub(r"^curl ", "curl -sS --fail-with-body --max-time 30 ", command)
        await self._start("bash", "-c", self._here(command))

    async def run_program(self, interpreter: str, text: str) -> str:
        """Run a snippet as a program; what it writes. Fails when it does."""
        path = self.directory / "snippet"
        path.write_text(self._here(re.sub(r"\bID\b", await self._task("completed"), text)))
        return await self._start(interpreter, str(path))

    def _here(self, text: str) -> str:
        settings = self.site.settings
        for port, own in ((8121, settings.ws_port), (8122, settings.api_port), (8123, settings.worker_metrics_port)):
            text = text.replace(f"//localhost:{port}", f"//127.0.0.1:{own}")
        return text

    async def _start(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=self.directory,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(_PATIENCE):
            told, _ = await process.communicate()
        assert process.returncode == 0, f"{shlex.join(words)}\n{told.decode()}"
        return told.decode()

    async def _task(self, state: str) -> str:
        task_id = f"docs-{uuid.uuid4().hex[:8]}"
        if state == "running":
            self.steered.add(task_id)
        claude: dict[str, Any] = {"headless": state != "running"}
        if state == "awaiting_decision":
            self.spent.add(task_id)
            claude["max_budget_usd"] = 1
        await self.site.submit(metadata={"id": task_id}, claude=claude, lifecycle={"budget_action": "pause"})
        await self.site.until_state(task_id, state)
        if state == "running":
            asked = PermissionRequest(request_id="REQUEST", tool="Bash", asked_at=datetime.now(UTC))
            await self._says(task_id, AgentSaid(asked=[asked]))
        return task_id

    async def steer(self, request: SteerRequest) -> None:
        """Confirm what is asked of the agent."""
        if request.line["type"] == "control_request":
            await self._says(request.task_id, AgentSaid(answered=[ControlAnswer(id=request.control_id)]))

    async def _says(self, task_id: str, said: AgentSaid) -> None:
        run = self.site.temporal.get_workflow_handle(names.RUNS.workflow_id(task_id))
        await run.signal(names.AGENT_SAID, said)

    async def agent(self, request: AgentRequest) -> AgentResult:
        """An agent that says something and is done, or waits to be stopped."""
        await self.site.write_log(request.task_id, say("Hello."))
        if request.task_id in self.spent:
            self.spent.discard(request.task_id)
            return AgentResult(running=True, cause=Cause.BUDGET_EXCEEDED, usage=TokenUsage(cost_usd=1.0))
        if request.task_id in self.steered:
            await self.stopped.setdefault(request.machine_id, asyncio.Event()).wait()
            return AgentResult(exit_code=143)
        return AgentResult(exit_code=0, result="done")

    async def collect(self, request: CollectRequest) -> None:
        """A report, and nothing else."""

        def store() -> None:
            stored = artifacts.store(self.site.bucket, TASKS.place(request.task_id), "report.md", b"# Report\n")
            artifacts.write_index(self.site.bucket, TASKS.place(request.task_id), [stored])

        await asyncio.to_thread(store)

    def stop(self, request: StopAgentRequest) -> None:
        """End the agent that waits."""
        self.stopped.setdefault(request.machine_id, asyncio.Event()).set()

    @staticmethod
    def _program(path: Path, command: str) -> None:
        path.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        path.chmod(0o755)


@pytest.fixture
async def yard(site: ApiSite, tmp_path: Path) -> AsyncIterator[Yard]:
    made = Yard(site, tmp_path)

    @asynccontextmanager
    async def working() -> AsyncIterator[None]:
        async with site.worker() as steps:
            steps.instead |= {"run_agent": made.agent, "collect": made.collect, "steer": made.steer}
            steps.instead |= {"stop": made.stop, "stop_force": made.stop}
            settings = site.settings
            with WorkerMetrics().serving(settings.worker_metrics_port, MachineHost(settings)):
                try:
                    yield
                finally:
                    for waiting in made.stopped.values():
                        waiting.set()

    async with working():
        yield made


def commands(page: Path) -> list[str]:
    return [command for snippet in snippets(page) for command in snippet.commands()]


def reason(command: str) -> str | None:
    return next((text for pattern, text in NOT_RUN.items() if re.match(pattern, command)), None)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
async def test_the_commands_of_a_page_run(yard: Yard, page: Path) -> None:
    for command in commands(page):
        if reason(command) is None:
            await yard.run(command)


def test_nothing_is_left_out_without_being_there() -> None:
    known = [command for page in PAGES for command in commands(page)]
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command) for command in known), pattern


@pytest.mark.parametrize("page", [page for page in PAGES if any(s.language == "python" for s in snippets(page))])
async def test_the_python_snippets_of_a_page_run(yard: Yard, page: Path) -> None:
    for snippet in snippets(page):
        if snippet.language == "python":
            await yard.run_program(sys.executable, snippet.text)


async def test_the_javascript_snippets_follow_a_run_to_its_end(yard: Yard) -> None:
    texts = [snippet.text for page in PAGES for snippet in snippets(page) if snippet.language == "js"]
    for text in texts:
        told = await yard.run_program(str(NODE), text)
        assert "Hello." in told
        assert told.splitlines()[-2:] == ["now completed", "the run has ended"]
    assert texts


def test_the_json_examples_of_the_docs_are_json() -> None:
    texts = [snippet.text for page in PAGES for snippet in snippets(page) if snippet.language == "json"]
    for text in texts:
        assert json.loads(text)
    assert texts


async def test_the_manifests_of_the_docs_are_taken(site: ApiSite) -> None:
    taken = 0
    for page in PAGES:
        for snippet in snippets(page):
            if snippet.language == "yaml" and "kind: Task" in snippet.text:
                data = yaml.safe_load(snippet.text)
                data["metadata"]["id"] = None
                reply = await site.http.post("/api/v1/tasks", json=data)
                assert reply.status_code == 202, f"{page.name}, line {snippet.line}: {reply.text}"
                taken += 1
    assert taken


def test_the_scenarios_of_the_docs_are_valid(tmp_path: Path) -> None:
    texts = [s.text for page in PAGES for s in snippets(page) if s.language == "yaml" and "\nturns:" in s.text]
    for text in texts:
        (tmp_path / "scenario.yaml").write_text(text)
        assert read_scenario(tmp_path / "scenario.yaml").turns
    assert texts
