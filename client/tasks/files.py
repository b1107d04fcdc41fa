"""Files of a run's machine as both clients have them: what is sent, and what comes back, piece by piece."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, BinaryIO

import httpx

from client.tasks.calls import Call, file_call
from foundation.errors import ForeignServer
from foundation.service.files import AllChanged, ArchiveFormat, Changed, Extracted, FileInfo, FileList, Files

CHUNK_BYTES = 256 * 1024

#: A path in the machine: text, or bytes where it is no UTF-8.
MachinePath = str | bytes
#: Bytes, a file that is open, or pieces. Whoever is asynchronous has them read in a thread.
Content = bytes | BinaryIO | Iterable[bytes]


class MachineFiles(ABC):
    """Files of the machine of a run that is running, or was kept after a failure.

    Paths are absolute, or relative to the workspace. ``user`` is the guest's that does it, by name or number. Raises
    the kinds of ``foundation.errors.FileError``, and MachineUnavailable for a run that has no machine now.
    """

    def file_info(self, task_id: str, path: MachinePath, *, follow: bool = False, user: str | None = None) -> FileInfo:
        """What is known of a file; with ``follow``, of what a link leads to. Raises FileNotFound."""
        return the_only(self._send(info_call(task_id, path, follow, user)))

    def list_files(
        self,
        task_id: str,
        path: MachinePath = ".",
        *,
        depth: int = 1,
        limit: int | None = None,
        user: str | None = None,
    ) -> FileList:
        """What is in a directory, ``depth`` levels of it (0: all), by name; paths are relative to it."""
        return FileList.model_validate(self._send(list_call(task_id, path, depth, limit, user)))

    def search_files(
        self, task_id: str, pattern: str, path: MachinePath = ".", *, limit: int | None = None, user: str | None = None
    ) -> FileList:
        """What is below a directory and matches: ``*.py`` by name, with a slash by path, where ``**`` is anything."""
        return FileList.model_validate(self._send(search_call(task_id, pattern, path, limit, user)))

    def read_file(
        self,
        task_id: str,
        path: MachinePath,
        *,
        first: int | None = None,
        last: int | None = None,
        first_line: int | None = None,
        line_count: int | None = None,
        user: str | None = None,
    ) -> Generator[bytes, None, None]:
        """A file, in pieces: whole, from byte ``first`` to byte ``last``, or lines."""
        with self._open(read_call(task_id, path, (first, last), (first_line, line_count), user)) as response:
            yield from response.iter_bytes(CHUNK_BYTES)

    def write_file(
        self,
        task_id: str,
        path: MachinePath,
        content: Content,
        *,
        mode: str | None = None,
        modified_ns: int | None = None,
        new: bool = False,
        user: str | None = None,
    ) -> FileInfo:
        """Write a file whole; until all of it has come, what is there stays. ``mode`` is octal text."""
        call = write_call(task_id, path, mode, modified_ns, new, user, pieces(content))
        return FileInfo.model_validate(self._send(call))

    def change_files(
        self, task_id: str, changes: Sequence[Mapping[str, Any]], *, user: str | None = None
    ) -> list[Changed]:
        """Make changes as ``POST …/files/changes`` takes them, in their order, until one fails."""
        return AllChanged.model_validate(self._send(change_call(task_id, changes, user))).changed

    def download_archive(
        self, task_id: str, path: MachinePath = ".", form: ArchiveFormat = "tar.gz", *, user: str | None = None
    ) -> Generator[bytes, None, None]:
        """What is in a directory, or a file, as an archive, in pieces. Only one that ends without an error is whole."""
        with self._open(pack_call(task_id, path, form, user)) as response:
            # As they come: what came before it broke off may say why.
            yield from response.iter_bytes()

    def upload_archive(
        self,
        task_id: str,
        path: MachinePath,
        content: Content,
        form: ArchiveFormat | None = None,
        *,
        keep_owners: bool = False,
        user: str | None = None,
    ) -> Extracted:
        """Lay out an archive below a directory, which is made; without ``form``, the one that it begins like."""
        call = unpack_call(task_id, path, form, keep_owners, user, pieces(content))
        return Extracted.model_validate(self._send(call))

    @abstractmethod
    def _send(self, call: Call) -> Any: ...

    @abstractmethod
    def _open(self, call: Call) -> AbstractContextManager[httpx.Response]: ...


class AsyncMachineFiles(ABC):
    """The methods of ``MachineFiles``, awaited."""

    async def file_info(
        self, task_id: str, path: MachinePath, *, follow: bool = False, user: str | None = None
    ) -> FileInfo:
        """What is known of a file; with ``follow``, of what a link leads to. Raises FileNotFound."""
        return the_only(await self._send(info_call(task_id, path, follow, user)))

    async def list_files(
        self,
        task_id: str,
        path: MachinePath = ".",
        *,
        depth: int = 1,
        limit: int | None = None,
        user: str | None = None,
    ) -> FileList:
        """What is in a directory, ``depth`` levels of it (0: all), by name; paths are relative to it."""
        return FileList.model_validate(await self._send(list_call(task_id, path, depth, limit, user)))

    async def search_files(
        self, task_id: str, pattern: str, path: MachinePath = ".", *, limit: int | None = None, user: str | None = None
    ) -> FileList:
        """What is below a directory and matches: ``*.py`` by name, with a slash by path, where ``**`` is anything."""
        return FileList.model_validate(await self._send(search_call(task_id, pattern, path, limit, user)))

    async def read_file(
        self,
        task_id: str,
        path: MachinePath,
        *,
        first: int | None = None,
        last: int | None = None,
        first_line: int | None = None,
        line_count: int | None = None,
        user: str | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """A file, in pieces: whole, from byte ``first`` to byte ``last``, or lines."""
        async with self._open(read_call(task_id, path, (first, last), (first_line, line_count), user)) as response:
            async for piece in response.aiter_bytes(CHUNK_BYTES):
                yield piece

    async def write_file(
        self,
        task_id: str,
        path: MachinePath,
        content: Content,
        *,
        mode: str | None = None,
        modified_ns: int | None = None,
        new: bool = False,
        user: str | None = None,
    ) -> FileInfo:
        """Write a file whole; until all of it has come, what is there stays. ``mode`` is octal text."""
        call = write_call(task_id, path, mode, modified_ns, new, user, async_pieces(content))
        return FileInfo.model_validate(await self._send(call))

    async def change_files(
        self, task_id: str, changes: Sequence[Mapping[str, Any]], *, user: str | None = None
    ) -> list[Changed]:
        """Make changes as ``POST …/files/changes`` takes them, in their order, until one fails."""
        return AllChanged.model_validate(await self._send(change_call(task_id, changes, user))).changed

    async def download_archive(
        self, task_id: str, path: MachinePath = ".", form: ArchiveFormat = "tar.gz", *, user: str | None = None
    ) -> AsyncGenerator[bytes, None]:
        """What is in a directory, or a file, as an archive, in pieces. Only one that ends without an error is whole."""
        async with self._open(pack_call(task_id, path, form, user)) as response:
            async for piece in response.aiter_bytes():
                yield piece

    async def upload_archive(
        self,
        task_id: str,
        path: MachinePath,
        content: Content,
        form: ArchiveFormat | None = None,
        *,
        keep_owners: bool = False,
        user: str | None = None,
    ) -> Extracted:
        """Lay out an archive below a directory, which is made; without ``form``, the one that it begins like."""
        call = unpack_call(task_id, path, form, keep_owners, user, async_pieces(content))
        return Extracted.model_validate(await self._send(call))

    @abstractmethod
    async def _send(self, call: Call) -> Any: ...

    @abstractmethod
    def _open(self, call: Call) -> AbstractAsyncContextManager[httpx.Response]: ...


def info_call(task_id: str, path: MachinePath, follow: bool, user: str | None) -> Call:
    """The request of ``file_info``."""
    return file_call("GET", task_id, "info", path, {"follow": follow or None, "user": user}, reply=Files)


def list_call(task_id: str, path: MachinePath, depth: int, limit: int | None, user: str | None) -> Call:
    """The request of ``list_files``."""
    return file_call("GET", task_id, "list", path, {"depth": depth, "limit": limit, "user": user}, reply=FileList)


def search_call(task_id: str, pattern: str, path: MachinePath, limit: int | None, user: str | None) -> Call:
    """The request of ``search_files``."""
    params = {"pattern": pattern, "limit": limit, "user": user}
    return file_call("GET", task_id, "search", path, params, reply=FileList)


def read_call(
    task_id: str,
    path: MachinePath,
    part: tuple[int | None, int | None],
    lines: tuple[int | None, int | None],
    user: str | None,
) -> Call:
    """The request of ``read_file``."""
    params = {"first_line": lines[0], "line_count": lines[1], "user": user}
    first, last = ("" if number is None else str(number) for number in part)
    headers = {"Range": f"bytes={first or 0}-{last}"} if first or last else {}
    return file_call("GET", task_id, "content", path, params, headers=headers)


def write_call(
    task_id: str,
    path: MachinePath,
    mode: str | None,
    modified_ns: int | None,
    new: bool,
    user: str | None,
    content: Any,
) -> Call:
    """The request of ``write_file``."""
    params = {"mode": mode, "modified_ns": modified_ns, "new": new or None, "user": user}
    return file_call("PUT", task_id, "content", path, params, content=content, reply=FileInfo)


def change_call(task_id: str, changes: Sequence[Mapping[str, Any]], user: str | None) -> Call:
    """The request of ``change_files``."""
    body = {"changes": [dict(change) for change in changes]}
    return file_call("POST", task_id, "changes", None, {"user": user}, json=body, reply=AllChanged)


def pack_call(task_id: str, path: MachinePath, form: ArchiveFormat, user: str | None) -> Call:
    """The request of ``download_archive``."""
    return file_call("GET", task_id, "archive", path, {"format": form, "user": user})


def unpack_call(
    task_id: str, path: MachinePath, form: ArchiveFormat | None, keep_owners: bool, user: str | None, content: Any
) -> Call:
    """The request of ``upload_archive``."""
    params = {"format": form, "keep_owners": keep_owners or None, "user": user}
    return file_call("PUT", task_id, "archive", path, params, content=content, reply=Extracted)


def the_only(answer: Any) -> FileInfo:
    """The one file of an answer. Raises ForeignServer for an answer without one."""
    for info in Files.model_validate(answer).files:
        return info
    raise ForeignServer("The server tells of no file; it is not Taskyard, or another version of it.")


def pieces(content: Content) -> bytes | Iterable[bytes]:
    """Content as it is sent: a file is read as it goes."""
    if isinstance(content, bytes) or not hasattr(content, "read"):
        return content
    file: Any = content
    return iter(lambda: file.read(CHUNK_BYTES), b"")


def async_pieces(content: Content) -> bytes | AsyncIterable[bytes]:
    """The same for an event loop."""
    given = pieces(content)
    return given if isinstance(given, bytes) else _in_threads(iter(given))


async def _in_threads(given: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
    while (piece := await asyncio.to_thread(next, given, None)) is not None:
        yield piece
