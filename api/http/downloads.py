"""Answers that carry a stored artifact: their headers, and their bytes, which are read from the bucket off the loop."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from anyio import CancelScope, CapacityLimiter, to_thread
from fastapi.responses import StreamingResponse
from starlette.convertors import Convertor, register_url_convertor
from starlette.types import Send

from storage.bucket import ObjectStream
from workflows.runs.requests import Artifact

# Threads that wait for the bucket; those that serve everything else are not taken for downloads.
_READERS_MOST = 16


class _AnyName(Convertor[str]):
    """The rest of a path, whatever is in it. Starlette's own ends at a line break."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("artifact", _AnyName())


class ArtifactResponse(StreamingResponse):
    """The bytes of one opened artifact. When the client goes, the bucket's answer is closed too."""

    def __init__(
        self, stream: ObjectStream, readers: CapacityLimiter, status_code: int, media_type: str, headers: dict[str, str]
    ) -> None:
        self._pieces = _pieces(stream, readers)
        self._stream = stream
        super().__init__(self._pieces, status_code=status_code, media_type=media_type, headers=headers)

    async def stream_response(self, send: Send) -> None:
        try:
            async with aclosing(self._pieces):
                await super().stream_response(send)
        finally:
            # Also of an answer that nobody began to read.
            self._stream.close()


def readers() -> CapacityLimiter:
    """How many downloads of one server may wait for the bucket at once; the others wait for their turn."""
    return CapacityLimiter(_READERS_MOST)


def headers_of(artifact: Artifact) -> dict[str, str]:
    """What a download of the whole artifact begins with."""
    return {
        "Accept-Ranges": "bytes",
        "Content-Disposition": _disposition(artifact.name),
        "Content-Length": str(artifact.size_bytes),
        "ETag": f'"{artifact.sha256}"',
        "X-Checksum-SHA256": artifact.sha256,
        # What an agent wrote is never to be taken for a page of this server.
        "X-Content-Type-Options": "nosniff",
    }


async def _pieces(stream: ObjectStream, readers: CapacityLimiter) -> AsyncGenerator[bytes, None]:
    try:
        while piece := await to_thread.run_sync(next, stream, b"", limiter=readers):
            yield piece
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(stream.close)


def _disposition(name: str) -> str:
    basename = name.rsplit("/", 1)[-1]
    plain = "".join(
        letter if letter.isascii() and letter.isprintable() and letter not in '"\\' else "_" for letter in basename
    )
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(basename, safe='')}"
