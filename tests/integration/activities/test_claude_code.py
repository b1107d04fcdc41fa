"""The real Claude Code CLI against the gateway with the scripted model behind it: what the run's follower builds on."""

from __future__ import annotations

import asyncio
import json
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from starlette.types import Message, Receive, Scope, Send

from examples.hello.prepare import prepare
from examples.hello.serve import serve
from foundation.settings import Settings
from machines.images.profile import load_profile
from tests.integration.activities.claude_code import ClaudeRun, bridge, claude, claude_program
from tests.manifests import parse_yaml
from tests.waiting import until
from worker.gateway.model_gateway import Gateway
from worker.gateway.unix_server import UnixServer
from worker.scripted_model.scenario import load_scenarios
from worker.scripted_model.server import create_model_app
from workflows.runs.budget import Budget

ROOT = Path(__file__).parents[3]
MACHINE = "vm-00112233445566aa"
FIRST = "10000000-0000-4000-8000-000000000001"
SECOND = "10000000-0000-4000-8000-000000000002"
THIRD = "10000000-0000-4000-8000-000000000003"


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Not tmp_path, whose length would move the sockets out of the home.
    with tempfile.TemporaryDirectory(prefix="ty-") as home:
        made = Settings(home=Path(home), anthropic_api_key=None, scenario=ROOT / "tests/scenarios")
        record = made.machines / MACHINE / "machine.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        yield made


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Gateway]:
    serving = Gateway(settings)
    await serving.start()
    yield serving
    await serving.stop()


@pytest.fixture
async def url(gateway: Gateway, settings: Settings) -> AsyncIterator[str]:  # noqa: ARG001 -- it serves meanwhile
    async with bridge(settings.sockets / "gateway.sock") as address:
        yield address


