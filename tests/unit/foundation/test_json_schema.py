"""JSON Schemas of users, and values of guests that are held to them."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.schemas.json_schema import fault, misfit

# Each level asks for the next one twice.
DOUBLING = {
    "type": "object",
    "$ref": "#/$defs/0",
    "$defs": {
        **{str(level): {"allOf": [{"$ref": f"#/$defs/{level + 1}"}] * 2} for level in range(60)},
        "60": {"minProperties": 0},
    },
}
ANSWER = {
    "type": "object",
    "properties": {"answer": {"type": "integer"}, "word": {"pattern": "^(a+)+$"}},
    "required": ["answer"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"answer": 42}, None),
        ({"answer": "42"}, '"42" is not of type "integer" (at ["answer"])'),
        ({}, '"answer" is a required property'),
        ({"answer": 1, "more": 2}, "Additional properties are not allowed"),
        ([], "[] is not of type"),
        (None, "null is not of type"),
        ({"answer": 1, "word": "a" * 50_000 + "b"}, "aaaa"),
        ({"answer": "x" * 100_000}, "…"),
    ],
)
def test_a_value_that_does_not_fit_is_told_in_one_short_line(value: Any, said: str | None) -> None:
    told = misfit(ANSWER, value)
    assert told == said if said is None else told is not None and said in told and len(told) <= 400 and "\n" not in told


def test_a_schema_that_asks_for_endless_comparisons_comes_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.schemas.json_schema._SECONDS", 1.0)
    assert fault(DOUBLING) is None
    told = misfit(DOUBLING, {})
    assert told is not None
    assert "could not be told" in told


def test_a_value_that_is_no_json_is_told() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert misfit(ANSWER, deep)
    assert misfit(ANSWER, {"answer": {1, 2}})
