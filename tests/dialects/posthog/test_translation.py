"""Entries of a run's log as notifications: real lines of Claude Code, events, and what no line should be."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.posthog.events.notifications import (
    BEGINNING,
    Notification,
    Position,
    RunName,
    notifications,
    parse_event_id,
)
from foundation.errors import InvalidParameter
from storage.segments import LogEntry, Stream

RECORDED = Path(__file__).parent / "recorded"
RUN = RunName("run-1", "task-1")
LOCAL = RunName("run-1", "task-1", local=True)
AT = datetime(2026, 1, 29, 10, 30, 0, 123456, UTC)


def entry(data: str, stream: Stream = "stdout", number: int = 7) -> LogEntry:
    return LogEntry(id=number, ts=AT, stream=stream, data=data)


def event(run: RunName = RUN, **fields: Any) -> list[Notification]:
    return notifications(entry(json.dumps(fields), "event"), run)


def lines(name: str) -> list[Notification]:
    """What a recorded conversation tells."""
    text = (RECORDED / f"{name}.jsonl").read_text().splitlines(keepends=True)
    return [told for number, line in enumerate(text, 1) for told in notifications(entry(line, number=number), RUN)]


def messages(told: list[Notification]) -> list[dict[str, Any]]:
    return [json.loads(each.text)["notification"] for each in told]


def updates(told: list[Notification], kind: str) -> list[dict[str, Any]]:
    return [
        message["params"]["update"] for message, each in zip(messages(told), told, strict=True) if each.kind == kind
    ]


def params(told: list[Notification], method: str) -> list[dict[str, Any]]:
    return [message["params"] for message in messages(told) if message["method"] == method]


def test_a_recorded_conversation_is_told_in_the_protocols_words() -> None:
    told = lines("conversation")
    assert [each.kind for each in told if each.kind != "usage_update"] == [
        "_posthog/sdk_session", "current_mode_update", "available_commands_update",
        "agent_thought_chunk", "agent_message",
        "tool_call", "tool_call", "tool_call_update", "tool_call_update",
        "tool_call", "tool_call", "tool_call_update", "plan", "tool_call_update",
        "tool_call", "tool_call", "tool_call_update", "tool_call_update",
        "tool_call", "tool_call", "tool_call", "tool_call_update", "tool_call_update", "tool_call_update",
        "tool_call", "tool_call", "tool_call_update", "_posthog/task_notification", "tool_call_update",
        "agent_message", "_posthog/usage_update", "_posthog/turn_complete",
        "_posthog/sdk_session", "current_mode_update", "available_commands_update",
        "_posthog/usage_update", "_posthog/turn_complete",
    ]  # fmt: skip
    first = json.loads(told[0].text)
    assert first["type"] == "notification"
    assert first["timestamp"] == "2026-01-29T10:30:00.123Z"
    assert first["event_id"] == told[0].event_id == "1-1"
    assert first["notification"]["jsonrpc"] == "2.0"
    assert len({each.event_id for each in told}) == len(told)
    assert params(told, "_posthog/sdk_session")[0]["taskRunId"] == "run-1"
    assert [each["stopReason"] for each in params(told, "_posthog/turn_complete")] == ["end_turn", "cancelled"]
    assert params(told, "_posthog/usage_update")[0]["used"]["inputTokens"] > 0
    assert updates(told, "usage_update")[0]["used"] > 0


def test_each_call_of_a_tool_has_its_outcome() -> None:
    told = lines("conversation")
    calls = updates(told, "tool_call")
    outcomes = {each["toolCallId"]: each for each in updates(told, "tool_call_update")}
    assert {call["toolCallId"] for call in calls} == outcomes.keys()
    shown = {call["title"]: (call["kind"], outcomes[call["toolCallId"]]["status"]) for call in calls}
    assert shown["Write ./notes.md"] == ("edit", "completed")
    assert shown["cat notes.md; exit 3"] == ("execute", "failed")
    assert shown["Read notes.md"] == ("read", "completed")
    assert shown["Search three"] == ("search", "failed")
    edit = next(call for call in calls if call["title"] == "Edit notes.md")
    assert edit["content"] == [{"type": "diff", "path": "notes.md", "oldText": "two", "newText": "three"}]
    assert edit["locations"] == [{"path": "notes.md"}]
    nested = next(call for call in calls if call["title"] == "ls")
    around = next(call for call in calls if call["title"] == "Look around")
    assert nested["_meta"]["claudeCode"] == {"toolName": "Bash", "parentToolCallId": around["toolCallId"]}


def test_a_plan_is_told_whole() -> None:
    todos = [{"content": "Write", "status": "completed"}, {"content": "Read", "status": "elsewhere"}]
    block = {"type": "tool_use", "id": "t1", "name": "TodoWrite", "input": {"todos": todos}}
    told = notifications(entry(json.dumps({"type": "assistant", "message": {"content": [block]}})), RUN)
    assert updates(told, "plan") == [
        {
            "sessionUpdate": "plan",
            "entries": [
                {"content": "Write", "priority": "medium", "status": "completed"},
                {"content": "Read", "priority": "medium", "status": "pending"},
            ],
        }
    ]
    assert updates(lines("conversation"), "plan")[0]["entries"][0]["content"] == "Write the file"


def test_a_turn_that_fails_is_an_error_and_ends() -> None:
    told = lines("refused")
    assert params(told, "_posthog/error")[0]["message"] == "API Error: 400 This is not to be."
    assert params(told, "_posthog/turn_complete")[0]["stopReason"] == "error"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("staging", ["staging in_progress"]),
        ("provisioning", ["staging completed", "provisioning in_progress"]),
        ("ready", ["provisioning completed", "ready in_progress"]),
        ("running", ["ready completed", "_posthog/run_started"]),
        ("awaiting_decision", ["_posthog/console"]),
        ("completing", ["completing in_progress"]),
        ("completed", ["completing completed", "_posthog/task_complete"]),
        ("failed", ["completing failed", "_posthog/error", "_posthog/task_complete"]),
        ("failed_preserved", ["completing failed", "_posthog/error", "_posthog/task_complete"]),
        ("cancelled", ["completing completed", "_posthog/task_complete"]),
        ("of a newer process", ["_posthog/console"]),
    ],
)
def test_a_state_is_told_as_the_steps_of_a_card(state: str, expected: list[str]) -> None:
    told = event(type="state_change", state=state, message="So it is")
    shown = [
        f"{message['params']['step']} {message['params']['status']}"
        if message["method"] == "_posthog/progress"
        else message["method"]
        for message in messages(told)
    ]
    assert shown == expected


def test_what_a_user_says_is_a_prompt_and_an_update() -> None:
    prompt, said = messages(event(type="user_message", message="do it", message_id="m1"))
    assert (prompt["method"], prompt["id"]) == ("session/prompt", 7)
    assert prompt["params"]["prompt"] == [{"type": "text", "text": "do it"}]
    assert said["params"]["update"]["sessionUpdate"] == "user_message"
    assert said["params"]["update"]["content"] == {"type": "text", "text": "do it"}


def test_a_question_is_asked_live_and_noted_in_the_log() -> None:
    asked, noted = event(
        type="permission_request",
        request_id="r1",
        tool="Bash",
        input={"command": "make"},
        options=[
            {"id": "allow", "name": "Allow"},
            {"id": "allow_always", "name": "Always"},
            {"id": "deny", "name": "No"},
        ],
        message="Bash wants to run",
    )
    live = json.loads(asked.text)
    assert (live["type"], live["requestId"], live["toolCall"]["title"]) == ("permission_request", "r1", "make")
    assert [option["kind"] for option in live["options"]] == ["allow_once", "allow_always", "reject_once"]
    assert not asked.logged
    assert noted.logged
    assert noted.kind == "_posthog/permission_request"
    (answered,) = event(type="permission_resolved", request_id="r1", decision="deny", message="Nobody has answered.")
    assert params([answered], "_posthog/permission_resolved")[0]["optionId"] == "deny"


def test_lines_that_are_no_events_of_the_agent_are_for_people() -> None:
    assert params(notifications(entry("npm warn\n"), RUN), "_posthog/console") == [
        {"sessionId": "run-1", "level": "info", "message": "npm warn"}
    ]
    assert params(notifications(entry("boom\n", "stderr"), RUN), "_posthog/console")[0]["level"] == "warn"
    assert params(event(type="note", message="left out"), "_posthog/console")[0]["level"] == "warn"
    assert params(event(type="of a newer process", message="hello"), "_posthog/console")[0]["message"] == "hello"
    assert event(type="unused") == []
    assert notifications(entry("\n"), RUN) == []


def test_what_a_client_tells_of_its_own_run_stays_as_it_is() -> None:
    own = {"type": "notification", "timestamp": "2026-01-01T00:00:00Z", "notification": {"method": "_posthog/console"}}
    (told,) = notifications(entry(json.dumps(own), "told"), LOCAL)
    assert json.loads(told.text) == own | {"event_id": "7"}
    assert (told.event_id, told.kind, told.at) == ("7", "_posthog/console", datetime(2026, 1, 1, tzinfo=UTC))
    (named,) = notifications(entry(json.dumps(own | {"event_id": "mine"}), "told"), LOCAL)
    assert (json.loads(named.text)["event_id"], named.event_id) == ("mine", "7")
    (bare,) = notifications(entry('{"anything": 1}', "told"), LOCAL)
    assert (bare.kind, bare.at) == ("", None)
    assert event(LOCAL, type="state_change", state="completed", message="") == []


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("0", BEGINNING),
        ("7", Position(7)),
        ("7-2", Position(7, 2)),
        ("7-2.1769682600123", Position(7, 2)),
        ("7.1769682600123", Position(7)),
        # What other servers' streams give: a time in milliseconds and a number.
        ("1769682600123-0", BEGINNING),
        ("1769682600123-12", BEGINNING),
        ("1718-0", BEGINNING),
    ],
)
def test_an_id_names_where_a_client_stands(text: str, position: Position) -> None:
    assert parse_event_id(text) == position


@pytest.mark.parametrize("text", ["x", "-1", "7-", "7-x", "٣", "7 ", "9" * 30, "1769682600123-0-1"])
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_event_id(text)


def test_a_client_goes_on_strictly_behind_what_it_has() -> None:
    line = entry(json.dumps({"type": "state_change", "state": "ready", "message": ""}), "event")
    assert [each.event_id for each in notifications(line, RUN)] == ["7-1", "7-2"]
    assert [each.event_id for each in notifications(line, RUN, Position(7, 1))] == ["7-2"]
    assert notifications(line, RUN, Position(7, 2)) == []
    assert notifications(line, RUN, Position(7)) == []
    assert (Position(7, 1).after_entry, Position(7).after_entry) == (6, 7)


HOSTILE = {
    "deep": '{"type":"assistant","message":' + "[" * 50_000,
    "deep and closed": '{"type":"user","message":{"content":' + "[" * 20_000 + "]" * 20_000 + "}}",
    "many values": '{"type":"assistant","a":[' + "1," * 300_000 + "1]}",
    "long": '{"type":"assistant","a":"' + "x" * 5_000_000 + '"}',
    "half a character": '{"type":"assistant","message":{"content":[{"type":"text","text":"\\ud800"}]}}',
    "no number": '{"type":"result","subtype":"success","total_cost_usd":NaN}',
    "infinite": '{"type":"result","subtype":"success","total_cost_usd":1e999}',
    "long number": '{"type":"result","total_cost_usd":' + "9" * 5000 + "}",
    "NUL": '{"type":"assistant","message":{"content":[{"type":"text","text":"\\u0000"}]}}',
    "types": '{"type":["assistant"],"message":null}',
    "content": '{"type":"assistant","message":{"content":[null,1,"x",{"type":[]},{"type":"tool_use","id":1}]}}',
    "arguments": '{"type":"assistant","message":{"content":[{"type":"tool_use","id":"a","name":"Edit","input":[1]}]}}',
}


@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("stream", ["stdout", "told"])
def test_no_line_keeps_the_log_from_being_read(kind: str, stream: Stream) -> None:
    for told in notifications(entry(HOSTILE[kind], stream), RUN):
        json.loads(told.text, parse_constant=pytest.fail)
        told.text.encode()
        assert "\n" not in told.text


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["success", "text", "tool_use"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "id", "name", "input", "content", "text", "todos", "source", "file_path"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
FIELDS = [
    "subtype",
    "message",
    "usage",
    "session_id",
    "tool_use_result",
    "modelUsage",
    "errors",
    "options",
    "request_id",
]


@settings(max_examples=50)
@given(st.sampled_from(["system", "assistant", "user", "result", "permission_request", "user_message", "state_change"]),
       st.dictionaries(st.sampled_from(FIELDS), values))  # fmt: skip
def test_no_shape_of_a_line_is_an_error(kind: str, fields: dict[str, Any]) -> None:
    streams: tuple[Stream, ...] = ("stdout", "event")
    for stream in streams:
        for told in notifications(entry(json.dumps({"type": kind, **fields}), stream), RUN):
            json.loads(told.text)
