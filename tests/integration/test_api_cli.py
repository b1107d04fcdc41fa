"""The command line and the client against the API: what they print, where, and with which exit code."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from storage import artifacts
from storage.layout import artifact_key
from tests.integration.api_site import ApiSite, as_yaml, manifest, until
from workflows.messages import AgentResult
from workflows.states import Cause


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Sandbox:
    """The command `sandbox` as a person runs it, in a directory of its own."""

    def __init__(self, server: str, directory: Path) -> None:
        self._environment = {**os.environ, "TASKYARD_SERVER": server, "COLUMNS": "100", "NO_COLOR": "1"}
        self._directory = directory

    async def start(self, *arguments: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "cli",
            *arguments,
            env=self._environment,
            cwd=self._directory,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )

    async def __call__(self, *arguments: str) -> Done:
        return await self.end(await self.start(*arguments))

    async def end(self, process: asyncio.subprocess.Process) -> Done:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def sandbox(site: ApiSite, tmp_path: Path) -> Sandbox:
    return Sandbox(site.url, tmp_path)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write_manifest(**parts: Any) -> str:
        path = tmp_path / "task.yaml"
        path.write_text(as_yaml(manifest(**parts)))
        return str(path)

    return write_manifest


def say(text: str) -> str:
    """A line of Claude Code's output."""
    return json.dumps({"type": "assistant", "message": {"content": [{"type": "text", "text": text}]}})


async def test_submit_prints_the_id_alone_and_list_status_and_cancel_find_it(
    sandbox: Sandbox, write: Callable[..., str]
) -> None:
    team = uuid.uuid4().hex
    done = await sandbox("task", "submit", write(metadata={"name": "a [b]name[/b]", "labels": {"team": team}}))
    task_id = done.out.strip()
    assert (done.code, done.out) == (0, f"{task_id}\n")
    assert f"sandbox task logs {task_id} --follow" in done.err
    listed = await sandbox("task", "list", "--label", f"team={team}", "--state", "pending")
    header, row = listed.out.splitlines()
    assert header.split() == ["ID", "NAME", "STATE", "CREATED", "TOOK"]
    assert row.startswith(f"{task_id}  a [b]name[/b]  pending")
    found = json.loads((await sandbox("task", "--format", "json", "list", "--label", f"team={team}")).out)
    assert [task["id"] for task in found["tasks"]] == [task_id]
    status = await sandbox("task", "status", task_id)
    assert f"team={team}" in status.out
    assert "No worker answers" in status.err
    cancelled = await sandbox("task", "cancel", task_id, "--reason", "enough", "--format", "json")
    assert json.loads(cancelled.out)["previous_state"] == "pending"


async def test_refusals_say_what_to_do_and_have_their_exit_codes(
    sandbox: Sandbox, write: Callable[..., str], tmp_path: Path
) -> None:
    refused = await sandbox("task", "submit", "-f", write(vm={"cpus": 0, "memroy": "1G"}))
    assert (refused.code, refused.out) == (1, "")
    assert "\n  vm.cpus: " in refused.err
    assert "\n  vm.memroy: is not a field of a manifest; did you mean 'memory'?" in refused.err
    task_id = f"twice-{uuid.uuid4().hex[:8]}"
    path = write(metadata={"id": task_id})
    assert (await sandbox("task", "submit", path)).code == 0
    for arguments, code, words in (
        (("submit", path), 3, "already submitted"),
        (("status", "never-was"), 2, "never-was"),
        (("logs", "never-was", "--follow"), 2, "never-was"),
        (("download", task_id, "report.md"), 2, "none yet"),
        (("download", task_id), 1, "--all"),
        (("list", "--state", "runing"), 1, "is not a state"),
        (("list", "--label", "team"), 1, "KEY=VALUE"),
        (("submit", str(tmp_path / "no.yaml")), 1, "No such file"),
        (("submit",), 1, "Name the manifest"),
        (("list", "--server", "http://127.0.0.1:9"), 5, "sandbox up"),
    ):
        done = await sandbox("task", *arguments)
        assert (done.code, done.out) == (code, ""), arguments
        assert words in done.err
        assert "Traceback" not in done.err


