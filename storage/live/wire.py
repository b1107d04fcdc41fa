"""A log as it is told from one process to another: NDJSON over a stream of bytes, which each side may end at any time.

A line is an entry, as segments have it; or ``{"live": true}`` when a writer is open and what follows comes as it is
written, false when it has gone; or empty, so that the stream is not silent.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import suppress

from pydantic import ValidationError

from foundation.errors import ForeignServer
from storage.follower import LiveNews
from storage.layout import Place
from storage.live.host import HostLogs
from storage.segments import LogEntry

#: A stream on which nothing came for several times as long is broken.
KEEPALIVE_SECONDS = 3.0
# Who listens to a log that nobody writes is sent away, and comes back when it has grown.
_NOBODY_SECONDS = 60.0
_BATCH = 200
_LINE_BYTES_MOST = 8 * 1024 * 1024


async def told(logs: HostLogs, place: Place, after_id: int) -> AsyncGenerator[bytes]:
    """What this process tells of a log behind an id, as bytes to be sent on.

    Ends when the reader is behind what is in memory, and must read the bucket first; or when nobody has written for a
    minute.
    """
    loop = asyncio.get_running_loop()
    news = asyncio.Event()

    def wake() -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(news.set)

    with logs.listening(place) as window, window.listening(wake):
        live: bool | None = None
        position = after_id
        written_at = loop.time()
        while True:
            news.clear()
            now_live = window.live
            lines = window.after(position, _BATCH)
            if lines is None:
                return
            position += len(lines)
            if now_live is not live:
                lines = [json.dumps({"live": now_live}).encode(), *lines]
                live = now_live
            if live or lines:
                written_at = loop.time()
            if lines:
                yield b"".join(line + b"\n" for line in lines)
                continue
            try:
                await asyncio.wait_for(news.wait(), KEEPALIVE_SECONDS)
            except TimeoutError:
                if loop.time() - written_at > _NOBODY_SECONDS:
                    return
                yield b"\n"


async def heard(chunks: AsyncIterable[bytes]) -> AsyncGenerator[LiveNews]:
    """What ``told`` has sent. Raises ForeignServer for what it cannot have sent."""
    rest = b""
    live = False
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > _LINE_BYTES_MOST:
            raise ForeignServer("The host's service tells of the log in lines without an end")
        entries = []
        for line in filter(None, lines):
            try:
                if line.startswith(b'{"live"'):
                    live = json.loads(line)["live"] is True
                else:
                    entries.append(LogEntry.model_validate_json(line))
            except (ValueError, ValidationError, KeyError, TypeError) as error:
                raise ForeignServer(
                    "The host's service tells of the log what no Taskyard of this version knows"
                ) from error
        yield LiveNews(live, entries)
