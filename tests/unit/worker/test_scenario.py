"""Scenario files and the scripted model that plays them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import InvalidParameter
from worker.scripted_model.scenario import (
    BUILT_IN,
    Scenario,
    Turn,
    choose_scenario,
    load_scenarios,
    next_cue,
    read_conversation,
)
from worker.scripted_model.server import create_model_app

TEST_SCENARIOS = Path(__file__).parents[2] / "scenarios"
MID_TURN = (
    "<system-reminder>\nThe user sent a new message while you were working:\n{}\n\n"
    "IMPORTANT: After completing your current task, you MUST address the user's message above.\n</system-reminder>"
)
SCENARIO = Scenario.model_validate(
    {
        "name": "tested",
        "when": "play it",
        "turns": [
            {"text": "step {{n}}", "repeat": 3, "tools": [{"name": "Bash", "input": {"command": "echo {{n}}"}}]},
            {"text": "done"},
            {"text": "after the first further message"},
        ],
        "on_message": [{"match": "stop|halt", "turns": [{"text": "stopping"}, {"text": "stopped"}]}],
    }
)


def user(*texts: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": text} for text in texts]}


def tool_result(text: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "toolu_1", "content": text}]}


def assistant(text: str = "said") -> dict[str, Any]:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def played(*messages: dict[str, Any]) -> str | None:
    return next_cue(SCENARIO, read_conversation(messages)).turn.text


def test_conversation_decides_the_turn():
    reminder = "<system-reminder>\nToday is a day.\n</system-reminder>"
    start = user(reminder, "please play it")
    repeated = [next_cue(SCENARIO, read_conversation([start, *[assistant(), tool_result("ok")] * n])) for n in range(3)]
    assert [(cue.turn.text, cue.repetition) for cue in repeated] == [("step {{n}}", n) for n in (1, 2, 3)]
    assert played(start, *[assistant(), tool_result("ok")] * 3) == "done"
    assert played(start, *[assistant(), tool_result("ok")] * 3, assistant(), user("and now?")).startswith("after the")


def test_conversation_beyond_the_last_turn_ends_politely():
    assert "no further turns" in str(played(user("play it"), *[assistant(), user("go on")] * 9))


def test_further_message_that_matches_replaces_what_is_left():
    start = [user("please play it, never stop"), assistant()]
    arrived = [*start, tool_result("ok\n\n" + MID_TURN.format("halt now"))]
    assert played(*start, tool_result("ok")) == "step {{n}}"
    assert played(*arrived) == "stopping"
    assert played(*arrived, assistant(), tool_result("ok")) == "stopped"
    assert played(*start, user("other\nhalt, please")) == "stopping"


def test_words_of_tools_and_reminders_are_not_the_users():
    start = [user("play it"), assistant()]
    assert played(*start, tool_result("stop")) == "step {{n}}"
    assert played(*start, user("<system-reminder>do not stop</system-reminder>")) == "step {{n}}"


@given(st.integers(0, 40))
def test_two_assistant_messages_in_a_row_are_one_turn(count):
    conversation = read_conversation([user("play it"), *[assistant(), assistant(), tool_result("ok")] * count])
    assert conversation.turns == count


def test_scenario_is_chosen_by_the_first_message():
    general = Scenario(name="general", turns=[Turn(text="anything")])
    assert choose_scenario([general, SCENARIO], "now play it").name == "tested"
    assert choose_scenario([general, SCENARIO], "something else").name == "general"
    assert choose_scenario([SCENARIO], "something else").name == "fallback"


@pytest.mark.parametrize("directory", [BUILT_IN, TEST_SCENARIOS])
def test_shipped_scenarios_are_valid_and_told_apart(directory):
    scenarios = load_scenarios(directory)
    for scenario in scenarios:
        assert choose_scenario(scenarios, f"Task: {scenario.when}, please.").name == scenario.name


def test_named_file_comes_before_the_built_in_ones(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text('{name: mine, when: "The test suite of this package fails", turns: [{text: mine}]}')
    assert choose_scenario(load_scenarios(file), "The test suite of this package fails.").name == "mine"
    assert choose_scenario(load_scenarios(None), "The test suite of this package fails.").name == "hello"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("name: a", "turns: Field required"),
        ("name: a\nturns: []", "turns"),
        ("name: a\nturns: [{}]", "turns.0: a turn needs 'text', 'tools' or 'error'"),
        ("name: a\nturns: [{text: b, txt: c}]", "turns.0.txt"),
        ("name: a\nturns: [{text: b, error: {status: 500}}]", "has neither 'text' nor 'tools'"),
        ("name: a\nturns: [{error: {status: 200}}]", "turns.0.error.status"),
        ("name: a\nturns: [{text: b}]\non_message: [{match: '(', turns: [{text: c}]}]", "not a regular expression"),
        ("- a", "the file"),
        ("a: [", "is not YAML"),
    ],
)
def test_bad_file_is_refused_with_its_name_and_field(tmp_path, text, complaint):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    with pytest.raises(InvalidParameter, match=re.escape(complaint)) as refusal:
        load_scenarios(tmp_path)
    assert str(file) in refusal.value.message


def test_place_without_scenarios_is_refused(tmp_path):
    with pytest.raises(InvalidParameter, match=r"holds no \.yaml file"):
        load_scenarios(tmp_path)
    with pytest.raises(InvalidParameter, match="cannot be read"):
        load_scenarios(tmp_path / "none.yaml")


def model(*scenarios: Scenario) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(create_model_app(scenarios)), base_url="http://model")


def asked(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "any", "max_tokens": 100, "messages": messages, "tools": [{"name": "Bash"}], **more}


def events(text: str) -> list[dict[str, Any]]:
    pairs = [block.split("\n", 1) for block in text.strip().split("\n\n")]
    parsed = [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in pairs]
    assert all(kind == data["type"] for kind, data in parsed)
    return [data for _, data in parsed]


async def test_streamed_answer_has_the_events_of_the_api_and_the_content_of_the_whole_one():
    async with model(SCENARIO) as client:
        whole = (await client.post("/v1/messages", json=asked(user("play it")))).json()
        answer = await client.post("/v1/messages", json=asked(user("play it"), stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-taskyard-model"] == "scripted"
    said = events(answer.text)
    kinds = [event["type"] for event in said]
    assert kinds[:4] == ["message_start", "content_block_start", "ping", "content_block_delta"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert said[0]["message"]["model"] == whole["model"] == "taskyard-scripted-model"
    assert said[0]["message"]["id"] == whole["id"]
    assert said[-2]["delta"]["stop_reason"] == whole["stop_reason"] == "tool_use"
    assert said[-2]["usage"]["output_tokens"] == whole["usage"]["output_tokens"] > 0
    deltas = [event["delta"] for event in said if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == whole["content"][0]["text"] == "step 1"
    tool = json.loads("".join(delta.get("partial_json", "") for delta in deltas))
    assert tool == whole["content"][1]["input"] == {"command": "echo 1"}


async def test_ids_are_the_same_for_the_same_request_and_differ_between_turns():
    async with model(SCENARIO) as client:
        requests = [asked(user("play it"), *[assistant(), tool_result("ok")] * turns) for turns in (0, 0, 1, 2)]
        answers = [(await client.post("/v1/messages", json=request)).json() for request in requests]
    assert answers[0] == answers[1]
    assert len({answer["id"] for answer in answers}) == 3
    assert len({answer["content"][1]["id"] for answer in answers}) == 3


async def test_request_without_tools_is_answered_beside_the_script():
    schema = {"format": {"type": "json_schema", "schema": {"properties": {"title": {"type": "string"}}}}}
    async with model(SCENARIO) as client:
        plain = await client.post("/v1/messages", json=asked(user("play it"), tools=[]))
        shaped = await client.post("/v1/messages", json=asked(user("play it"), tools=[], output_config=schema))
    assert plain.json()["content"][0]["text"] == "Scripted"
    assert json.loads(shaped.json()["content"][0]["text"]) == {"title": "Scripted"}
    assert plain.json()["stop_reason"] == "end_turn"


async def test_error_turn_and_bad_requests_are_errors_of_the_api():
    failing = Scenario.model_validate(
        {"name": "f", "turns": [{"error": {"status": 529, "type": "overloaded_error", "message": "Overloaded"}}]}
    )
    async with model(failing) as client:
        answer = await client.post("/v1/messages", json=asked(user("hello"), stream=True))
        bad = [
            await client.post("/v1/messages", content=content)
            for content in (b"{", b"[]", b'{"messages": []}', b"null")
        ]
    assert answer.status_code == 529
    assert answer.json() == {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert [(refusal.status_code, refusal.json()["error"]["type"]) for refusal in bad] == [
        (400, "invalid_request_error")
    ] * 4


async def test_delay_spreads_the_stream_over_pings():
    slow = Scenario(name="slow", turns=[Turn(text="x", delay=1.2)])
    async with model(slow) as client:
        answer = await client.post("/v1/messages", json=asked(user("hello"), stream=True))
    assert [event["type"] for event in events(answer.text)].count("ping") == 2


async def test_model_says_what_it_is():
    async with model(SCENARIO) as client:
        about = await client.get("/")
        assert (await client.head("/")).status_code == 200
        assert (await client.post("/v1/messages/count_tokens", json=asked(user("hello")))).json()["input_tokens"] > 0
    assert "Scripted model" in about.json()["about"]
    assert about.headers["x-taskyard-model"] == "scripted"
