"""The run log as people read it."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cli.task.render import LogRenderer
from client import LogLine

AT = "2026-01-29T10:30:00Z"


def shown(*lines: dict[str, Any] | str, stream: str = "stdout") -> str:
    """What a reader sees of lines of the log."""
    text = io.StringIO()
    renderer = LogRenderer(Console(file=text, width=80))
    for line in lines:
        data = line if isinstance(line, str) else json.dumps(line)
        renderer.show(LogLine.model_validate({"timestamp": AT, "stream": stream, "id": 1, "data": f"{data}\n"}))
    return text.getvalue()


def event(**fields: Any) -> str:
    text = io.StringIO()
    LogRenderer(Console(file=text, width=80)).show(
        LogLine.model_validate({"timestamp": AT, "stream": "event", "id": 1} | fields)
    )
    return text.getvalue()


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"type": "assistant", "message": {"content": list(blocks)}}


def test_claude_says_what_it_says_and_tools_show_what_they_are_about() -> None:
    text = shown(
        {"type": "system", "subtype": "init", "model": "claude-x", "claude_code_version": "2.1"},
        assistant({"type": "text", "text": "Looking.\nThen mending."}),
        assistant({"type": "tool_use", "name": "Bash", "input": {"command": "make\ntest", "description": "Test"}}),
        assistant({"type": "tool_use", "name": "Odd", "input": {"deep": {"x": 1}}}),
    )
    assert text.splitlines() == [
        "  Claude Code 2.1, model claude-x",
        "● Looking.",
        "  Then mending.",
        "▸ Bash make test",
        '▸ Odd {"deep": {"x": 1}}',
    ]


def test_what_users_say_is_shown_as_they_said_it() -> None:
    assert event(type="user_message", message_id="prompt", message="/login fails.\n  Mend it.") == (
        "» /login fails.\n    Mend it.\n"
    )


def test_long_input_and_output_are_shortened_and_the_end_of_output_is_kept() -> None:
    output = "\n".join(f"line {n}" for n in range(100))
    result = {"type": "user", "message": {"content": [{"type": "tool_result", "content": output}]}}
    text = shown(assistant({"type": "tool_use", "name": "Bash", "input": {"command": "x" * 1000}}), result)
    call, *lines = text.splitlines()
    assert len(call) < 200
    assert call.endswith("…")
    assert (lines[0], lines[-1]) == ("  line 0", "  line 99")
    assert "… 94 more lines" in text


def test_the_result_tells_turns_time_tokens_and_cost() -> None:
    result = {
        "type": "result",
        "subtype": "success",
        "is_error": False,
        "num_turns": 3,
        "duration_ms": 61_000,
        "total_cost_usd": 0.0123,
        "usage": {"input_tokens": 10, "output_tokens": 20},
    }
    real = assistant({"type": "text", "text": "Hello."})
    real["message"]["model"] = "claude-x"
    assert shown(real, result).splitlines()[-1] == (
        "■ Claude Code is done: 3 turns, 1m 01s, 10 tokens in, 20 out, $0.0123"
    )
    failed = shown({"type": "result", "subtype": "error_during_execution", "is_error": True, "result": "no more"})
    assert failed.splitlines() == ["■ error_during_execution: ? turns", "  no more"]
    # So it tells of a request that the provider refused.
    refused = shown({"type": "result", "subtype": "success", "is_error": True, "result": "API Error: 529"})
    assert refused.splitlines() == ["■ Claude Code ended with an error: ? turns", "  API Error: 529"]


@pytest.mark.parametrize("model", ["taskyard-scripted-model", "<synthetic>", None])
def test_no_cost_is_told_unless_a_real_model_answered(model: str | None) -> None:
    result = {"type": "result", "subtype": "success", "is_error": False, "num_turns": 3, "total_cost_usd": 0.5}
    said = assistant({"type": "text", "text": "Hello."})
    said["message"] |= {"model": model} if model else {}
    assert shown(said, result).splitlines()[-1] == "■ Claude Code is done: 3 turns"
    text = io.StringIO()
    renderer = LogRenderer(Console(file=text, width=80))
    told = {"timestamp": AT, "stream": "event", "id": 1, "type": "model", "message": "Model API", "scripted": False}
    renderer.show(LogLine.model_validate(told))
    renderer.show(LogLine.model_validate({"timestamp": AT, "stream": "stdout", "id": 2, "data": json.dumps(result)}))
    assert "$0.5" in text.getvalue()


def test_times_stand_before_the_first_line_of_what_was_said() -> None:
    text = io.StringIO()
    renderer = LogRenderer(Console(file=text, width=80), timestamps=True)
    said = json.dumps(assistant({"type": "text", "text": "One.\nTwo."}))
    renderer.show(LogLine.model_validate({"timestamp": AT, "stream": "stdout", "id": 1, "data": said}))
    first, second = text.getvalue().splitlines()
    assert re.fullmatch(r"\d\d:\d\d:\d\d ● One\.", first)
    assert second == f"{' ' * 9}  Two."


def test_events_and_stderr_are_told_apart_from_output() -> None:
    assert event(type="state_change", state="running", message="Claude Code executing") == (
        "◆ running  Claude Code executing\n"
    )
    assert event(type="progress", message="guest is booting (5s)") == "· guest is booting (5s)\n"
    assert event(type="completed", state="completed", exit_code=0) == ""
    assert shown("warning: x", stream="stderr") == "! warning: x\n"
    assert shown("not json", "[1, 2]", "{broken") == "  not json\n  [1, 2]\n  {broken\n"


@given(st.text(), st.sampled_from(["text", "tool_use", "tool_result"]))
def test_nothing_that_a_guest_writes_steers_the_terminal(text: str, kind: str) -> None:
    hostile = f"\x1b]0;title\x07\x1b[2J\x9b31m\u202e{text}"
    block = {
        "text": {"type": "text", "text": hostile},
        "tool_use": {"type": "tool_use", "name": hostile, "input": {"command": hostile}},
        "tool_result": {"type": "tool_result", "content": [{"type": "text", "text": hostile}]},
    }[kind]
    for line in (assistant(block), {"type": "user", "message": {"content": [block]}}, {"type": hostile}, hostile):
        for stream in ("stdout", "stderr"):
            assert not {letter for letter in shown(line, stream=stream) if letter in "\x1b\x07\x9b\u202e\b"}


@given(st.recursive(st.none() | st.booleans() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["type", "message", "content", "text", "input", "name", "is_error", "usage", "result"]), inner)))  # fmt: skip  # noqa: E501
def test_no_shape_of_output_makes_the_reader_fail(data: Any) -> None:
    for kind in ("assistant", "user", "result", "system", None):
        shown({"type": kind} | (data if isinstance(data, dict) else {"message": data}))
