"""Known secret values are replaced by ``[redacted:NAME]``, in whole texts and in streams that arrive in pieces.

A value is found as it is and as JSON writes it inside a string (once and twice escaped: tools report files inside
JSON inside JSON). Of a value of several lines each line of at least 8 bytes is found on its own too. Where several
fit at one place, the longest wins. This guards against accidents; a guest that encodes a secret otherwise can still
show it.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

# Shorter values (a port, "yes", a digit) occur everywhere: replacing them would destroy the text and tell the value by
# what is missing. They are named in ``unredacted``, for a warning.
MIN_VALUE_BYTES = 4
# A line such as "}" or "-----" of a value of several lines says nothing by itself.
_MIN_LINE_BYTES = 8
_CHUNK = 2**20
_FEW = 32


class Piece(NamedTuple):
    """Output of a stream: ``data`` stands for ``raw`` bytes of input; ``replaced``: it is a placeholder for them."""

    data: bytes
    raw: int
    replaced: bool


class Redactor:
    """Replaces the values of ``secrets`` (name to value). Immutable and thread-safe.

    ``unredacted`` names the secrets whose values are too short to be replaced (under 4 bytes).
    """

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.unredacted = tuple(
            name for name, value in secrets.items() if 0 < len(_encode(value.strip())) < MIN_VALUE_BYTES
        )
        placeholders: dict[bytes, bytes] = {}
        for name, value in secrets.items():
            placeholder = f"[redacted:{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}]".encode()
            for form in _forms(value):
                placeholders.setdefault(form, placeholder)
        self._look_for(placeholders)

    @classmethod
    def replacing(cls, replacements: Mapping[bytes, bytes]) -> Redactor:
        """Replaces each of these byte strings, none of them empty, by its own."""
        redactor = cls({})
        redactor._look_for(replacements)
        return redactor

    def masking(self) -> Redactor:
        """Replaces the same values, each by as many asterisks as it has bytes, so that all keeps its offset."""
        return Redactor.replacing({form: b"*" * len(form) for form in self._placeholders})

    def _look_for(self, placeholders: Mapping[bytes, bytes]) -> None:
        self._placeholders = placeholders
        longest_first = sorted(placeholders, key=lambda form: (-len(form), form))
        self._search = re.compile(b"|".join(map(re.escape, longest_first))) if longest_first else None
        self._forms = sorted(placeholders)
        self._longest = len(longest_first[0]) if longest_first else 0
        beginnings = b"".join(re.escape(form[:1]) for form in self._forms)
        self._beginning = re.compile(b"[" + beginnings + b"]") if beginnings else None

    def redact(self, data: bytes) -> bytes:
        """``data`` with every known value replaced."""
        search = self._search_in(data)
        if search is None:
            return data
        return search.sub(lambda match: self._placeholders[match[0]], data)

    def redact_text(self, text: str) -> str:
        """``text`` with every known value replaced."""
        return self.redact(text.encode(errors="surrogatepass")).decode(errors="surrogatepass")

    def redact_json(self, value: Any) -> Any:
        """A JSON-ready value with every known value replaced in its strings and keys; its shape stays."""
        if isinstance(value, str):
            return self.redact_text(value)
        if isinstance(value, Mapping):
            return {self.redact_text(str(key)): self.redact_json(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.redact_json(item) for item in value]
        return value

    def finds_in(self, file: BinaryIO) -> bool:
        """Whether a known value is in the rest of the file."""
        stream = self.stream()
        while chunk := file.read(_CHUNK):
            if any(piece.replaced for piece in stream.feed(chunk)):
                return True
        return any(piece.replaced for piece in stream.finish())

    def stream(self) -> RedactionStream:
        """A new stream: the same result as ``redact`` on everything that is fed, whatever the pieces."""
        return RedactionStream(self)

    def scan(self, data: bytes, *, final: bool) -> Iterator[Piece]:
        """Pieces of ``data`` from its start as far as no later byte can change them; all of it when ``final``."""
        search = self._search_in(data)
        position = 0
        limit = len(data) if final else self._undecided(data, 0)
        while position < limit:
            match = search.search(data, position) if search else None
            begin = match.start() if match else limit
            literal_end = min(begin, limit)
            if literal_end > position:
                yield Piece(data[position:literal_end], literal_end - position, replaced=False)
                position = literal_end
            if match is None or begin >= limit:
                return
            position = match.end()
            yield Piece(self._placeholders[match[0]], len(match[0]), replaced=True)
            if position > limit:
                limit = self._undecided(data, position)

    def _search_in(self, data: bytes) -> re.Pattern[bytes] | None:
        """What finds the values in the data; None when there are none in it."""
        # One search for each of a few is many times faster than one for all, and mostly there is none.
        if len(self._forms) <= _FEW and not any(form in data for form in self._forms):
            return None
        return self._search

    def _undecided(self, data: bytes, position: int) -> int:
        """First place from ``position`` on where the rest of ``data`` could be the beginning of a longer value."""
        if self._beginning is None:
            return len(data)
        start = max(position, len(data) - self._longest + 1)
        for match in self._beginning.finditer(data, start):
            rest = data[match.start() :]
            nearest = bisect_left(self._forms, rest)
            if nearest < len(self._forms) and self._forms[nearest] == rest:
                nearest += 1
            if nearest < len(self._forms) and self._forms[nearest].startswith(rest):
                return match.start()
        return len(data)


class RedactionStream:
    """Redacts one stream. Holds back the end of what was fed while it could be the beginning of a value."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._held = b""

    @property
    def held(self) -> int:
        """Bytes that are held back."""
        return len(self._held)

    def feed(self, data: bytes) -> list[Piece]:
        """Everything that is decided now."""
        return self._advance(self._held + data, final=False)

    def finish(self) -> list[Piece]:
        """What was held back: nothing follows."""
        return self._advance(self._held, final=True)

    def _advance(self, data: bytes, *, final: bool) -> list[Piece]:
        pieces = list(self._redactor.scan(data, final=final))
        self._held = data[sum(piece.raw for piece in pieces) :]
        return pieces


def _forms(value: str) -> Iterator[bytes]:
    """Every way in which a secret value is looked for."""
    whole = value.strip()
    yield from text_forms(whole, MIN_VALUE_BYTES)
    lines = whole.splitlines()
    if len(lines) > 1:
        for line in lines:
            yield from text_forms(line.strip(), _MIN_LINE_BYTES)


def text_forms(text: str, minimum: int = MIN_VALUE_BYTES) -> Iterator[bytes]:
    """The text as it is and as JSON writes it, once and twice; nothing for one of fewer bytes than the minimum."""
    if len(_encode(text)) < minimum:
        return
    forms = {text}
    for _ in range(2):
        forms |= {
            escaped
            for form in forms
            for ascii_only in (True, False)
            # Some writers escape the slash too.
            for plain in (json.dumps(form, ensure_ascii=ascii_only)[1:-1],)
            for escaped in (plain, plain.replace("/", "\\/"))
        }
    yield from map(_encode, forms)


def _encode(text: str) -> bytes:
    # Values from the environment may hold bytes that are no UTF-8.
    return text.encode(errors="surrogateescape")
