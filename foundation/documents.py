"""Text that people write, YAML or JSON, as plain data: at a bounded cost, and with nothing of it lost in silence.

YAML is read by the core schema of YAML 1.2: ``12:30:45``, ``yes``, ``on``, ``1_000`` and dates are text; only ``true``,
``false``, ``null``, ``~`` and plain numbers are not. Keys are text. Merge keys (``<<``) and aliases are read, tags but
those of that schema are not. Nesting and the number of values are limited, with what aliases stand for counted in full.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from foundation.faults import MOST_FAULTS, Fault, below

MAX_DEPTH = 64
MAX_VALUES = 20_000

_TOO_DEEP = f"it is nested deeper than {MAX_DEPTH} levels"
_TOO_MANY = f"it has more than {MAX_VALUES} values (those that YAML aliases stand for are counted too)"
_LARGEST = 2**63
_LONGEST_NUMBER = 400
_TEXT_OR_PUNCTUATION = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\Z)|[\[{,]', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_YAML_VALUES = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | {
    spelling: value
    for word, value in (("true", True), ("false", False))
    for spelling in (word, word.title(), word.upper())
}
_YAML_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_YAML_FLOAT = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_YAML_TAG = "tag:yaml.org,2002:"
_YAML_TAGS: dict[str, tuple[type, ...]] = {
    "str": (str,), "int": (int,), "float": (float, int), "bool": (bool,), "null": (type(None),),
}  # fmt: skip
_MERGE = "<<"


class Unreadable(ValueError):
    """The text is no document at all, or too much of one; the message is a sentence without any of the text."""


@dataclass(frozen=True)
class Document:
    """What was read, and what is wrong with it all the same: repeated keys, text and numbers that nothing can hold.

    ``remarks`` are of what is not wrong, and was not read.
    """

    data: Any
    faults: list[Fault] = field(default_factory=list)
    remarks: list[Fault] = field(default_factory=list)


def text_of(body: bytes) -> str:
    """The text of UTF-8, with or without a byte order mark, or of UTF-16 with one. Raises Unreadable."""
    encoding = "utf-16" if body.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        return body.decode(encoding)
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is not {encoding.upper().removesuffix('-SIG')} text (byte {error.start})") from None


def read_json(text: str) -> Document:
    """The data in JSON text. Raises Unreadable."""
    counted = text.count("[") + text.count("{") + text.count(",")
    if counted > MAX_VALUES and sum(match[0][0] != '"' for match in _TEXT_OR_PUNCTUATION.finditer(text)) > MAX_VALUES:
        raise Unreadable(_TOO_MANY)
    try:
        data = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=float,
            parse_int=lambda digits: int(digits) if len(digits) <= _LONGEST_NUMBER else math.inf,
        )
    except json.JSONDecodeError as error:
        raise Unreadable(f"{_constant(error.msg)} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None
    return Document(data, list(_faults(data)))


def read_yaml(text: str) -> Document:
    """The data in YAML text. Raises Unreadable."""
    if _SURROGATE.search(text):
        raise Unreadable("it holds half of a character (a lone surrogate), which is no Unicode text")
    reading = _YamlReading(yaml.parse(text, Loader=yaml.CSafeLoader))
    try:
        data = reading.document()
    except yaml.MarkedYAMLError as error:
        place = _place(error.problem_mark or error.context_mark)
        raise Unreadable(f"{error.problem or error.context}{place}") from None
    except yaml.YAMLError as error:
        raise Unreadable(str(getattr(error, "reason", "it cannot be read"))) from None
    return Document(data, reading.faults + list(_faults(data)))


# --- JSON


class _Repeating(dict[str, Any]):
    """An object of which some keys were given more than once."""

    repeated: Sequence[str] = ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    repeating = _Repeating(made)
    repeating.repeated = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
    return repeating


def _constant(problem: str) -> str:
    """What the JSON reader says, without the value that some of its sentences hold."""
    return problem.partition(": '")[0]


# --- YAML


class _YamlReading:
    """One reading of a YAML text: its events are counted as they come, and nothing is made of what is too much."""

    def __init__(self, events: Iterator[Any]) -> None:
        self.faults: list[Fault] = []
        self._events = events
        self._count = 0
        # Each anchored value: it, how many values it stands for, and how many levels it has.
        self._anchored: dict[str, tuple[Any, int, int]] = {}

    def document(self) -> Any:
        """The only document's data; None of an empty text. Raises Unreadable and yaml's errors."""
        data: Any = None
        documents = 0
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Unreadable("it has several documents, divided by '---'; send each by itself" + _at(event))
            elif isinstance(event, yaml.NodeEvent):
                data, _ = self._value(event, "", 0)
        return data

    def _value(self, event: Any, field: str, depth: int) -> tuple[Any, int]:
        """The value that begins with the event, and how many levels it has."""
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event, depth)
        begun = self._count
        self._take(1, event)
        if depth > MAX_DEPTH:
            raise Unreadable(_TOO_DEEP + _at(event))
        # What an anchor meant before, it does not mean within its new value.
        self._anchored.pop(event.anchor, None)
        if isinstance(event, yaml.ScalarEvent):
            value, levels = _scalar(event), 0
        elif isinstance(event, yaml.SequenceStartEvent):
            _check_tag(event, "seq")
            value, levels = self._sequence(field, depth)
        else:
            _check_tag(event, "map")
            value, levels = self._mapping(field, depth)
        if event.anchor:
            self._anchored[event.anchor] = (value, self._count - begun, levels)
        return value, levels

    def _sequence(self, field: str, depth: int) -> tuple[list[Any], int]:
        made: list[Any] = []
        deepest = 0
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            value, levels = self._value(event, below(field, len(made)), depth + 1)
            made.append(value)
            deepest = max(deepest, levels + 1)
        return made, deepest

    def _mapping(self, field: str, depth: int) -> tuple[dict[str, Any], int]:
        made: dict[str, Any] = {}
        lines: dict[str, int] = {}
        merged: list[dict[str, Any]] = []
        deepest = 0
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable("it has a key that is no plain text" + _at(event))
            self._take(1, event)
            key, line = event.value, _line(event)
            where = below(field, key)
            if key in lines:
                message = f"is given twice, in lines {lines[key]} and {line}; keep one of them"
                self.faults.append(Fault(where, message, "duplicate"))
            lines[key] = line
            value, levels = self._value(next(self._events), where, depth + 1)
            deepest = max(deepest, levels + 1)
            if key == _MERGE and not event.style:
                merged += self._to_merge(value, event)
            else:
                made[key] = value
        for each in merged:
            # What stands in the mapping itself wins, then what is merged first.
            for name in each:
                made.setdefault(name, each[name])
        return made, deepest

    def _to_merge(self, value: Any, event: yaml.ScalarEvent) -> list[dict[str, Any]]:
        mappings = value if isinstance(value, list) else [value]
        if not all(isinstance(each, dict) for each in mappings):
            raise Unreadable("it merges ('<<') what is no mapping" + _at(event))
        return mappings

    def _alias(self, event: yaml.AliasEvent, depth: int) -> tuple[Any, int]:
        if event.anchor not in self._anchored:
            raise Unreadable("it has an alias of what is not there, or of what it stands in" + _at(event))
        value, size, levels = self._anchored[event.anchor]
        self._take(size, event)
        if depth + levels > MAX_DEPTH:
            raise Unreadable(_TOO_DEEP + _at(event))
        return value, levels

    def _take(self, count: int, event: Any) -> None:
        self._count += count
        if self._count > MAX_VALUES:
            raise Unreadable(_TOO_MANY + _at(event))


def _scalar(event: yaml.ScalarEvent) -> Any:
    text, tag = event.value, event.tag
    value = _plain(text) if tag is None and not event.style else text
    if tag in {None, "!"}:
        return value
    kinds = _YAML_TAGS.get(tag.removeprefix(_YAML_TAG))
    value = text if kinds == (str,) else _plain(text)
    if kinds is None or type(value) not in kinds:
        raise Unreadable("it has a tag that is not read, or does not fit; write the value without it" + _at(event))
    return value


def _plain(text: str) -> Any:
    """What a scalar without quotes means in the core schema."""
    if text in _YAML_VALUES:
        return _YAML_VALUES[text]
    if len(text) > _LONGEST_NUMBER:
        return text
    if _YAML_INT.fullmatch(text):
        return int(text, 0 if text[:2] in {"0o", "0x"} else 10)
    if _YAML_FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _check_tag(event: yaml.CollectionStartEvent, kind: str) -> None:
    if event.tag not in {None, "!", _YAML_TAG + kind}:
        raise Unreadable("it has a tag that is not read; write the value without it" + _at(event))


def _at(event: Any) -> str:
    return _place(event.start_mark)


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _place(mark: Any) -> str:
    return f" (line {mark.line + 1}, column {mark.column + 1})" if mark is not None else ""


# --- both


def _faults(data: Any) -> Iterator[Fault]:
    """What neither a message nor a process could hold, with its place: at most MOST_FAULTS of it."""
    pending: list[tuple[str, Any, int]] = [("", data, 0)]
    found = 0
    while pending and found < MOST_FAULTS:
        where, part, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise Unreadable(_TOO_DEEP)
        if isinstance(part, dict):
            pending += [(below(where, key), part[key], depth + 1) for key in reversed(part)]
            pending += [(where, key, depth) for key in part]
        elif isinstance(part, list):
            pending += [(below(where, index), part[index], depth + 1) for index in range(len(part) - 1, -1, -1)]
        for key, message, validation in _problems(part):
            found += 1
            yield Fault(_SURROGATE.sub("?", below(where, key) if key else where), message, validation)


def _problems(part: Any) -> Iterator[tuple[str, str, str]]:
    if isinstance(part, _Repeating):
        yield from ((key, "is given twice; keep one of them", "duplicate") for key in part.repeated)
    if isinstance(part, str) and _SURROGATE.search(part):
        yield "", "holds half of a character (a lone surrogate), which is no Unicode text", "unicode"
    if isinstance(part, str) and "\0" in part:
        yield "", "holds a NUL character, which no file name, variable or command can hold", "nul"
    if isinstance(part, float) and not math.isfinite(part):
        yield "", "is no number that can be written down", "number"
    if isinstance(part, int) and abs(part) >= _LARGEST:
        yield "", "is a number of too many digits", "number"
