"""What counts as a secret's value in a text, and that pieces of a stream change nothing."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from storage.lines import MAX_LINE_BYTES, LineAssembler
from storage.redaction import Redactor

PEM = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0B\n}\n-----END KEY-----\n"
SECRETS = {
    "TOKEN": "tok-12345",
    "LONGER": "tok-12345-and-more",
    "QUOTED": 'pa"ss\\word/é',
    "KEY": PEM,
    "PIN": "123",
}
REDACTOR = Redactor(SECRETS)


def test_values_are_replaced_by_their_names_longest_first():
    assert REDACTOR.redact(b"a tok-12345-and-more b tok-12345 c") == b"a [redacted:LONGER] b [redacted:TOKEN] c"


def test_values_are_found_in_json_in_each_way_of_escaping():
    for ascii_only in (True, False):
        once = json.dumps({"text": SECRETS["QUOTED"]}, ensure_ascii=ascii_only)
        twice = json.dumps({"text": once}, ensure_ascii=ascii_only)
        assert json.loads(REDACTOR.redact_text(once)) == {"text": "[redacted:QUOTED]"}
        assert json.loads(json.loads(REDACTOR.redact_text(twice))["text"]) == {"text": "[redacted:QUOTED]"}
    assert b"redacted:QUOTED" in REDACTOR.redact(rb'"pa\"ss\\word\/\u00e9"')


def test_values_of_several_lines_are_found_whole_by_line_and_inside_json():
    assert REDACTOR.redact(PEM.encode()) == b"[redacted:KEY]\n"
    assert REDACTOR.redact(b"1: hkiG9w0B\n2: }\n") == b"1: [redacted:KEY]\n2: }\n"
    assert json.loads(REDACTOR.redact_text(json.dumps([PEM]))) == ["[redacted:KEY]\n"]
    assert REDACTOR.redact(PEM.replace("\n", "\r\n").encode()).count(b"[redacted:KEY]") == 4


def test_short_values_stay_and_are_told():
    assert REDACTOR.unredacted == ("PIN",)
    assert REDACTOR.redact(b"12345") == b"12345"


def test_json_keeps_its_shape():
    event = {"tok-12345": 1, "list": ["x tok-12345", None, 1.5, True]}
    assert REDACTOR.redact_json(event) == {"[redacted:TOKEN]": 1, "list": ["x [redacted:TOKEN]", None, 1.5, True]}


def test_only_what_can_still_become_a_value_is_held():
    stream = Redactor({"A": "zzab", "B": "abcdefgh", "C": "cdXXXX", "D": "zzabab"}).stream()
    # "abcd" could become B, but its beginning belongs to A; what is left of it could become C.
    assert [piece.data for piece in stream.feed(b"-zzabcd")] == [b"-", b"[redacted:A]"]
    assert [piece.data for piece in stream.feed(b"XXXX")] == [b"[redacted:C]"]
    assert stream.feed(b"zzab") == []
    assert [piece.data for piece in stream.feed(b"c!")] == [b"[redacted:A]", b"c!"]
    assert [piece.data for piece in stream.feed(b"zzabab")] == [b"[redacted:D]"]


def test_nothing_to_redact_passes_everything_at_once():
    stream = Redactor({}).stream()
    assert [piece.data for piece in stream.feed(b"abc")] == [b"abc"]
    assert stream.finish() == []


# Few letters and values that overlap each other and themselves, so that beginnings of values are everywhere.
_values = st.dictionaries(st.sampled_from("ABCD"), st.text('ab\n"é', min_size=4, max_size=12), max_size=4)
_chunks = st.lists(st.text('ab\n"é\\nu009', max_size=9).map(str.encode), max_size=30)


@settings(deadline=None)
@given(_values, st.data())
def test_a_stream_gives_what_the_whole_gives(secrets, data):
    redactor = Redactor(secrets)
    known = [value.encode() for value in secrets.values()] + [json.dumps(value).encode() for value in secrets.values()]
    pieces = data.draw(st.lists(st.one_of(st.sampled_from(known), _chunks.map(b"".join)) if known else st.binary()))
    source = b"".join(pieces)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(source)), max_size=20)))
    stream = redactor.stream()
    given_out = []
    for start, end in zip([0, *cuts], [*cuts, len(source)], strict=True):
        given_out += stream.feed(source[start:end])
    given_out += stream.finish()
    assert b"".join(piece.data for piece in given_out) == redactor.redact(source)
    assert sum(piece.raw for piece in given_out) == len(source)


@settings(deadline=None)
@given(st.lists(st.binary(max_size=40)))
def test_lines_hold_all_bytes_and_end_where_the_raw_line_ends(chunks):
    source = b"".join(chunks)
    assembler = LineAssembler(Redactor({}), 100)
    lines = [line for chunk in chunks for line in assembler.feed(chunk)] + assembler.finish()
    assert [line.data for line in lines] == source.splitlines(keepends=True) or b"\r" in source
    assert b"".join(line.data for line in lines) == source
    assert [line.end for line in lines] == [
        100 + len(b"".join(x.data for x in lines[: n + 1])) for n in range(len(lines))
    ]


def test_very_long_lines_are_cut_between_characters_and_beside_secrets():
    line = "é€𝄞x" * 100_000 + "tok-12345" + "y" * (MAX_LINE_BYTES - 5) + "tok-12345\n"
    assembler = LineAssembler(REDACTOR, 0)
    source = line.encode()
    lines = [part for at in range(0, len(source), 1013) for part in assembler.feed(source[at : at + 1013])]
    assert assembler.finish() == []
    assert "".join(part.data.decode() for part in lines) == line.replace("tok-12345", "[redacted:TOKEN]")
    assert len(lines) == 5
    assert all(len(part.data) <= MAX_LINE_BYTES + 3 + len("[redacted:TOKEN]") for part in lines)
    assert lines[-1].end == len(source)


def test_a_partial_line_is_held_until_the_end():
    assembler = LineAssembler(REDACTOR, 0)
    assert assembler.feed(b"one\ntw") == [(b"one\n", 4)]
    assert assembler.finish() == [(b"tw", 6)]
