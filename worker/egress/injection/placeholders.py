"""Where placeholders stand in what a guest sends, and values in what it gets: found in bytes that come in pieces.

Both are found as they are, as text in URLs and JSON writes them, and inside of base64, wherever they begin in it. What
a guest encodes otherwise is not found, and is worth nothing to whoever gets it.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from urllib.parse import quote, unquote_to_bytes

from activities.machine.injection import InjectedSecret
from storage.redaction import Piece, RedactionStream, Redactor, text_forms

# Base64 has three bytes in four letters: what begins at the first, second or third of them.
_SKIPPED = (0, 2, 1)
_FEW_BYTES = 4
_QUIET_SECONDS = 0.5


class PlaceholderSearch:
    """Finds the placeholders of a machine. Immutable; ``stream`` begins one search of bytes that come in pieces."""

    def __init__(self, secrets: Iterable[InjectedSecret]) -> None:
        forms = {}
        for secret in secrets:
            placeholder = secret.placeholder.encode()
            for form in (placeholder, *_inside_base64(placeholder)):
                forms[form] = secret.name.encode()
        self._finder = Redactor.replacing(forms)

    def names_in(self, text: bytes) -> set[str]:
        """Names of the secrets whose placeholders are in the text, also as a URL may write them."""
        found = self.stream()
        names = {*found.feed(text)[1], *found.finish()[1]}
        if b"%" in text:
            decoded = self.stream()
            names |= {*decoded.feed(unquote_to_bytes(text))[1], *decoded.finish()[1]}
        return names

    def stream(self) -> PlaceholderStream:
        """A search that goes on from piece to piece."""
        return PlaceholderStream(self._finder.stream())


class PlaceholderStream:
    """One search. What could be the beginning of a placeholder is held back until more has come."""

    def __init__(self, stream: RedactionStream) -> None:
        self._stream = stream

    def feed(self, data: bytes) -> tuple[bytes, list[str]]:
        """What of all that was fed holds no placeholder for sure, and the names of secrets that were found."""
        return _parted(self._stream.feed(data))

    def finish(self) -> tuple[bytes, list[str]]:
        """What was held back: nothing follows."""
        return _parted(self._stream.finish())


class Echoes:
    """Puts placeholders back in the place of values, in what a host answers.

    ``keeps_length``: as many bytes come out as have gone in, whatever is found.
    """

    def __init__(self, secrets: Iterable[InjectedSecret]) -> None:
        replacements: dict[bytes, bytes] = {}
        for secret in secrets:
            value, placeholder = secret.value.encode(), secret.placeholder.encode()
            forms = [*text_forms(secret.value), quote(secret.value, safe="").encode()]
            replacements |= dict.fromkeys(forms, placeholder)
            replacements |= {
                form: base64.b64encode(_whole(placeholder, skipped))
                for skipped in _SKIPPED
                for form in _base64_forms(value, skipped)
            }
        self.redactor = Redactor.replacing(replacements)
        self.keeps_length = all(len(form) == len(into) for form, into in replacements.items())

    async def without_values(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The stream with placeholders for values. What may be the beginning of one waits for what comes next.

        Of a host that says nothing more for a while, a few bytes are no such beginning: somebody may wait for them.
        """
        stream = self.redactor.stream()
        coming = asyncio.ensure_future(_next(chunks))
        try:
            while True:
                if 0 < stream.held <= _FEW_BYTES:
                    await asyncio.wait({coming}, timeout=_QUIET_SECONDS)
                    if not coming.done():
                        yield _joined(stream.finish())
                chunk = await coming
                if chunk is None:
                    break
                coming = asyncio.ensure_future(_next(chunks))
                yield _joined(stream.feed(chunk))
        finally:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)
        yield _joined(stream.finish())


async def _next(chunks: AsyncIterator[bytes]) -> bytes | None:
    return await anext(chunks, None)


def _joined(pieces: Iterable[Piece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


def _parted(pieces: Iterable[Piece]) -> tuple[bytes, list[str]]:
    clean, names = bytearray(), []
    for data, _, found in pieces:
        if found:
            names.append(data.decode())
        else:
            clean += data
    return bytes(clean), names


def _inside_base64(text: bytes) -> list[bytes]:
    return [form for skipped in _SKIPPED for form in _base64_forms(text, skipped)]


def _base64_forms(text: bytes, skipped: int) -> set[bytes]:
    whole = _whole(text, skipped)
    return {base64.b64encode(whole), base64.urlsafe_b64encode(whole)}


def _whole(text: bytes, skipped: int) -> bytes:
    """Without the bytes that share their letters with what stands around the text."""
    return text[skipped : skipped + (len(text) - skipped) // 3 * 3]
