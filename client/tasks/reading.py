"""A run's log as both clients take it in: line by line, and resumed where it broke."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
from pydantic import BaseModel

from client.tasks.calls import FOLLOW_TIMEOUT, PATIENCE_SECONDS, Call, task_url
from client.tasks.replies import LogLine
from foundation.errors import ServiceUnavailable

# No answer of the API but a log and an artifact is near this, and no line of a log.
_ANSWER_BYTES = 64 * 2**20
_LINE_BYTES = 64 * 2**20
_LINE_SECONDS = 120.0
_LOG_TYPE = "application/x-ndjson"


class Answer:
    """A short answer on its way in: bounded in bytes and in the time until its end."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._pieces: list[bytes] = []
        self._size = 0

    def take(self, piece: bytes) -> None:
        """A piece of the bytes. Raises ServiceUnavailable beyond either bound."""
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _ANSWER_BYTES or time.monotonic() > self._end:
            raise ServiceUnavailable("The server sends an answer that has no end; try again, or name another server.")

    @property
    def body(self) -> bytes:
        """All of it."""
        return b"".join(self._pieces)

    def checked(self, reply: type[BaseModel]) -> Any:
        """The JSON of the answer. Raises ValueError (or RecursionError) when it has not the form of the reply."""
        data = json.loads(self.body)
        reply.model_validate(data)
        return data


class LogReading:
    """One reading of a run's log, over as many connections as it takes."""

    def __init__(self, task_id: str, *, follow: bool, stream: str, tail: int, since: str | None, after_id: int) -> None:
        self.over = False
        self._url = f"{task_url(task_id)}/logs"
        self._follow = follow
        self._params: dict[str, Any] = {"follow": follow, "stream": stream, "tail": tail}
        if since:
            self._params["since"] = since
        self._after_id = after_id
        self._broken_since: float | None = None
        self._begun: list[bytes] = []
        self._begun_bytes = 0
        self._begun_at = time.monotonic()

    def call(self) -> Call:
        """The request that goes on after the last line taken."""
        self._begin([])
        headers = {"Accept": _LOG_TYPE}
        if self._after_id:
            headers["Last-Event-ID"] = str(self._after_id)
        options: dict[str, Any] = {"params": dict(self._params), "headers": headers}
        if self._follow:
            options["timeout"] = FOLLOW_TIMEOUT
        return Call("GET", self._url, options)

    @staticmethod
    def opened(headers: httpx.Headers) -> None:
        """The answer begins. Raises ValueError when it is no log."""
        if not headers.get("Content-Type", "").startswith(_LOG_TYPE):
            raise ValueError("not the type of a log")

    def take(self, piece: bytes) -> Iterator[LogLine]:
        """The lines that a piece of the answer completes. Raises ServiceUnavailable when the answer says so.

        Only newlines end a line; what else does so in Unicode may stand in a line of the log.
        """
        head, newline, rest = piece.partition(b"\n")
        self._begun.append(head)
        self._begun_bytes += len(head)
        if not newline:
            if self._begun_bytes > _LINE_BYTES or time.monotonic() - self._begun_at > _LINE_SECONDS:
                raise ServiceUnavailable("The server sends a line of the log that has no end.")
            return
        first = b"".join(self._begun)
        *lines, begun = rest.split(b"\n")
        self._begin([begun])
        for text in (first, *lines):
            if not text.strip():
                continue
            line = LogLine.model_validate_json(text)
            self._broken_since = None
            if line.id is not None:
                # What was asked of the beginning is done; a resumed log goes on from here.
                self._after_id, self._params["tail"] = line.id, 0
            elif line.type == "error":
                # An answer that has begun reports its failure in its last line, which is no entry of the log.
                raise ServiceUnavailable(str(line.event.get("message")))
            elif line.type == "completed":
                self.over = True
            yield line

    def _begin(self, begun: list[bytes]) -> None:
        self._begun = begun
        self._begun_bytes = sum(map(len, begun))
        self._begun_at = time.monotonic()

    def ended(self) -> None:
        """The answer has ended; a log that is not followed is then over. ValueError when a line is unfinished."""
        if any(piece.strip() for piece in self._begun):
            raise ValueError("the last line has no end")
        if not self._follow:
            self.over = True

    def broken(self, error: ServiceUnavailable) -> None:
        """The connection broke: raises the error when patience is at its end."""
        self._broken_since = self._broken_since or time.monotonic()
        if not self._follow or time.monotonic() - self._broken_since > PATIENCE_SECONDS:
            raise error
