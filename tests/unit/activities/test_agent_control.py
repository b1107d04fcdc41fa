"""What is taken of the agent's word about what it asks: it passes through JSON, within limits, and holds no secret."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.agent.control import AgentControl
from storage.redaction import Redactor
from workflows.runs.steering.messages import AgentSaid, PermissionRequest

AT = datetime(2026, 1, 2, tzinfo=UTC)
REQUEST_BYTES = 60_000
# What one signal may have, of the 2 MiB that Temporal takes.
SIGNAL_BYTES = 1_300_000
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["\ud800", "x" * 50_000]),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5),
    max_leaves=30,
)


def taken(event: Any, redactor: Redactor | None = None) -> AgentSaid:
    control = AgentControl((redactor or Redactor({})).redact_text)
    control.take({"type": "control_request", **event}, AT, in_turn=True)
    return control.news()


def asked(**request: Any) -> PermissionRequest:
    (found,) = taken({"request_id": "a", "request": {"subtype": "can_use_tool", "tool_name": "Bash", **request}}).asked
    return found


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(["control_request", "control_response", "control_cancel_request", "user"]),
            "request_id": VALUES,
            "message": VALUES,
            "response": VALUES | st.fixed_dictionaries({"request_id": VALUES, "subtype": VALUES, "error": VALUES}),
            "request": VALUES
            | st.fixed_dictionaries(
                {
                    "subtype": st.just("can_use_tool"),
                    "tool_name": VALUES,
                    "input": VALUES,
                    "permission_suggestions": VALUES,
                    "tool_use_id": VALUES,
                    "description": VALUES,
                }
            ),
        },
    )
)
def test_whatever_is_said_passes_through_json_within_limits(event: dict[str, Any]) -> None:
    said = taken({"request_id": "a", **event})
    text = said.model_dump_json()
    assert AgentSaid.model_validate_json(text) == said
    assert len(text.encode()) < REQUEST_BYTES


@pytest.mark.parametrize(
    ("given", "cut"),
    [
        ({"command": "id"}, False),
        ({"content": "x" * 5_000}, True),
        ({"list": list(range(200))}, True),
        ({str(number): "y" * 3_000 for number in range(50)}, True),
        ({"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": {"i": {"j": {"k": 1}}}}}}}}}}}, True),
    ],
)
def test_what_does_not_fit_is_cut_and_said_to_be(given: dict[str, Any], cut: bool) -> None:
    request = asked(input=given)
    assert request.input_cut is cut
    assert cut or request.input == given
    assert len(json.dumps(request.input)) < 40_000


WIDE = "\x01" * 699
HOSTILE: dict[str, dict[str, Any]] = {
    "rules": {
        "permission_suggestions": [
            {"type": "addRules", "behavior": "allow", "rules": [{"toolName": "x" * 200, "ruleContent": text}] * 20}
            for text in ["y" * 499, WIDE[:499]] * 10
        ]
    },
    "texts": {"input": {f"{WIDE}{number}": WIDE for number in range(100)}, "tool_name": WIDE, "description": WIDE},
    "wide texts": {"input": {"a": ["\u4e2d" * 5_000] * 100}},
    "lists": {"input": {"a": [[[[]] * 100] * 100] * 100}},
    "numbers": {"input": {"a": [[[-1.2345678901234567e-300] * 100] * 100] * 100}},
    "names": {"input": {"a": [{str(number): None for number in range(100)}] * 100}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_an_agent_asks_at_once_fits_into_its_signals(name: str) -> None:
    control = AgentControl()
    request = {"subtype": "can_use_tool", "tool_name": "Bash", **HOSTILE[name]}
    for number in range(50):
        control.take({"type": "control_request", "request_id": f"{number:0200}", "request": request}, AT, in_turn=True)
    told = []
    while (said := control.news()) != AgentSaid():
        told.append(said)
        assert len(said.model_dump_json().encode()) < SIGNAL_BYTES
    found = [each for said in told for each in said.asked]
    assert len(found) == 50
    assert {each.input_cut or each.rules_cut for each in found} == {True}
    assert max(len(each.model_dump_json().encode()) for each in found) < REQUEST_BYTES


def test_what_an_agent_confirms_and_takes_back_at_once_fits_into_its_signals() -> None:
    control = AgentControl()
    for number in range(2_000):
        answer = {"subtype": "error", "request_id": f"interrupt-{number:0190}", "error": WIDE}
        control.take({"type": "control_response", "response": answer}, AT, in_turn=True)
        asked = {"subtype": "can_use_tool", "tool_name": "Bash", "tool_use_id": "t"}
        name = f"{number:0200}"
        control.take({"type": "control_request", "request_id": name, "request": asked}, AT, in_turn=True)
        control.take({"type": "control_cancel_request", "request_id": name}, AT, in_turn=True)
    told = []
    while (said := control.news()) != AgentSaid():
        told.append(said)
        assert len(said.model_dump_json().encode()) < SIGNAL_BYTES / 10
    assert len({each.id for said in told for each in said.answered}) == 1_200
    assert len({each for said in told for each in said.withdrawn}) == 500


def test_a_request_holds_no_secret() -> None:
    redactor = Redactor({"TOKEN": "canary-7c1f"})
    rules = [{"toolName": "Bash", "ruleContent": "curl canary-7c1f"}]
    request = {
        "subtype": "can_use_tool",
        "tool_name": "Bash",
        "description": "use canary-7c1f",
        "input": {"command": "curl canary-7c1f", "canary-7c1f": ["canary-7c1f"]},
        "permission_suggestions": [{"type": "addRules", "behavior": "allow", "rules": rules}],
    }
    (found,) = taken({"request_id": "a", "request": request}, redactor).asked
    assert "canary-7c1f" not in found.model_dump_json()
    # A rule with a hole would allow something else.
    assert ([str(rule) for rule in found.rules], found.rules_cut) == (["Bash"], True)


def test_rules_are_those_that_claude_code_suggests() -> None:
    rules = [{"toolName": "Bash", "ruleContent": "npm test"}]
    suggestions = [
        {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "localSettings"},
        {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
    ]
    request = asked(permission_suggestions=suggestions)
    assert ([str(rule) for rule in request.rules], request.rules_cut) == (["Bash(npm test)"], False)
    assert [str(rule) for rule in asked(permission_suggestions=suggestions[1:]).rules] == ["Bash"]
    question = asked(tool_name="AskUserQuestion", permission_suggestions=suggestions)
    assert [option.id for option in question.options] == ["allow", "deny"]