async def test_follow_shows_the_run_and_ends_with_its_outcome(
    site: ApiSite, sandbox: Sandbox, write: Callable[..., str]
) -> None:
    async with site.worker() as steps:
        following = await sandbox.start("task", "submit", write(), "--follow")
        await steps.agent_running.wait()
        task_id = steps.requests["run_agent"].task_id
        await site.write_event(task_id, type="state_change", state="running", message="Claude Code executing")
        await site.write_log(task_id, say("Hello."), say("Done."))
        steps.agent_over.set()
        done = await sandbox.end(following)
    assert done.code == 0, done.err
    assert done.out == "◆ running  Claude Code executing\n● Hello.\n● Done.\n"
    raw = await sandbox("task", "logs", task_id, "--raw", "--stream", "stdout", "--tail", "1")
    assert raw.out == say("Done.") + "\n"
    as_json = await sandbox("task", "logs", task_id, "--format", "json")
    assert [json.loads(line)["stream"] for line in as_json.out.splitlines()] == ["event", "stdout", "stdout", "event"]


async def test_a_failed_run_gives_exit_code_1_and_how_to_enter_its_machine(
    site: ApiSite, sandbox: Sandbox, write: Callable[..., str]
) -> None:
    path = write(lifecycle={"failure_action": "preserve"})
    async with site.worker() as steps:
        steps.instead["run_agent"] = lambda _: AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="left with 3")
        waited, watched = await asyncio.gather(
            sandbox("task", "submit", path, "--wait"), sandbox("task", "submit", path, "--watch")
        )
    for done in (waited, watched):
        assert done.code == 1
        assert "left with 3" in done.err
        assert "ssh agent@machine" in done.err
    assert "failed_preserved" in waited.out
    assert "✓ provisioning" in watched.out


async def test_ctrl_c_leaves_the_run_alone_and_says_how_to_come_back(site: ApiSite, sandbox: Sandbox) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.write_log(task_id, say("Hello."))
        following = await sandbox.start("task", "logs", task_id, "--follow")
        assert following.stdout is not None
        assert "Hello." in (await following.stdout.readline()).decode()
        following.send_signal(signal.SIGINT)
        done = await sandbox.end(following)
        assert done.code == 130
        assert f"sandbox task logs {task_id} --follow" in done.err
        assert await site.state(task_id) == "running"


async def test_messages_and_close_reach_the_session(site: ApiSite, sandbox: Sandbox) -> None:
    async with site.worker() as steps:
        task_id = await site.submit(claude={"headless": False})
        await steps.agent_running.wait()
        assert (await sandbox("task", "message", task_id, "and the changelog")).code == 0

        async def delivered() -> bool:
            return steps.delivered == ["and the changelog"]

        await until(delivered, "the message")
        assert (await sandbox("task", "close", task_id)).code == 0


async def test_artifacts_are_listed_and_downloaded_into_their_directory_only(
    site: ApiSite, sandbox: Sandbox, tmp_path: Path
) -> None:
    task_id = await site.submit()
    assert "No artifacts yet" in (await sandbox("task", "artifacts", task_id)).err
    contents = {"report.md": b"# Report\n", "results/deep/a.xml": b"<a/>"}

    def store() -> None:
        stored = [artifacts.store(site.bucket, task_id, name, data) for name, data in contents.items()]
        artifacts.write_index(site.bucket, task_id, stored)

    await asyncio.to_thread(store)
    listed = await sandbox("task", "artifacts", task_id)
    assert [line.split()[0] for line in listed.out.splitlines()] == ["NAME", *contents]
    one = await sandbox("task", "download", task_id, "report.md")
    assert (one.code, one.out) == (0, "report.md\n")
    assert (tmp_path / "report.md").read_bytes() == contents["report.md"]
    everything = await sandbox("task", "download", task_id, "--all", "-o", "all")
    assert everything.out.split() == ["all/report.md", "all/results/deep/a.xml"]
    assert (tmp_path / "all" / "results" / "deep" / "a.xml").read_bytes() == b"<a/>"
    site.bucket.put(artifact_key(task_id, "report.md"), b"# Rep0rt\n")
    damaged = await sandbox("task", "download", task_id, "report.md", "-o", "again.md")
    assert (damaged.code, "arrived damaged" in damaged.err) == (1, True)
    assert list(tmp_path.glob("*again*")) == []  # noqa: ASYNC240 -- a test may wait for its own directory
