"""Prices: every model finds its own, no answer costs less than nothing, and a table that is wrong says where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.errors import InvalidParameter
from worker.gateway.prices import BUILT_IN, load_prices
from worker.gateway.usage import TOKEN_FIELDS, UsageReader

TABLE = load_prices(None)
MILLION = {"input_tokens": 1_000_000}

usages = st.fixed_dictionaries({field: st.integers(0, 10**7) for field in TOKEN_FIELDS})


@pytest.mark.parametrize(
    ("model", "dollars"),
    [
        ("claude-opus-4-5-20251101", 5),
        ("claude-opus-4-5", 5),
        ("claude-opus-4-5[1m]", 5),
        ("claude-opus-4-1-20250805", 15),
        ("claude-opus-4-20250514", 15),
        ("claude-opus-5-5", 4),
        ("claude-opus-5", 5),
        ("Claude-Sonnet-5", 2),
        ("claude-haiku-4-5@20251001", 1),
        ("us.anthropic.claude-haiku-4-5-20251001-v1:0", 1),
        ("claude-3-5-haiku-latest", 0.8),
        ("taskyard-scripted-model", 0),
        ("claude-opus-9", None),
        ("claude-opus-4-99", None),
        ("", None),
    ],
)
def test_a_model_is_found_by_its_name_whatever_its_ending(model: str, dollars: float | None) -> None:
    assert TABLE.cost(model, MILLION) == dollars


def test_a_long_prompt_has_its_own_prices_and_the_cache_counts_for_its_length() -> None:
    for model, over, short, long in (("claude-sonnet-4-5", 200_000, 3, 6), ("claude-haiku-5-5", 100_000, 0.1, 0.5)):
        assert TABLE.cost(model, {"input_tokens": over}) == pytest.approx(over * short / 1e6)
        assert TABLE.cost(model, {"input_tokens": over + 1}) == pytest.approx((over + 1) * long / 1e6)
        cached = {"input_tokens": 0, "cache_read_input_tokens": over + 1}
        assert TABLE.cost(model, cached) == pytest.approx((over + 1) * long / 10 / 1e6)


def test_what_stays_in_the_cache_for_an_hour_costs_more() -> None:
    usage = {"cache_creation_input_tokens": 1_000_000}
    assert TABLE.cost("claude-opus-4-5", usage) == 6.25
    assert TABLE.cost("claude-opus-4-5", usage, 1_000_000) == 10
    assert TABLE.cost("claude-opus-4-5", usage, 10**9) == 10


@given(
    usage=usages, more=usages, hour=st.integers(0, 10**8), model=st.sampled_from(["claude-sonnet-4-5", "claude-opus-5"])
)
def test_more_tokens_never_cost_less_and_nothing_more_than_the_dearest(usage, more, hour, model) -> None:
    cost = TABLE.cost(model, usage, hour)
    assert cost is not None
    assert 0 <= cost <= TABLE.most(usage, hour) + 1e-9
    larger = TABLE.cost(model, {field: usage[field] + more[field] for field in TOKEN_FIELDS}, hour)
    assert larger is not None
    assert larger >= cost - 1e-9


WRONG = [
    ("prices: [", "YAML"),
    ("as_of: 2026-01-01\nprices: []\n", "prices"),
    ("as_of: yesterday\nprices: [{models: [a], input: 1}]\n", "as_of"),
    (BUILT_IN.read_text().replace("input: 10", "input: -1", 1), "prices.0.input"),
    (BUILT_IN.read_text().replace("input: 10", "input: .nan", 1), "prices.0.input"),
    (BUILT_IN.read_text().replace("input: 10", "inptu: 10", 1), "prices.0.inptu"),
    ("", "the file"),
]


@pytest.mark.parametrize(("text", "place"), WRONG)
def test_a_table_that_is_wrong_is_refused_with_the_place(tmp_path: Path, text: str, place: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InvalidParameter, match=place):
        load_prices(path)
    with pytest.raises(InvalidParameter, match="cannot be read"):
        load_prices(tmp_path / "none")


@pytest.mark.parametrize(
    ("kind", "come", "counts"),
    [
        ("text/event-stream", b"", (10_000, 0)),
        ("application/json", b"", (10_000, 0)),
        ("application/json", b'{"content": "' + b"x" * 40_000, (10_000, 10_003)),
        ("application/json", b'{"content": "told, and no word of what it came to", "usage": {}}', (10_000, 16)),
        ("application/json", b'{"usage": {"input_tokens": 7, "output_tokens": 0}}', (7, 0)),
    ],
    ids=["nothing of a stream", "nothing", "a part", "no usage", "usage"],
)
def test_an_answer_that_does_not_say_what_it_came_to_is_counted_by_its_length(
    kind: str, come: bytes, counts: tuple[int, int]
) -> None:
    reader = UsageReader(kind, "any", 40_000)
    reader.feed(come)
    usage = reader.usage()
    assert (usage["input_tokens"], usage["output_tokens"]) == counts


def test_text_of_a_stream_that_was_left_is_counted_by_its_length() -> None:
    def line(kind: str, rest: str) -> bytes:
        return f'event: {kind}\ndata: {{"type":"{kind}",{rest}}}\n\n'.encode()

    delta = '"index":0,"delta":{"type":"text_delta","text":"' + "word " * 200 + '"}'
    reader = UsageReader("text/event-stream", "asked-for")
    reader.feed(line("message_start", '"message":{"model":"answers","usage":{"input_tokens":9,"output_tokens":1}}'))
    assert (reader.model, reader.begun, reader.usage()["output_tokens"]) == ("answers", True, 1)
    for _ in range(4):
        reader.feed(line("content_block_delta", delta))
    assert 800 <= reader.usage()["output_tokens"] <= 1200
    reader.feed(line("message_delta", '"usage":{"output_tokens":812}'))
    assert reader.usage()["output_tokens"] == 812
