"""Detached processes of machines through the host's service: started, looked at, followed, fed, signalled, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Literal

from anyio import move_on_after
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from foundation.errors import NotFound
from foundation.service.paths import BASE
from foundation.service.processes import KEY, Processes, ProcessRecord, ProcessSpec, SentSignal, StdinTaken
from machines.processes.detached import DetachedProcess, DetachedProcesses
from machines.processes.following import Ended, Following, Stream
from worker.service.machine import Machine, Share, admission_of, machine_of

#: Followers and waiters of one machine's processes at once: each takes a channel, of which a machine has 64.
FOLLOWERS_MOST = 32
#: A wait is answered after as long, whether the process has ended or not.
WAIT_SECONDS_MOST = 300.0

_SPEC_BYTES_MOST = 8 * 2**20
_FED_BYTES = 2**20
_CLOSE_SECONDS = 2.0
_SHOWN = 60
_OFFSET_MOST = 2**53


class _AskedOutput(BaseModel):
    """What is asked of a process's output."""

    model_config = ConfigDict(extra="ignore")

    stream: Literal["stdout", "stderr"] = "stdout"
    offset: int = Field(0, ge=0, le=_OFFSET_MOST)
    follow: bool = False


class _Feed(BaseModel):
    """What is said of a piece of a process's stdin."""

    model_config = ConfigDict(extra="ignore")

    offset: int = Field(0, ge=0, le=_OFFSET_MOST)
    close: bool = False


class _Wait(BaseModel):
    """For how long a process's end is awaited."""

    model_config = ConfigDict(extra="ignore")

    wait: float = Field(0.0, ge=0, allow_inf_nan=False)


_FOLLOWERS = Share(FOLLOWERS_MOST, "processes of this machine are followed or awaited at once; end some of that")


class _News(threading.Event):
    """Stands where the connection's thread takes an event, and wakes the loop."""

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._come = asyncio.Event()

    def set(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._come.set)

    def clear(self) -> None:
        """Nothing: what has come is told once, to whoever waits."""

    async def come(self, seconds: float) -> None:
        """Return once there is news, or after the time."""
        try:
            async with asyncio.timeout(seconds):
                await self._come.wait()
        except TimeoutError:
            return

    def forget(self) -> None:
        self._come.clear()


