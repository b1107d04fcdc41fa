"""Files of machines through the host's service: looked at, read and written as streams, changed, and as archives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from typing import Any, TypeVar

import anyio
import structlog
from anyio import CancelScope, from_thread
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from foundation.archives import Piece, with_holes
from foundation.errors import TaskyardError, TimedOut
from foundation.service.files import (
    ARCHIVE,
    CHANGED,
    CONTENT,
    INFO,
    LISTED,
    REQUEST,
    AllChanged,
    ChangeFiles,
    Changes,
    FileInfo,
    Files,
    ListFiles,
    LookAt,
    PackArchive,
    ReadFile,
    UnpackArchive,
    WriteFile,
    printable,
)
from foundation.service.paths import BASE
from machines.files.archives import packed, unpack
from machines.files.guest_files import GuestFiles, OpenFile, Unreadable, Written
from machines.processes.guard import GuestPrograms
from worker.service.machine import Machine, admission_of, machine_of

_log = structlog.get_logger("service")
_M = TypeVar("_M", bound=BaseModel)

# A client that sends nothing of a body for so long is not waited for.
_SILENT_SECONDS = 60.0
_LINGER_SECONDS = 2.0
_GATHERED = 64 * 1024
_UNREADABLE_SHOWN = 100
_CHANGES_BYTES = 4 * 2**20
# Where a zip lies, in the directory of what is in the making.
_SPOOL = "archives"
_MEDIA_TYPES = {"tar": "application/x-tar", "tar.gz": "application/gzip", "zip": "application/zip"}


async def _info(request: Request) -> Response:
    asked, machine, files = await _entered(request, LookAt)
    machine.note_access("files", f"Somebody looked at files as {asked.user}.")
    found = await machine.run(lambda: files.stat(asked.paths, follow=asked.follow))
    return _json(Files(files=found))


async def _list(request: Request) -> Response:
    asked, machine, files = await _entered(request, ListFiles)
    machine.note_access("files", f"Somebody looked at files as {asked.user}.")
    if asked.pattern is None:
        found = files.listed(asked.path, depth=asked.depth, most=asked.most)
    else:
        found = files.search(asked.path, asked.pattern, depth=asked.depth, files_only=asked.files_only, most=asked.most)
    return await _streamed(machine, _as_json(found), found.close, media_type="application/json")


async def _read(request: Request) -> Response:
    asked, machine, files = await _entered(request, ReadFile)

    def opened() -> OpenFile:
        if asked.line is not None or asked.lines is not None:
            return files.read_lines(asked.path, asked.line or 1, asked.lines)
        return files.read(asked.path, asked.first, asked.last)

    machine.note_access("files", f"Somebody read {printable(asked.path)} as {asked.user}.")
    file = await machine.run(opened)
    partly = asked.first is not None or asked.last is not None
    size = file.info.size
    headers = {
        "Accept-Ranges": "bytes",
        "Last-Modified": _http_date(file.info),
        "Content-Disposition": "attachment",
        "X-Content-Type-Options": "nosniff",
    }
    if file.length is not None:
        headers["Content-Length"] = str(file.length)
    if partly:
        headers["Content-Range"] = f"bytes {file.offset}-{file.offset + (file.length or 0) - 1}/{size}"
    return await _streamed(
        machine,
        file.pieces(),
        file.close,
        status_code=HTTPStatus.PARTIAL_CONTENT if partly else HTTPStatus.OK,
        media_type="application/octet-stream",
        headers=headers,
    )


async def _write(request: Request) -> Response:
    asked, machine, files = await _entered(request, WriteFile)
    machine.note_access("files", f"Somebody wrote {printable(asked.path)} as {asked.user}.")
    how = Written(
        mode=asked.mode,
        owner=asked.owner,
        group=asked.group,
        modified_ns=asked.modified_ns,
        parents=asked.parents,
        new=asked.new,
    )
    body = _Body(request)
    return await _taken(request, machine, lambda: files.write(asked.path, _pieces(body), how))


async def _change(request: Request) -> Response:
    asked, machine, files = await _entered(request, ChangeFiles)
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > _CHANGES_BYTES:
            break
    changes = Changes.model_validate_json(bytes(body)).changes
    machine.note_access("files", f"Somebody changed files as {asked.user}.")
    return _json(AllChanged(changed=await machine.run(lambda: files.change(changes))))


async def _pack(request: Request) -> Response:
    asked, machine, files = await _entered(request, PackArchive)
    machine.note_access("files", f"Somebody took an archive of {printable(asked.path)} as {asked.user}.")
    pieces = packed(files, asked.path, asked.format)
    return await _streamed(machine, pieces, _closing(pieces), media_type=_MEDIA_TYPES[asked.format])


async def _unpack(request: Request) -> Response:
    asked, machine, files = await _entered(request, UnpackArchive)
    machine.note_access("files", f"Somebody laid an archive into {printable(asked.path)} as {asked.user}.")
    spool = admission_of(request).settings.staging / _SPOOL
    body = _Body(request)

    def unpacked() -> BaseModel:
        return unpack(files, asked.path, body, asked.format, spool=spool, keep_owners=asked.keep_owners)

    return await _taken(request, machine, unpacked)


def _path(parts: tuple[str, ...]) -> str:
    return "/".join((f"{BASE}/machines/{{machine_id}}", *parts))


#: What can be done with the files of a machine.
ROUTES = (
    Route(_path(INFO), _info),
    Route(_path(LISTED), _list),
    Route(_path(CONTENT), _read, methods=["GET"]),
    Route(_path(CONTENT), _write, methods=["PUT"]),
    Route(_path(CHANGED), _change, methods=["POST"]),
    Route(_path(ARCHIVE), _pack, methods=["GET"]),
    Route(_path(ARCHIVE), _unpack, methods=["PUT"]),
)


async def _entered(request: Request, model: type[_M]) -> tuple[_M, Machine, GuestFiles]:
    machine = await machine_of(request, "files")
    asked = model.model_validate_json(request.query_params.get(REQUEST, "{}"))
    return asked, machine, GuestFiles(GuestPrograms(machine.shell), str(getattr(asked, "user", "")))


async def _taken(request: Request, machine: Machine, take: Callable[[], BaseModel]) -> Response:
    """What came of a body that was taken. Of a refusal nobody hears who has not sent it all."""
    try:
        return _json(await machine.run(take, lasting=True))
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)
    except TaskyardError:
        with anyio.move_on_after(_LINGER_SECONDS), suppress(ClientDisconnect, RuntimeError):
            async for _ in request.stream():
                pass
        raise


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


async def _streamed(machine: Machine, pieces: Iterator[bytes], close: Callable[[], None], **head: Any) -> Response:
    """The pieces as an answer, once there is a first one: what is wrong before is told as an error."""
    try:
        first = await machine.run(next, pieces, None)
    except BaseException:
        await _shielded(machine, close)
        raise

    async def streamed() -> AsyncIterator[bytes]:
        try:
            piece = first
            while piece is not None:
                yield piece
                piece = await machine.run(next, pieces, None)
        finally:
            await _shielded(machine, close)

    return _Streamed(streamed(), machine, close, **head)


class _Streamed(StreamingResponse):
    """One that ends what it streams, also when nobody has begun to read it."""

    def __init__(self, content: AsyncIterator[bytes], machine: Machine, close: Callable[[], None], **head: Any) -> None:
        super().__init__(content, **head)
        self._machine = machine
        self._close = close

    async def __call__(self, *arguments: Any) -> None:
        try:
            await super().__call__(*arguments)
        except TaskyardError as error:
            # It has begun: that it does not end is all that can be told.
            _log.warning("an answer was cut off", machine=self._machine.id, code=error.code, message=error.message)
        finally:
            await _shielded(self._machine, self._close)


async def _shielded(machine: Machine, close: Callable[[], None]) -> None:
    with CancelScope(shield=True):
        await machine.run(close)


def _closing(pieces: Iterator[bytes]) -> Callable[[], None]:
    def close() -> None:
        # One that a thread is still in ends with its channel.
        with suppress(ValueError):
            getattr(pieces, "close", lambda: None)()

    return close


def _as_json(found: Iterator[FileInfo | Unreadable]) -> Iterator[bytes]:
    """A list as one JSON object, which is written as its files come."""
    truncated = False
    unreadable: list[str] = []

    def infos() -> Iterator[FileInfo]:
        nonlocal truncated
        while True:
            try:
                each = next(found)
            except StopIteration as end:
                truncated = bool(end.value)
                return
            if isinstance(each, Unreadable):
                unreadable.append(printable(each.path))
                del unreadable[_UNREADABLE_SHOWN:]
            else:
                yield each

    gathered, before = bytearray(b'{"files":['), b""
    for info in infos():
        gathered += before + info.model_dump_json().encode()
        before = b","
        if len(gathered) >= _GATHERED:
            yield bytes(gathered)
            gathered.clear()
    yield bytes(gathered) + b"]," + _Ending(truncated=truncated, unreadable=unreadable).model_dump_json().encode()[1:]


class _Ending(BaseModel):
    truncated: bool
    unreadable: list[str]


def _pieces(body: _Body) -> Iterator[Piece]:
    while data := body.read(_GATHERED):
        yield from with_holes(data)


class _Body:
    """The body of a request, for a thread that reads it: no faster than it comes, and no more of it than is wanted.

    Raises TimedOut for a client that sends nothing for a while, ClientDisconnect for one that has left.
    """

    def __init__(self, request: Request) -> None:
        self._stream = request.stream()
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        while not self._left:
            try:
                self._left = memoryview(from_thread.run(self._next))
            except TimeoutError:
                raise TimedOut(f"Nothing of the body has come for {_SILENT_SECONDS:g} s; send it again") from None
            if not self._left:
                return b""
        given, self._left = self._left[:size], self._left[size:]
        return bytes(given)

    async def _next(self) -> bytes:
        with anyio.fail_after(_SILENT_SECONDS):
            async for piece in self._stream:
                if piece:
                    return piece
        return b""


def _http_date(info: FileInfo) -> str:
    return info.modified_at.strftime("%a, %d %b %Y %H:%M:%S GMT")