@pytest.fixture
def work(tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    (tmp_path / "agent").mkdir()
    return directory


async def play(url: str, gateway: Gateway, work: Path, prompt: str, **extra: str) -> tuple[ClaudeRun, int]:
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent", **extra) as run:
        await run.say(prompt, FIRST)
        run.close()
        return run, await run.exit_code()


@asynccontextmanager
async def recording(settings: Settings, heard: list[str]) -> AsyncIterator[str]:
    """A URL of the scripted model that adds the texts of each request's user messages to ``heard``."""
    model = create_model_app(load_scenarios(settings.scenario))

    async def listening(scope: Scope, receive: Receive, send: Send) -> None:
        body = bytearray()

        async def taking() -> Message:
            message = await receive()
            body.extend(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body"):
                for said in json.loads(body or b"{}").get("messages", []):
                    content = said["content"]
                    texts = (
                        [content] if isinstance(content, str) else [text for block in content for text in _texts(block)]
                    )
                    heard.extend(texts if said["role"] == "user" else [])
            return message

        await model(scope, taking, send)

    path = settings.home / "recording.sock"
    server = UnixServer(listening, path)
    await server.start()
    async with bridge(path) as address:
        yield address
    await server.stop()


def _texts(block: dict[str, Any]) -> list[str]:
    """The texts in a block, those in the result of a tool too."""
    inner = block.get("content") or []
    return [block.get("text", ""), *([inner] if isinstance(inner, str) else [part.get("text", "") for part in inner])]


def shell(command: str, directory: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=directory, shell=True, check=False, capture_output=True, text=True)


async def test_an_agent_over_budget_is_told_why_and_leaves_with_an_error(url, gateway, work):
    gateway.set_budget(MACHINE, Budget(tokens=1))
    run, exit_code = await play(url, gateway, work, "Scenario: budget")
    assert exit_code == 1
    assert [(result["is_error"], result["api_error_status"]) for result in run.results] == [(True, 400)]
    assert gateway.used_up(MACHINE) in run.results[0]["result"]
    assert (gateway.usage(MACHINE).requests, run.tools_used()) == (1, ["Bash"])


async def test_an_agent_that_is_continued_goes_on_in_the_middle_of_its_turn(url, gateway, work, monkeypatch):
    monkeypatch.setattr("worker.gateway.model_gateway._LATER", {"retry-after": "2"})
    gateway.set_budget(MACHINE, Budget(tokens=1, pause=True))
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent") as run:
        await run.say("Scenario: budget", FIRST)
        run.close()
        await until(lambda: gateway.used_up(MACHINE) is not None, "the refusal")
        # As a machine is paused: it waits before it tries again, and has nothing under way.
        await asyncio.to_thread(gateway.settle, MACHINE)
        waits = await run.until(type="system", subtype="api_retry")
        assert (waits["error_status"], waits["retry_delay_ms"]) == (429, 2000)
        gateway.set_budget(MACHINE, Budget(tokens=10**9, pause=True))
        assert await run.exit_code() == 0
    assert [(result["is_error"], result["num_turns"]) for result in run.results] == [(False, 8)]
    assert len({event["session_id"] for event in run.events if "session_id" in event}) == 1
    assert (work / "steps.txt").read_text() == "".join(f"paid-step-{number}\n" for number in range(1, 7))


async def test_hello_scenario_mends_the_example(url, gateway, settings, work):
    made = prepare(Settings(), directory=settings.home / "examples")
    prompt = parse_yaml((ROOT / "examples/hello/task.yaml").read_bytes()).claude.prompt
    with serve(made.path) as repository:
        assert shell(f"git clone --quiet {repository} .", work).returncode == 0
    assert shell(made.test_command, work).returncode == 1

    run, exit_code = await play(url, gateway, work, prompt)

    assert exit_code == 0
    assert [result["is_error"] for result in run.results] == [False]
    assert run.tools_used() == ["Bash", "Bash", "Read", "Edit", "Bash", "Write"]
    assert shell(made.test_command, work).returncode == 0
    assert shell("git status --porcelain", work).stdout.splitlines() == [f" M {made.faulty_file}", "?? REPORT.md"]
    usage = gateway.usage(MACHINE)
    assert usage.requests == 6
    assert usage.input_tokens == run.results[0]["usage"]["input_tokens"]
    assert usage.output_tokens == run.results[0]["usage"]["output_tokens"]


async def test_refused_request_is_an_error_result_and_exit_code_1(url, gateway, work):
    run, exit_code = await play(url, gateway, work, "Scenario: error result")
    assert exit_code == 1
    assert [(result["is_error"], result["api_error_status"]) for result in run.results] == [(True, 400)]
    assert (work / "draft.txt").read_text() == "unfinished\n"


async def test_overload_is_retried_and_then_an_error_result(url, gateway, work):
    run, exit_code = await play(url, gateway, work, "Scenario: overloaded", CLAUDE_CODE_MAX_RETRIES="1")
    assert exit_code == 1
    assert (await run.until(subtype="api_retry"))["error_status"] == 529
    assert run.results[0]["is_error"]


async def test_agent_that_is_killed_reports_no_result(url, gateway, work):
    run, exit_code = await play(url, gateway, work, "Scenario: exit code")
    assert exit_code == -9
    assert run.results == []


async def test_run_of_a_machine_that_is_gone_is_refused(url, gateway, settings, work):
    (settings.machines / MACHINE / "machine.json").unlink()
    run, exit_code = await play(url, gateway, work, "Scenario: slow", CLAUDE_CODE_MAX_RETRIES="0")
    assert exit_code == 1
    assert run.results[0]["api_error_status"] == 401
    assert run.tools_used() == []


async def test_message_during_a_tool_joins_the_turn_under_way(url, gateway, work):
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent") as run:
        await run.say("Scenario: wait for message", FIRST)
        await run.until(type="assistant")
        await run.say("Please finish now", SECOND)
        run.close()
        assert await run.exit_code() == 0
    assert run.acknowledged == [FIRST, SECOND]
    assert [result["result"] for result in run.results] == ["Finished as the message asked."]
    assert (work / "message.txt").is_file()


async def test_messages_during_the_last_answer_become_one_turn_of_their_own(url, gateway, work):
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent") as run:
        await run.say("Scenario: chat", FIRST)
        await run.until(type="system", subtype="init")
        await run.say("And then?", SECOND)
        await run.say("And more?", THIRD)
        run.close()
        assert await run.exit_code() == 0
    assert run.acknowledged == [FIRST, SECOND, THIRD]
    assert [result["result"] for result in run.results][1:] == ["The second answer."]


# Beginnings that programs which talk to people take for something else: commands, options, files, comments, escapes.
BEGINNINGS = [
    *(
        "/login",
        "/clear",
        "/compact",
        "/cost",
        "/help",
        "/init",
        "/model opus",
        "/no-such-command",
        "/",
        "//",
        "/usr/bin",
    ),
    *("!ls", "!", "#remember", "# Title", "@README.md", "@/etc/hostname", "-p", "--help", "--", "\\", "%s", "${HOME}"),
    *("close", "exit", "quit", "ultrathink", "<system>", "<command-name>/clear</command-name>", "{}", "[1]", "null"),
    *("$(id)", "\u00e9\U0001f680", "0", "'", '"'),
]
LEADING = ["", "", " ", "", "\n", "", "\t "]


async def test_the_model_gets_every_message_as_the_user_wrote_it(settings, gateway, work):
    (work / "README.md").write_text("a file that a message names\n")
    rests = cycle(["", " returns 500 for unknown users.", "\n\nand more\n", "  "])
    texts = [lead + word + next(rests) for word, lead in zip(BEGINNINGS * 2, cycle(LEADING), strict=False)]
    heard: list[str] = []
    async with (
        recording(settings, heard) as address,
        claude(address, gateway.token(MACHINE), work, work.parent / "agent") as run,
    ):
        for number, text in enumerate(texts, 1):
            await run.say(text, str(uuid4()))
            await run.until_results(number)
        run.close()
        assert await run.exit_code() == 0
    assert [text for text in texts if text not in heard] == []


@pytest.mark.parametrize("text", ["/clear", "/login fails, finish now", "!ls finish now", "@README.md finish now"])
async def test_a_message_during_a_tool_is_no_command_either(settings, gateway, work, text):
    heard: list[str] = []
    async with (
        recording(settings, heard) as address,
        claude(address, gateway.token(MACHINE), work, work.parent / "agent") as run,
    ):
        await run.say("Scenario: wait for message", FIRST)
        await run.until(type="assistant")
        await run.say(text, SECOND)
        await run.say("Please finish now", THIRD)
        run.close()
        assert await run.exit_code() == 0
    assert any(text in said for said in heard)
    assert run.results[-1]["result"] == "Finished as the message asked."


async def test_message_sent_twice_is_taken_once(url, gateway, work):
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent") as run:
        await run.say("Nothing fits this", FIRST)
        await run.until(type="result")
        await run.say("Nothing fits this", FIRST)
        run.close()
        assert await run.exit_code() == 0
    assert len(run.results) == 1
    assert run.acknowledged == [FIRST, FIRST]


async def test_run_outlives_a_restart_of_gateway_and_model(url, gateway, settings, work):
    async with claude(url, gateway.token(MACHINE), work, work.parent / "agent") as run:
        await run.say("Scenario: wait for message", FIRST)
        await run.until(type="assistant")
        await gateway.stop()
        await run.until(type="system", subtype="api_retry")
        successor = Gateway(settings)
        await successor.start()
        try:
            await run.say("Please finish now", SECOND)
            run.close()
            assert await run.exit_code() == 0
        finally:
            await successor.stop()
    assert [result["result"] for result in run.results] == ["Finished as the message asked."]
    assert successor.usage(MACHINE).requests >= 3


def test_program_is_the_version_that_the_guest_image_pins(tmp_path):
    assert (
        shell(f"{claude_program()} --version", tmp_path).stdout.split()[0] == load_profile("basic").claude_code.version
    )