class _Follower:
    """Follows a process for one request, with no thread while nothing comes."""

    def __init__(self, machine: Machine, process: DetachedProcess, offsets: dict[Stream, int], *, follow: bool) -> None:
        self._machine = machine
        self._process = process
        self._offsets = offsets
        self._follow = follow
        self._news = _News()
        self._held = ExitStack()
        self._following: Following | None = None

    async def open(self) -> None:
        """Raises RateLimitExceeded, and what the guest's connection raises."""
        self._held.enter_context(_FOLLOWERS.one(self._machine.id))
        try:
            self._following = await self._machine.run(self._opened)
        except BaseException:
            self._held.close()
            raise

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes as they come, to the end of the process."""
        following = self._following
        while following is not None:
            # Before the look: what comes after it wakes the wait below.
            self._news.forget()
            pieces = await self._machine.run(following.read, abandoned=True)
            for piece in pieces:
                if isinstance(piece, Ended):
                    return
                yield piece.data
            if not pieces:
                await self._news.come(following.tick())

    async def close(self) -> None:
        """Follow no more."""
        self._held.close()
        if self._following is not None:
            # A guest that takes no message holds up the thread, and not the end of the request.
            with move_on_after(_CLOSE_SECONDS, shield=True):
                await self._machine.run(self._following.close, abandoned=True)

    def _opened(self) -> Following:
        return self._process.following(self._offsets, self._news, follow=self._follow)


class _Output(StreamingResponse):
    """The answer, with which the following ends."""

    def __init__(self, follower: _Follower) -> None:
        super().__init__(follower.pieces(), media_type="application/octet-stream")
        self.headers["X-Content-Type-Options"] = "nosniff"
        self._follower = follower

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._follower.close()


async def _start(request: Request) -> Response:
    machine = await machine_of(request, "processes")
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _SPEC_BYTES_MOST:
            break
    spec = ProcessSpec.model_validate_json(bytes(body))
    keeper = admission_of(request).keeper
    if spec.keep:
        keeper.check(machine.record, spec.key)
    record = await machine.run(DetachedProcesses(machine.shell).start, spec)
    if spec.keep:
        await machine.run(keeper.keep, machine.record, record)
    said = (spec.argv[0] if spec.argv else spec.shell) or ""
    machine.note_access("exec", f"Somebody started process '{spec.key}' as {spec.user}: {said[:_SHOWN]}")
    return _json(record)


async def _list(request: Request) -> Response:
    machine = await machine_of(request, "processes")
    return _json(Processes(processes=await machine.run(DetachedProcesses(machine.shell).list)))


async def _look(request: Request) -> Response:
    machine, process = await _entered(request)
    asked = _Wait.model_validate(dict(request.query_params))
    return _json(await _awaited(machine, process, min(asked.wait, WAIT_SECONDS_MOST)))


async def _output(request: Request) -> Response:
    machine, process = await _entered(request)
    asked = _AskedOutput.model_validate(dict(request.query_params))
    # Asked first: of what never was, nothing would ever come.
    await machine.run(process.record)
    machine.note_access("exec", f"Somebody read the output of process '{process.places.key}'.")
    follower = _Follower(machine, process, {asked.stream: asked.offset}, follow=asked.follow)
    await follower.open()
    return _Output(follower)


async def _feed(request: Request) -> Response:
    machine, process = await _entered(request)
    asked = _Feed.model_validate(dict(request.query_params))
    offset, taken, pending = asked.offset, asked.offset, bytearray()
    async for piece in request.stream():
        pending += piece
        while len(pending) >= _FED_BYTES:
            part = bytes(pending[:_FED_BYTES])
            taken = await machine.run(process.feed, offset, part)
            offset += len(part)
            del pending[: len(part)]
    if pending:
        taken = await machine.run(process.feed, offset, bytes(pending))
    if asked.close:
        await machine.run(process.close)
    return _json(StdinTaken(bytes=taken))


async def _signal(request: Request) -> Response:
    machine, process = await _entered(request)
    sent = SentSignal.model_validate_json(await request.body())
    machine.note_access("exec", f"Somebody sent {sent.signal} to process '{process.places.key}'.")
    await machine.run(process.signal, sent.signal)
    return Response(status_code=204)


_PROCESSES = f"{BASE}/machines/{{machine_id}}/processes"
ROUTES: tuple[BaseRoute, ...] = (
    Route(_PROCESSES, _list, methods=["GET"]),
    Route(_PROCESSES, _start, methods=["POST"]),
    Route(f"{_PROCESSES}/{{key}}", _look, methods=["GET"]),
    Route(f"{_PROCESSES}/{{key}}/output", _output, methods=["GET"]),
    Route(f"{_PROCESSES}/{{key}}/stdin", _feed, methods=["PUT"]),
    Route(f"{_PROCESSES}/{{key}}/signal", _signal, methods=["POST"]),
)


async def _entered(request: Request) -> tuple[Machine, DetachedProcess]:
    key = str(request.path_params["key"])
    machine = await machine_of(request, "processes")
    if not KEY.fullmatch(key):
        raise NotFound(f"The machine has no process with the key '{key[:_SHOWN]}'")
    return machine, DetachedProcess(machine.shell, key)


async def _awaited(machine: Machine, process: DetachedProcess, seconds: float) -> ProcessRecord:
    record = await machine.run(process.record)
    if record.state != "running" or seconds <= 0:
        return record
    follower = _Follower(machine, process, {}, follow=True)
    try:
        async with asyncio.timeout(seconds):
            await follower.open()
            async for _ in follower.pieces():
                pass
    except TimeoutError:
        pass
    finally:
        await follower.close()
    return await machine.run(process.record)


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")
