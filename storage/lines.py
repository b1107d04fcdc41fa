"""From a guest's raw bytes to redacted lines, each with the raw byte offset at its end, and to entries of the log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

from storage.redaction import Piece, Redactor
from storage.segments import Draft, GuestStream

MAX_LINE_BYTES = 256 * 1024
# A UTF-8 sequence has at most three bytes after its first.
_CONTINUATIONS = 3
_NEWLINE = 0x0A


class Line(NamedTuple):
    """One redacted line with its newline, or a part of a very long one; ``end`` counts raw bytes of the stream."""

    data: bytes
    end: int


class LineAssembler:
    """Splits one stream, from a raw byte offset on, into redacted lines.

    A line is given out with its newline. One longer than 256 KiB is cut, never inside a UTF-8 sequence and never
    inside a secret. Every ``end`` is a place where a new assembler can begin and find the same secrets.
    """

    def __init__(self, redactor: Redactor, offset: int) -> None:
        self._redaction = redactor.stream()
        self._end = offset
        self._line = bytearray()
        self._raw = 0
        self._lines: list[Line] = []

    def feed(self, data: bytes) -> list[Line]:
        """The lines that ``data`` completes."""
        return self._take(self._redaction.feed(data))

    def finish(self) -> list[Line]:
        """What is left, also without its newline: the stream has ended."""
        lines = self._take(self._redaction.finish())
        if self._line:
            self._cut()
            lines += self._lines
            self._lines = []
        return lines

    def _take(self, pieces: list[Piece]) -> list[Line]:
        for piece in pieces:
            if piece.replaced:
                self._add_placeholder(piece)
            else:
                self._add_literal(piece.data)
        lines, self._lines = self._lines, []
        return lines

    def _add_placeholder(self, piece: Piece) -> None:
        if len(self._line) >= MAX_LINE_BYTES:
            self._cut()
        self._line += piece.data
        self._raw += piece.raw

    def _add_literal(self, data: bytes) -> None:
        position = 0
        while position < len(data):
            newline = data.find(b"\n", position)
            end = newline + 1 if newline >= 0 else len(data)
            room = MAX_LINE_BYTES - len(self._line)
            if room > 0:
                end = min(end, position + room)
            elif self._belongs_to_line(data[position]):
                end = position + 1
            else:
                self._cut()
                continue
            self._line += data[position:end]
            self._raw += end - position
            if data[end - 1] == _NEWLINE:
                self._cut()
            position = end

    def _belongs_to_line(self, byte: int) -> bool:
        """Whether a full line must still take ``byte``: its newline, or the rest of a UTF-8 sequence."""
        continues = byte & 0xC0 == 0x80 and len(self._line) < MAX_LINE_BYTES + _CONTINUATIONS  # noqa: PLR2004 -- UTF-8
        return byte == _NEWLINE or continues

    def _cut(self) -> None:
        self._end += self._raw
        self._lines.append(Line(bytes(self._line), self._end))
        self._line.clear()
        self._raw = 0


class GuestFile:
    """One guest file as a writer sees it: stored up to ``stored``, fed up to ``fed``, the raw bytes between held."""

    def __init__(self, redactor: Redactor, offset: int) -> None:
        self._redactor = redactor
        self.stored = offset
        self._held = bytearray()
        self._lines = LineAssembler(redactor, offset)

    @property
    def fed(self) -> int:
        return self.stored + len(self._held)

    def feed(self, stream: GuestStream, data: bytes) -> list[Draft]:
        self._held += data
        return self._drafts(stream, self._lines.feed(data))

    def finish(self, stream: GuestStream) -> list[Draft]:
        return self._drafts(stream, self._lines.finish())

    def keep_from(self, stored: int) -> None:
        del self._held[: stored - self.stored]
        self.stored = stored

    def restart(self, stream: GuestStream, stored: int, *, finish: bool) -> list[Draft]:
        """Begin again behind what another writer stored, with the bytes held from there on."""
        rest = bytes(self._held[stored - self.stored :])
        self.stored = stored
        self._held = bytearray()
        self._lines = LineAssembler(self._redactor, stored)
        drafts = self.feed(stream, rest)
        return drafts + self.finish(stream) if finish else drafts

    def _drafts(self, stream: GuestStream, lines: list[Line]) -> list[Draft]:
        now = datetime.now(UTC)
        return [Draft(now, stream, line.data.decode(errors="replace"), line.end) for line in lines]
