"""Placeholders and values are found wherever they stand and however the bytes are cut, and nothing else is changed."""

from __future__ import annotations

import base64
import itertools
import json
import string
from collections.abc import AsyncIterator
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.machine.injection import InjectedSecret, new_placeholder
from worker.egress.injection.placeholders import Echoes, PlaceholderSearch


def secret(value: str, name: str = "TOKEN") -> InjectedSecret:
    return InjectedSecret(name, value, new_placeholder(value), (), "Authorization", "Bearer {}")


TOKEN, OTHER = secret("ghx_" + "aB3" * 13), secret("s3cr3t/with+signs==", "OTHER")
SEARCH, ECHOES = PlaceholderSearch([TOKEN, OTHER]), Echoes([TOKEN, OTHER])

FORMS = {
    "plain": str,
    "JSON": json.dumps,
    "JSON in JSON": lambda text: json.dumps(json.dumps(text)),
    "URL": lambda text: quote(text, safe=""),
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "base64, one further": lambda text: base64.b64encode(b"a" + text.encode() + b"z").decode(),
    "base64, two further": lambda text: base64.b64encode(b"ab" + text.encode() + b"yz").decode(),
    "base64 of URLs": lambda text: base64.urlsafe_b64encode(b"?>" + text.encode()).decode(),
}
around = st.binary(max_size=80) | st.text(string.ascii_letters + "-+/=", max_size=80).map(str.encode)
cuts = st.lists(st.integers(0, 400), max_size=6)


def pieces(data: bytes, at: list[int]) -> list[bytes]:
    places = sorted({0, len(data), *(place % (len(data) + 1) for place in at)})
    return [data[begin:end] for begin, end in itertools.pairwise(places)]


@given(around, around, cuts, st.sampled_from(sorted(FORMS)), st.sampled_from([TOKEN, OTHER]))
def test_a_placeholder_is_found_in_any_form_across_any_cut(before, after, at, form, token):
    held = FORMS[form](token.placeholder).encode()
    stream = SEARCH.stream()
    passed, names = b"", []
    for piece in pieces(before + held + after, at):
        clean, found = stream.feed(piece)
        passed += clean if not names else b""
        names += found
    names += stream.finish()[1]
    assert token.name in names
    assert token.placeholder.encode() not in passed
    assert token.name in SEARCH.names_in(before + held + after)


@given(around, cuts)
def test_what_holds_no_placeholder_passes_as_it_is(data, at):
    stream = SEARCH.stream()
    parts = [stream.feed(piece) for piece in pieces(data, at)]
    parts.append(stream.finish())
    assert (b"".join(clean for clean, _ in parts), [name for _, found in parts for name in found]) == (data, [])


async def chunks(data: bytes, at: list[int]) -> AsyncIterator[bytes]:
    for piece in pieces(data, at):
        yield piece


@pytest.mark.parametrize("form", sorted(FORMS))
@given(before=around, after=around, at=cuts)
async def test_a_value_comes_back_as_its_placeholder_across_any_cut(form, before, after, at):
    for token in (TOKEN, OTHER):
        held = before + FORMS[form](token.value).encode() + after
        answer = b"".join([piece async for piece in ECHOES.without_values(chunks(held, at))])
        assert FORMS[form](token.value).encode() not in answer
        assert token.value.encode() not in answer
        assert ECHOES.redactor.redact(held) == answer


def test_a_value_as_long_as_a_token_leaves_lengths_as_they_are():
    assert Echoes([TOKEN]).keeps_length
    assert not Echoes([TOKEN, OTHER]).keeps_length
    # A password of eight letters has a placeholder that is longer.
    assert not Echoes([secret("pass-word")]).keeps_length
