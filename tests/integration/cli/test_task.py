"""The command line and the client against the API: what they print, where, and with which exit code.

Above 400 lines: the child process and its terminal, which come first, are those of all commands.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import signal
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from temporalio import activity

from storage import artifacts
from storage.layout import TASKS
from tests.api_site import ApiSite, api_site, as_yaml, manifest, until
from workflows.runs.messages import AgentProgress
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class Sandbox:
    """The command `sandbox` as a person runs it, in a directory of its own."""

    def __init__(self, server: str, directory: Path) -> None:
        own = {"TASKYARD_SERVER": server, "XDG_CONFIG_HOME": str(directory), "COLUMNS": "100", "NO_COLOR": "1"}
        self._environment = {**os.environ, **own}
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

    async def complete(self, words: str) -> Done:
        """What the shell offers for a line that is being typed."""
        asked = {"COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1), "_SANDBOX_COMPLETE": "complete_bash"}
        program = "import sys; from cli.main import app; sys.argv = ['sandbox']; app(prog_name='sandbox')"
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", program),
            env=self._environment | asked,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return await self.end(process)

    async def at_terminal(self, typed: str, *arguments: str) -> Done:
        """The same at a terminal, where somebody types; all it shows is in ``out``."""
        main, terminal = pty.openpty()
        try:
            os.write(main, typed.encode())
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "cli", *arguments),
                env={**self._environment, "TERM": "xterm"},
                cwd=self._directory,
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
            )
            os.close(terminal)
            reading = asyncio.create_task(asyncio.to_thread(_read_all, main))
            async with asyncio.timeout(60):
                code = await process.wait()
            return Done(code, (await reading).decode(), "")
        finally:
            os.close(main)

    async def end(self, process: asyncio.subprocess.Process) -> Done:
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode is not None
        return Done(process.returncode, out.decode(), err.decode())


def _read_all(descriptor: int) -> bytes:
    read = b""
    # The kernel says that the terminal's last program has left by an error.
    with contextlib.suppress(OSError):
        while piece := os.read(descriptor, 65536):
            read += piece
    return read


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
        (("download", task_id), 2, "--all"),
        (("list", "--state", "runing"), 1, "is not a state"),
        (("list", "--label", "team"), 2, "KEY=VALUE"),
        (("submit", str(tmp_path / "no.yaml")), 2, "No such file"),
        (("submit",), 2, "Name the manifest"),
        (("submit", path, "--timeout", "1s"), 2, "--timeout goes with --follow, --watch or --wait"),
        (("logs", task_id, "--timeout", "1s"), 2, "--timeout goes with --follow"),
        (("logs", task_id, "--follow", "--timeout", "100ms"), 5, "is still pending"),
        (("status", task_id, "--watch", "--timeout", "soon"), 2, "not a length of time"),
        (("status", task_id, "--watch", "--timeout", "10ms", "--format", "json"), 5, "is still pending"),
        (("artifacts", "list", task_id, "more"), 2, "Name one run"),
        (("download", task_id, "--all", "-o", "-"), 2, "Only one artifact"),
        (("--context", "never", "list"), 2, "No context 'never'"),
        (("list", "--server", "http://127.0.0.1:9"), 5, "sandbox up"),
    ):
        done = await sandbox("task", *arguments)
        assert (done.code, done.out) == (code, ""), arguments
        assert words in done.err
        assert "Traceback" not in done.err


async def test_both_spellings_and_all_formats_tell_the_same(site: ApiSite, sandbox: Sandbox) -> None:
    team = uuid.uuid4().hex
    ids = [await site.submit(metadata={"name": f"{n}   name", "labels": {"team": team}}) for n in "ba"]
    pick = ("--label", f"team={team}", "--sort", "name", "--order", "asc")
    shown, listed, raw = await asyncio.gather(
        sandbox("task", "list", *pick, "--limit", "1", "--offset", "1"),
        sandbox("--format", "text", "task", "list", *pick),
        sandbox("--json", "task", "list", *pick),
    )
    assert [line.split()[0] for line in shown.out.splitlines()] == ["ID", ids[0]]
    assert "1 of 2 runs" in shown.err
    rows = [line.split("\t") for line in listed.out.splitlines()]
    assert [(row[0], row[1], row[3]) for row in rows] == [(ids[1], "pending", "a name"), (ids[0], "pending", "b name")]
    assert [task["id"] for task in json.loads(raw.out)["tasks"]] == ids[::-1]
    one, same, table, later = await asyncio.gather(
        sandbox("task", "--json", "status", ids[0]),
        sandbox("task", "get", ids[0], "--format", "json"),
        sandbox("task", "--format", "text", "get", ids[0], "--format", "table"),
        sandbox("task", "logs", ids[0], "--since", "10m", "--raw"),
    )
    assert json.loads(one.out)["definition"] == json.loads(same.out)["definition"] != {}
    assert table.out.splitlines()[1].startswith(ids[0])
    assert (later.code, later.out, later.err) == (0, "", "")


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


async def test_a_followed_run_is_left_when_the_time_is_over_and_goes_on(
    site: ApiSite, sandbox: Sandbox, write: Callable[..., str]
) -> None:
    async with site.worker() as steps:
        left = await sandbox("task", "submit", write(), "--follow", "--timeout", "500ms")
        assert (left.code, "it goes on" in left.err) == (5, True), left.err
        await steps.agent_running.wait()
        task_id = steps.requests["run_agent"].task_id
        await site.write_log(task_id, say("Hello."))
        # The log is silent from here on: nothing but the clock can end the following.
        following = await sandbox("task", "logs", task_id, "--follow", "--raw", "--timeout", "5s")
        assert (following.code, following.out) == (5, say("Hello.") + "\n")
        assert f"Task '{task_id}' is still running; it goes on" in following.err
        steps.agent_over.set()
        again = await sandbox("task", "logs", task_id, "--follow", "--timeout", "50s")
        assert (again.code, again.out) == (0, "● Hello.\n"), again.err
        raw = await sandbox("task", "submit", write(), "--follow", "--raw")
        assert (raw.code, raw.out) == (0, "")


async def test_the_shell_completes_the_ids_of_runs(site: ApiSite, sandbox: Sandbox) -> None:
    task_id = await site.submit(metadata={"id": f"complete-{uuid.uuid4().hex[:8]}"})
    done = await sandbox.complete("sandbox task status complete-")
    assert task_id in done.out.split()


async def test_what_a_manifest_says_in_vain_is_told_on_stderr(sandbox: Sandbox, write: Callable[..., str]) -> None:
    done = await sandbox("task", "submit", write(parent_id="t-1"))
    assert (done.code, len(done.out.split())) == (0, 1)
    assert "Warning: parent_id is not kept" in done.err


async def test_health_is_told_by_every_check_and_by_the_exit_code(site: ApiSite, sandbox: Sandbox) -> None:
    async with site.worker():
        well, as_json, dog = await asyncio.gather(
            sandbox("health", "status"), sandbox("--json", "health", "status"), sandbox("health", "watchdog")
        )
    assert (well.code, dog.code, dog.out) == (0, 0, "alive\n")
    assert [line.split()[:2] for line in well.out.splitlines()] == [
        ["CHECK", "RESULT"], ["/healthz", "ok"], ["/healthz/http", "ok"], ["/readyz", "ok"], ["/healthz/deep", "ok"],
    ]  # fmt: skip
    assert "agent_count 1" in well.out
    assert json.loads(as_json.out)["/readyz"]["status"] == "ready"
    lost = site.settings.model_copy(update={"temporal_address": "127.0.0.1:9"})
    async with api_site(lost, site.temporal, site.bucket) as ill:
        told = await sandbox("health", "status", "--server", ill.url, "--format", "text")
        still = await sandbox("health", "watchdog", "--server", ill.url)
    assert (told.code, still.code) == (1, 0)
    assert [line.split("\t")[1] for line in told.out.splitlines()] == ["ok", "ok", "failed", "failed"]
    nobody = await sandbox("health", "status", "--server", "http://127.0.0.1:9")
    assert (nobody.code, nobody.out) == (5, "")


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


async def test_a_watched_run_tells_states_and_progress_and_ctrl_c_leaves_it(site: ApiSite, sandbox: Sandbox) -> None:
    async with site.worker() as steps:
        progress = AgentProgress(output_bytes=2048, tool_calls=3, current_tool="Bash")

        async def run(_: Any) -> None:
            activity.heartbeat(progress)
            await steps.agent_over.wait()

        steps.instead["run_agent"] = run
        task_id = await site.submit()
        watching = await sandbox.start("task", "status", task_id, "--watch")
        assert watching.stdout is not None
        told = ""
        async with asyncio.timeout(60):
            while "3 tool calls" not in told:
                told += (await watching.stdout.readline()).decode()
        watching.send_signal(signal.SIGINT)
        done = await sandbox.end(watching)
        assert (done.code, f"sandbox task status {task_id} --watch" in done.err) == (130, True)
    assert "✓ staging" in told
    assert "· running            now Bash, 3 tool calls, 2.0 KiB of output\n" in told


async def test_at_a_terminal_a_watched_run_shows_its_way_and_cancel_asks_first(site: ApiSite, sandbox: Sandbox) -> None:
    task_id = await site.submit()
    no = await sandbox.at_terminal("n\n", "task", "cancel", task_id)
    assert no.code == 1
    assert f"Cancel task {task_id}, which is pending? [y/N]" in no.out
    assert await site.state(task_id) == "pending"
    shown = await sandbox.at_terminal("", "task", "status", task_id, "--watch", "--timeout", "2s")
    assert shown.code == 5
    for state in ("pending", "provisioning", "completed"):
        assert state in shown.out
    yes = await sandbox.at_terminal("", "task", "cancel", task_id, "--yes", "--force")
    assert (yes.code, "Cancellation requested" in yes.out) == (0, True)


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
        stored = [artifacts.store(site.bucket, TASKS.place(task_id), name, data) for name, data in contents.items()]
        artifacts.write_index(site.bucket, TASKS.place(task_id), stored)

    await asyncio.to_thread(store)
    listed = await sandbox("task", "artifacts", task_id)
    assert [line.split()[0] for line in listed.out.splitlines()] == ["NAME", *contents]
    assert (await sandbox("task", "artifacts", "list", task_id)).out == listed.out
    assert (await sandbox("task", "artifacts", task_id, "-o", "name")).out.split() == list(contents)
    offered = await sandbox.complete(f"sandbox task download {task_id} results/")
    assert offered.out.split() == ["results/deep/a.xml"]
    rows = await sandbox("task", "artifacts", task_id, "--format", "text")
    assert rows.out.splitlines()[0].split("\t")[:3] == ["report.md", "9", "text/markdown"]
    assert (await sandbox("task", "download", task_id, "report.md", "-o", "-")).out == "# Report\n"
    one = await sandbox("task", "download", task_id, "report.md", "--verify")
    assert (one.code, one.out) == (0, "report.md\n")
    assert (tmp_path / "report.md").read_bytes() == contents["report.md"]
    everything = await sandbox("task", "download", task_id, "--all", "-o", "all")
    assert everything.out.split() == ["all/report.md", "all/results/deep/a.xml"]
    assert (tmp_path / "all" / "results" / "deep" / "a.xml").read_bytes() == b"<a/>"
    (tmp_path / "all" / "report.md").write_bytes(b"mine\n")
    (tmp_path / "all" / "results" / "deep" / "a.xml").unlink()
    again = await sandbox("task", "download", task_id, "--all", "-o", "all")
    assert (again.code, again.out) == (3, "all/results/deep/a.xml\n")
    assert "report.md" in again.err
    assert (tmp_path / "all" / "report.md").read_bytes() == b"mine\n"
    forced = await sandbox("task", "download", task_id, "--all", "-o", "all", "--force")
    assert (forced.code, len(forced.out.split())) == (0, 2)
    assert (tmp_path / "all" / "report.md").read_bytes() == contents["report.md"]
    site.bucket.put(TASKS.place(task_id).artifact_key("report.md"), b"# Rep0rt\n")
    damaged = await sandbox("task", "download", task_id, "report.md", "-o", "again.md")
    assert (damaged.code, "arrived damaged" in damaged.err) == (1, True)
    unchecked = await sandbox("task", "download", task_id, "report.md", "-o", "unchecked.md", "--no-verify")
    assert (unchecked.code, (tmp_path / "unchecked.md").read_text()) == (0, "# Rep0rt\n")
    assert list(tmp_path.glob("*again*")) == []  # noqa: ASYNC240 -- a test may wait for its own directory


async def test_a_manifest_is_checked_in_both_ways_and_nothing_is_started(
    sandbox: Sandbox, write: Callable[..., str], tmp_path: Path
) -> None:
    team = uuid.uuid4().hex
    labels = {"team": team}
    good = write(metadata={"name": "a", "labels": labels}, parent_id="t-1")
    checked, dry, quiet, as_json = await asyncio.gather(
        sandbox("task", "validate", good),
        sandbox("task", "submit", good, "--dry-run"),
        sandbox("task", "validate", "--quiet", good),
        sandbox("task", "validate", "-o", "json", good),
    )
    for done in (checked, dry):
        assert (done.code, done.out) == (0, "The manifest is valid.\n")
        assert "Warning: parent_id is not kept" in done.err
    assert (quiet.code, quiet.err) == (0, "")
    assert (as_json.code, json.loads(as_json.out)["warnings"][0]["field"]) == (0, "parent_id")
    faulty: dict[str, dict[str, Any]] = {
        "vm.cpus": {"vm": {"cpus": 0}, "claude": {"prompt": ""}},
        "repository.url": {"repository": {"url": "https://user:hunter2hunter2@git.invalid/a.git"}},
        "metadata.labels": {"metadata": {"name": "a", "labels": {f"l{n}": "x" for n in range(1000)} | labels}},
    }
    for field, parts in faulty.items():
        path = tmp_path / f"{field}.yaml"
        path.write_text(as_yaml(manifest(**parts)))
        for arguments in (("validate", str(path)), ("submit", "--dry-run", str(path))):
            refused = await sandbox("task", *arguments)
            assert (refused.code, refused.out) == (1, ""), arguments
            assert f"\n  {field}" in refused.err
            assert "hunter2" not in refused.err
    both = await sandbox("task", "validate", str(tmp_path / "vm.cpus.yaml"))
    assert "\n  claude.prompt: " in both.err
    waiting = await sandbox("task", "submit", good, "--dry-run", "--wait")
    assert (waiting.code, "--dry-run starts nothing" in waiting.err) == (2, True)
    listed = await sandbox("task", "list", "--label", f"team={team}", "-o", "name")
    assert (listed.code, listed.out) == (0, "")


async def test_several_runs_are_repeated_shown_and_ended_and_one_refusal_keeps_none_from_it(
    site: ApiSite, sandbox: Sandbox
) -> None:
    team = uuid.uuid4().hex
    first, second = [await site.submit(metadata={"name": name, "labels": {"team": team}}) for name in ("one", "two")]
    again = await sandbox("task", "retry", first, "never-was", second)
    new = again.out.split()
    assert (again.code, len(set(new) - {first, second})) == (2, 2), again.err
    assert "never-was" in again.err
    status = json.loads((await sandbox("task", "status", "-o", "json", new[0])).out)
    assert (status["name"], status["labels"]) == ("one", {"team": team, "retry-of": first})
    alone = await sandbox("task", "retry", "never-was")
    assert (alone.code, alone.out) == (2, "")
    names, as_json, as_yaml_, wide, quiet = await asyncio.gather(
        sandbox("task", "status", *new, "-o", "name"),
        sandbox("task", "status", *new, "--json"),
        sandbox("task", "-o", "yaml", "status", *new),
        sandbox("task", "list", "--label", f"team={team}", "-o", "wide", "--limit", "3"),
        sandbox("task", "list", "--label", f"team={team}", "--quiet", "--limit", "3"),
    )
    assert names.out.split() == new
    assert [each["id"] for each in json.loads(as_json.out)] == new
    assert [each["id"] for each in yaml.safe_load(as_yaml_.out)] == new
    assert wide.out.split("\n")[0].split()[-2:] == ["MACHINE", "LABELS"]
    assert f"retry-of={first}, team={team}" in wide.out
    assert "3 of 4 runs" in wide.err
    assert (quiet.code, len(quiet.out.splitlines()), quiet.err) == (0, 4, "")
    ended = await sandbox("task", "cancel", first, "never-was", *new, "--quiet", "-o", "name")
    assert (ended.code, ended.out.split()) == (2, [first, *new])
    assert "never-was" in ended.err


async def test_waiting_for_several_runs_ends_with_the_last_and_tells_whether_all_completed(
    site: ApiSite, sandbox: Sandbox
) -> None:
    ends = {"bad": AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="left with 3")}
    async with site.worker() as steps:
        steps.instead["run_agent"] = lambda request: ends.get(request.claude.prompt) or AgentResult(exit_code=0)
        good, other, bad = [await site.submit(claude={"prompt": prompt}) for prompt in ("a", "b", "bad")]
        both, mixed, as_json = await asyncio.gather(
            sandbox("task", "wait", good, other, good, "--timeout", "60s"),
            sandbox("task", "wait", good, bad),
            sandbox("task", "wait", bad, "-o", "json"),
        )
    assert (both.code, sorted(both.out.splitlines())) == (0, sorted(f"{each}\tcompleted" for each in (good, other)))
    assert (mixed.code, sorted(mixed.out.splitlines())) == (1, sorted([f"{good}\tcompleted", f"{bad}\tfailed"]))
    assert (as_json.code, json.loads(as_json.out)["id"]) == (1, bad)
    pending = await site.submit()
    overdue, unknown = await asyncio.gather(
        sandbox("task", "wait", good, pending, "--timeout", "100ms"), sandbox("task", "wait", good, "never-was")
    )
    assert (overdue.code, overdue.out) == (5, f"{good}\tcompleted\n")
    assert f"Task '{pending}' is still pending" in overdue.err
    assert (unknown.code, "never-was" in unknown.err) == (2, True)
