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
    assert len(text.encode()) < 200_000


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
    assert [str(rule) for rule in found.rules] == ["Bash"]


def test_rules_are_those_that_claude_code_suggests() -> None:
    rules = [{"toolName": "Bash", "ruleContent": "npm test"}]
    suggestions = [
        {"type": "addRules", "rules": rules, "behavior": "allow", "destination": "localSettings"},
        {"type": "setMode", "mode": "acceptEdits", "destination": "session"},
    ]
    assert [str(rule) for rule in asked(permission_suggestions=suggestions).rules] == ["Bash(npm test)"]
    assert [str(rule) for rule in asked(permission_suggestions=suggestions[1:]).rules] == ["Bash"]
    question = asked(tool_name="AskUserQuestion", permission_suggestions=suggestions)
    assert [option.id for option in question.options] == ["allow", "deny"]
