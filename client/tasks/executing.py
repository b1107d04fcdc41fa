"""A command in the machine of a run as both clients run it: one request, and an answer of lines until its exit."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import httpx

from client.tasks.calls import Call, task_url
from foundation.errors import ServiceUnavailable, UsageError
from foundation.service.refusals import error_from

Stream = Literal["stdout", "stderr"]
#: Takes what the command writes, as it writes it.
Output = Callable[[Stream, bytes], None]

_TYPE = "application/x-ndjson"
_LINE_BYTES = 2**22
_KEPT_BYTES = 64 * 2**20
# The answer begins when the command has started, and says something every ten seconds.
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)


@dataclass(frozen=True)
class Executed:
    """How a command ended: its exit code, or the name of the signal that ended it; and what it wrote.

    ``reason`` is ``timeout`` when its time was up. Output that was handed on is not here.
    """

    exit_code: int | None
    signal: str | None
    reason: str | None
    stdout: bytes
    stderr: bytes


class Executing:
    """One command on its way. Without ``output``, what it writes is kept, up to 64 MiB."""

    def __init__(
        self,
        task_id: str,
        argv: Sequence[str] | None,
        *,
        shell: str | None,
        user: str | None,
        directory: str | None,
        environment: Mapping[str, str] | None,
        stdin: bytes | None,
        limits: Mapping[str, float] | None,
        output: Output | None,
    ) -> None:
        if isinstance(argv, str):
            raise UsageError("argv is a list of words; a line for the shell is given as shell=.")
        fields = {
            "argv": None if argv is None else list(argv),
            "shell": shell,
            "user": user,
            "directory": directory,
            "environment": None if environment is None else dict(environment),
            "stdin": None if stdin is None else base64.b64encode(stdin).decode(),
            "limits": None if limits is None else dict(limits),
        }
        self._body = {name: value for name, value in fields.items() if value is not None}
        self._url = f"{task_url(task_id)}/exec"
        self._output = output
        self._kept: dict[Stream, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self._begun = bytearray()
        self._exit: Mapping[str, Any] | None = None

    def call(self) -> Call:
        """The request."""
        return Call("POST", self._url, {"json": self._body, "headers": {"Accept": _TYPE}, "timeout": _TIMEOUT})

    @staticmethod
    def opened(headers: httpx.Headers) -> None:
        """The answer begins. Raises ValueError when it is none of a command."""
        if not headers.get("Content-Type", "").startswith(_TYPE):
            raise ValueError("not the type of a command's answer")

    def take(self, piece: bytes) -> list[tuple[Stream, bytes]]:
        """What a piece of the answer says was written. Raises the error that ended the command."""
        self._begun += piece
        *lines, rest = self._begun.split(b"\n")
        if len(rest) > _LINE_BYTES:
            raise ValueError("a line that has no end")
        self._begun = rest
        return [written for line in lines if line.strip() for written in self._line(json.loads(line))]

    def hand_on(self, written: list[tuple[Stream, bytes]]) -> None:
        """Give it to whoever wants it, or keep it."""
        for stream, data in written:
            if self._output is not None:
                self._output(stream, data)
                continue
            self._kept[stream] += data
            if sum(map(len, self._kept.values())) > _KEPT_BYTES:
                raise ServiceUnavailable("The command writes more than is kept; take it as it comes, with output=.")

    def ended(self) -> Executed:
        """The answer has ended; how the command did. Raises ServiceUnavailable when the answer does not say so."""
        if self._exit is None:
            raise ServiceUnavailable(
                "The connection to the server broke; the command in the machine has ended with it."
            )
        code, signal, reason = (self._exit.get(name) for name in ("code", "signal", "reason"))
        stdout, stderr = (bytes(self._kept[stream]) for stream in ("stdout", "stderr"))
        return Executed(None if code is None else int(code), signal, reason, stdout, stderr)

    def _line(self, line: Mapping[str, Any]) -> Iterator[tuple[Stream, bytes]]:
        if "error" in line:
            raise error_from(line["error"])
        if "exit" in line:
            self._exit = dict(line["exit"])
        if "stream" in line:
            data = line["text"].encode() if "text" in line else base64.b64decode(line["data"])
            yield "stderr" if line["stream"] == "stderr" else "stdout", data
