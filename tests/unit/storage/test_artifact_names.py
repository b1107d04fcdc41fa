"""Names of artifacts over arbitrary bytes: no two share one, each gives its path back, none is one of the run's own."""

from __future__ import annotations

import json
import os
import unicodedata
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.names import (
    METADATA,
    as_text,
    names_of,
    patch_name,
    redacted_text,
    shown_path,
    untracked_name,
    uploaded_name,
)
from storage.redaction import Redactor

TASK = "fix-1"
NOTHING = Redactor({})
OWN = {
    METADATA,
    patch_name(TASK),
    untracked_name(TASK),
    f"{TASK}.bundle",
    uploaded_name("0" * 32, "a").partition("/")[0],
}
# Bytes that mean something somewhere on the way, as often as all the others together.
_TELLING = [
    b"%",
    b"%41",
    b"%0A",
    b"\n",
    b"\r",
    b"\x1b[31m",
    b"\\",
    b"?",
    b"#",
    b";",
    b" ",
    b".",
    b"..",
    b"\xff",
    b"[redacted:A]",
]
_TWINS = [
    "é".encode(),
    "e\u0301".encode(),
    "\u212a".encode(),
    b"K",
    b"k",
    "ﬀ".encode(),
    "\u200b".encode(),
    "\ufffd".encode(),
]
piece = st.one_of(
    st.sampled_from(_TELLING + _TWINS), st.binary(min_size=1, max_size=3), st.sampled_from(sorted(map(str.encode, OWN)))
)
part = st.lists(piece, min_size=1, max_size=5).map(b"".join).map(lambda raw: raw.translate(None, b"/\0"))
path = (
    st.lists(part.filter(lambda raw: raw not in {b"", b".", b".."}), min_size=1, max_size=3)
    .map(b"/".join)
    .map(os.fsdecode)
)


@given(st.sets(path, max_size=12))
def test_every_path_has_a_name_of_its_own_that_gives_it_back(paths: set[str]) -> None:
    names = names_of(paths, TASK, NOTHING)
    assert {unquote_to_bytes(name): path for path, name in names.items()} == {os.fsencode(path): path for path in paths}
    assert len({unicodedata.normalize("NFC", name) for name in names.values()}) == len(paths)
    for path, name in names.items():
        assert names_of([path], TASK, NOTHING) == {path: name}
        assert name.partition("/")[0].lower() not in OWN
        assert json.loads(json.dumps(name).encode()) == name
        assert not any(unicodedata.category(letter) in {"Cc", "Zl", "Zp"} for letter in name)
        assert "\\" not in name


plain_part = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="%\\[/"), min_size=1)


@given(st.lists(plain_part.filter(lambda part: part not in {".", ".."}), min_size=1, max_size=3).map("/".join))
def test_a_plain_path_is_its_own_name(path: str) -> None:
    if not path.lower().startswith((TASK, METADATA)):
        assert names_of([path], TASK, NOTHING) == {path: path}


@given(path)
def test_a_path_is_listed_as_the_file_is_called(path: str) -> None:
    try:
        expected = os.fsencode(path).decode()
    except UnicodeDecodeError:
        expected = as_text(path)
    assert shown_path(path, NOTHING) == expected


@given(
    st.sets(
        st.lists(
            st.sampled_from(["first line of it", "second line of it", "tok-12345", "a", "[redacted:", "A].txt"])
        ).map("".join),
        max_size=8,
    )
)
def test_names_that_only_a_secret_told_apart_stay_apart_and_do_not_tell_it(paths: set[str]) -> None:
    redactor = Redactor({"A": "first line of it\nsecond line of it", "B": "tok-12345"})
    paths = {path for path in paths if path}
    names = names_of(paths, TASK, redactor)
    assert len(set(names.values())) == len(paths)
    for name in names.values():
        assert redactor.redact_text(name) == name


@pytest.mark.parametrize("raw", [b"x" * 255, b"\xff" * 255, b"\n" * 255])
def test_the_longest_names_are_told_whole(raw: bytes) -> None:
    (name,) = names_of([os.fsdecode(raw)], TASK, NOTHING).values()
    assert unquote_to_bytes(name) == raw


@given(
    path=st.binary(min_size=1, max_size=20).filter(lambda raw: b"\0" not in raw),
    value=st.text(st.sampled_from("a\\%4\u0301 \u200b/\n"), min_size=4, max_size=12).filter(
        lambda text: len(text.strip()) >= 4
    ),
)
def test_a_secret_in_a_path_is_replaced_before_its_letters_are_written_otherwise(path: bytes, value: str) -> None:
    text = redacted_text(os.fsdecode(path + value.encode() + b"x"), Redactor({"TOKEN": value}))

    assert value.strip() not in text
    assert "[redacted:TOKEN]" in text
