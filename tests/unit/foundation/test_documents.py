"""YAML and JSON are read by one schema, whole or not at all, and at a cost that their size bounds."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.documents import MAX_DEPTH, MAX_VALUES, Document, Unreadable, read_json, read_yaml, text_of

READERS = [read_json, read_yaml]
PLAIN_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20)
KEYS = st.text("abcdefgh", min_size=1, max_size=3)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | PLAIN_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=50)
@given(VALUES)
def test_what_is_written_is_read(data: Any) -> None:
    for reader in READERS:
        assert reader(json.dumps(data, ensure_ascii=False)) == Document(data)


@settings(max_examples=50)
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=4), st.data())
def test_a_key_that_is_given_twice_is_told_with_its_place(data: dict[str, Any], draw: st.DataObject) -> None:
    # Down into the data, as far as chance goes, to a mapping of which one key is written once more.
    way: list[str] = []
    part: Any = data
    while True:
        key = draw.draw(st.sampled_from(sorted(part)))
        way.append(key)
        if not isinstance(part[key], dict) or not part[key] or draw.draw(st.booleans()):
            break
        part = part[key]
    twice = "".join(f'{{"{key}":' for key in way) + f'1,"{way[-1]}":2' + "}" * len(way)
    for reader in READERS:
        faults = [(fault.field, fault.validation) for fault in reader(twice).faults]
        assert faults == [(".".join(way), "duplicate")]


def test_every_repeated_key_is_told_at_once_and_yaml_says_in_which_lines() -> None:
    found = read_yaml("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\na: 2\n")
    assert {fault.field: fault.message for fault in found.faults} == {
        "b.c": "is given twice, in lines 3 and 5; keep one of them",
        "a": "is given twice, in lines 1 and 6; keep one of them",
    }
    assert read_yaml("1: a\n'1': b").faults[0].field == "1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("12:30:45", "12:30:45"), ("1:30", "1:30"), ("yes", "yes"), ("no", "no"), ("on", "on"), ("off", "off"),
        ("1_000", "1_000"), ("2026-01-29", "2026-01-29"), ("2026-01-29T10:30:00Z", "2026-01-29T10:30:00Z"), ("=", "="),
        ("0b1", "0b1"), ("true", True), ("False", False), ("~", None), ("", None), ("Null", None), ("'true'", "true"),
        ("!!str 12", "12"), ("!!int '12'", 12), ("0o14", 12), ("0x1F", 31), ("0644", 644), ("+1", 1), ("1e3", 1000.0),
        (".5", 0.5), ("1.10", 1.1), ("1.2.3", "1.2.3"), ("-", [None]), (">\n  a\n  b\n", "a b\n"), ("&a b", "b"),
    ],
)  # fmt: skip
def test_yaml_is_read_by_the_core_schema(written: str, meant: Any) -> None:
    read = read_yaml(f"key: {written}" if meant != [None] else f"key:\n {written}").data["key"]
    assert (read, type(read)) == (meant, type(meant))


def test_aliases_and_merges_are_read_and_what_is_written_wins() -> None:
    aliases = "one: &one {a: 1, b: 2}\nlist: [*one, *one]\n"
    merges = "two: {<<: *one, b: 3}\nthree: {<<: [{a: 4}, *one], c: 5}\nfour: {'<<': 1}"
    assert read_yaml(aliases + merges).data == {
        "one": {"a": 1, "b": 2},
        "list": [{"a": 1, "b": 2}, {"a": 1, "b": 2}],
        "two": {"a": 1, "b": 3},
        "three": {"a": 4, "b": 2, "c": 5},
        "four": {"<<": 1},
    }


DOUBLING = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
DEEPENING = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, MAX_DEPTH + 2))
MERGING = "a: &a {" + ", ".join(f"k{n}: 1" for n in range(1000)) + "}\nb:\n" + "- {<<: *a}\n" * 100
HOSTILE_YAML = {
    "sexagesimal": "a: " + "[" + ",".join(["59:" * 100 + "59"] * MAX_VALUES) + "]",
    "small lists": "a: [" + "[1]," * MAX_VALUES + "1]",
    "keys": "".join(f"k{n}: 1\n" for n in range(MAX_VALUES)),
    "anchors": "".join(f"- &a{n} 1\n" for n in range(MAX_VALUES)),
    "doubling aliases": DOUBLING,
    "deepening aliases": DEEPENING,
    "merges": MERGING,
    "alias of itself": "a: &a [*a]",
    "flow depth": "[" * 100_000,
    "block depth": "- " * 100_000,
    "question marks": "? " * 100_000,
    "braces": "{" * 100_000,
    "documents": "---\n" * 100_000,
    "tag": "a: !!python/object/apply:os.system [x]",
    "own tag": "a: !secret x",
    "timestamp tag": "a: !!timestamp 2026-01-29",
    "wrong tag": "a: !!int x",
    "key that is a list": "? [a]\n: b",
    "merge of a number": "<<: 3",
    "unclosed": "a: [",
    "tab": "\ta: b",
    "control character": "a: \x1b[31m",
    "half a character": "a: \ud800",
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_YAML.values(), ids=HOSTILE_YAML)
def test_yaml_that_would_cost_more_than_it_says_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_yaml(text)
    assert len(str(refused.value)) < 200


HOSTILE_JSON = {
    "depth of objects": '{"a":' * 5000,
    "depth of lists": "[" * 100_000,
    "closed depth": "[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2),
    "values": "[" + "1," * MAX_VALUES + "1]",
    "empty objects": "[" + "{}," * MAX_VALUES + "{}]",
    "open text of quotes": '{"a": "' + '\\"' * 500_000,
    "nothing": "",
    "two values": "{} {}",
    "words": "just words",
}


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_json_that_would_cost_more_than_it_says_or_is_none_is_refused(text: str) -> None:
    with pytest.raises(Unreadable) as refused:
        read_json(text)
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("reader", READERS)
def test_long_text_with_much_punctuation_is_no_long_list(reader: Any) -> None:
    text = '[{,"\\' * MAX_VALUES
    assert reader(json.dumps({"a": text})).data == {"a": text}


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        (read_json, "NaN"), (read_json, "-Infinity"), (read_json, "1e999"), (read_json, "9" * 5000),
        (read_json, "9" * 30), (read_json, '"\\u0000"'), (read_json, '"\\ud800"'), (read_json, '{"\\ud800": 1}'),
        (read_yaml, ".nan"), (read_yaml, "-.inf"), (read_yaml, "1e999"), (read_yaml, "9" * 30), (read_yaml, '"\\0"'),
    ],
)  # fmt: skip
def test_what_nothing_could_hold_is_told_with_its_place(reader: Any, value: str) -> None:
    document = reader(f'{{"a": [1, {value}]}}')
    assert [fault.field for fault in document.faults] == ["a[1]"]


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_utf_8_or_says_what_it_is(codec: str) -> None:
    assert text_of("ä: 1".encode(codec)) == "ä: 1"


@pytest.mark.parametrize(
    "body", [b"\xff", "ä".encode("latin-1"), "a: 1".encode("utf-32-le")[:3] + b"\x80", b"\xff\xfea"]
)
def test_other_bytes_are_no_text(body: bytes) -> None:
    with pytest.raises(Unreadable):
        text_of(body)


@given(st.binary(max_size=200), st.sampled_from(READERS))
def test_any_bytes_are_read_or_refused(body: bytes, reader: Any) -> None:
    try:
        document = reader(text_of(body))
    except Unreadable:
        return
    assert document.data is None or isinstance(document.data, str | int | float | list | dict)
    assert not isinstance(document.data, float) or math.isfinite(document.data) or document.faults


@given(st.text("abc", min_size=8, max_size=8).map(lambda text: f"canary{text}"))
def test_no_refusal_repeats_what_was_written(canary: str) -> None:
    for reader, text in (
        (read_yaml, f"a: '{canary}\nb: ["), (read_yaml, f"a: b: {canary}"), (read_yaml, f"a: *{canary}"),
        (read_yaml, f"a: !{canary} x"), (read_yaml, f"@{canary}"), (read_json, f'{{"a": {canary}'),
        (read_json, f'{{"a": "{canary}'), (read_json, f'{{"a": "{canary}\\x"}}'),
    ):  # fmt: skip
        with pytest.raises(Unreadable) as refused:
            reader(text)
        assert canary not in str(refused.value)
