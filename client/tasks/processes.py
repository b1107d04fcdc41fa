"""Processes of a run's machine that outlive their callers, as both clients ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ConfigDict

from client.tasks.calls import Call, task_url
from foundation.errors import UsageError

Stream = Literal["stdout", "stderr"]

_CONNECT_SECONDS = 5.0
_MARGIN_SECONDS = 60.0
# One that writes nothing is followed for as long as it lives.
_FOLLOW_TIMEOUT = httpx.Timeout(None, connect=_CONNECT_SECONDS)


class Process(BaseModel):
    """What is known of a process: it is ``running``, has ``exited``, or is ``lost`` when nobody can say how it ended.

    ``reason`` is the limit for which it was stopped, if it was: ``timeout``, ``output`` or ``memory``.
    """

    model_config = ConfigDict(extra="allow")

    key: str
    state: str
    exit_code: int | None = None
    signal: str | None = None
    reason: str | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    stdout_bytes: int = 0
    stderr_bytes: int = 0


class ProcessList(BaseModel):
    """The processes of a machine."""

    model_config = ConfigDict(extra="allow")

    processes: list[Process]


class StdinTaken(BaseModel):
    """How many bytes a process's stdin has been given in all."""

    model_config = ConfigDict(extra="allow")

    bytes: int


def start(task_id: str, key: str, argv: Sequence[str] | None, fields: Mapping[str, Any]) -> Call:
    """Start a process; fields that are None are left out."""
    if isinstance(argv, str):
        raise UsageError("argv is a list of words; a line for the shell is given as shell=.")
    body = {"key": key, "argv": None if argv is None else list(argv), **fields}
    given = {name: _plain(value) for name, value in body.items() if value is not None}
    return Call("POST", _url(task_id), {"json": given, "timeout": _waiting(0)}, Process)


def every(task_id: str) -> Call:
    """List them."""
    return Call("GET", _url(task_id), reply=ProcessList)


def look(task_id: str, key: str, wait_seconds: float) -> Call:
    """One of them, once it has ended or the time is up."""
    options = {"params": {"wait": f"{wait_seconds:.3f}"}, "timeout": _waiting(wait_seconds)}
    return Call("GET", _url(task_id, key), options, Process)


def output(task_id: str, key: str, stream: Stream, offset: int, *, follow: bool) -> Call:
    """What it writes."""
    params = {"stream": stream, "offset": offset, "follow": follow}
    return Call("GET", _url(task_id, key, "output"), {"params": params, "timeout": _FOLLOW_TIMEOUT})


def feed(task_id: str, key: str, data: bytes, offset: int, *, close: bool) -> Call:
    """Bytes of its stdin."""
    options = {
        "params": {"offset": offset, "close": close},
        "content": data,
        "headers": {"Content-Type": "application/octet-stream"},
        "timeout": _FOLLOW_TIMEOUT,
    }
    return Call("PUT", _url(task_id, key, "stdin"), options, StdinTaken)


def send_signal(task_id: str, key: str, signal: str) -> Call:
    """A signal to all of it."""
    return Call("POST", _url(task_id, key, "signal"), {"json": {"signal": signal}})


def _url(task_id: str, *parts: str) -> str:
    return "/".join((task_url(task_id), "processes", *(quote(part, safe="") for part in parts)))


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _waiting(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds + _MARGIN_SECONDS, connect=_CONNECT_SECONDS)
