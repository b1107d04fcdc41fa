"""The journal of a log: what its writer told readers, and the bucket may not have, in a file of the host.

It survives the death of the process (each entry is written before anybody is told), and not that of the host, which
takes the machine with it. Lines of two kinds:

    {"writer": "<token>"}      this writer begins to tell entries here
    {"id": 18, "ts": ...}      an entry that was told

Its lock says who may tell: a worker that is still stopping, or the next one.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pydantic import ValidationError

from foundation.errors import ServiceUnavailable
from foundation.locks import held
from storage.segments import ChainEnd, LogEntry

# Beyond this, entries wait for the bucket.
_MOST_BYTES = 2 * 1024 * 1024
# A journal that never becomes empty, as something is told whenever something is stored, is written anew beyond this.
_REWRITTEN_BYTES = 512 * 1024


class Superseded(ServiceUnavailable):
    """Another writer of this host has gone on with the log; whoever is to write it begins anew."""


class Journal:
    """One journal, held by this process. Thread-safe; of several writers here, the last to ``begin`` is the one."""

    def __init__(self, path: Path, descriptor: int, lock: ExitStack) -> None:
        self._path = path
        self._descriptor = descriptor
        self._held = lock
        self._lock = threading.Lock()
        self._writer = ""
        # Whether the file names the writer, without which nothing that follows counts.
        self._named = False

    @classmethod
    def open(cls, path: Path, patience: float) -> Journal | None:
        """The journal, made if need be; None when another process held it for so many seconds, or the disk refuses."""
        with ExitStack() as stack:
            try:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not stack.enter_context(held(path, patience=patience)):
                    return None
                descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            except OSError:
                return None
            stack.callback(os.close, descriptor)
            return cls(path, descriptor, stack.pop_all())

    def begin(self, writer: str, end: ChainEnd) -> list[LogEntry] | None:
        """Make ``writer`` the one that tells, and give what was told behind the bucket's end.

        None when that is not known: the file is not whole, or the log has been gone on with elsewhere.
        """
        with self._lock:
            told = self._told(end)
            self._writer = writer
            self._named = self._write(_named(writer))
            return told

    def retire(self) -> None:
        """Nobody tells until a writer begins: the one that did is superseded."""
        with self._lock:
            self._writer = ""

    def check(self, writer: str) -> None:
        """Return while ``writer`` is the one that tells. Raises Superseded."""
        if self._writer != writer:
            raise Superseded("Another writer of this host has gone on with the log; the next attempt finds its end.")

    def append(self, writer: str, lines: Sequence[bytes]) -> bool:
        """Note entries that are to be told now. False: they must not be, as there is no room. Raises Superseded."""
        with self._lock:
            self.check(writer)
            return self._named and self._write(b"".join(line + b"\n" for line in lines))

    def cut(self, writer: str, kept: Sequence[bytes] = ()) -> None:
        """Forget all entries but those ``kept``, its last: the bucket has them. Raises Superseded."""
        with self._lock:
            self.check(writer)
            try:
                if not kept:
                    self._named = False
                    os.ftruncate(self._descriptor, 0)
                    self._named = self._write(_named(writer))
                elif os.fstat(self._descriptor).st_size > _REWRITTEN_BYTES:
                    self._replace(_named(writer) + b"".join(line + b"\n" for line in kept))
            except OSError:
                return

    def _replace(self, body: bytes) -> None:
        """Put a file with this content in the place of the journal, locked before anybody can find it."""
        with ExitStack() as stack:
            draft = self._path.with_name(f".{self._path.name}")
            stack.callback(draft.unlink, missing_ok=True)
            draft.unlink(missing_ok=True)
            lock = stack.enter_context(ExitStack())
            lock.enter_context(held(draft, patience=0))
            descriptor = os.open(draft, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
            lock.callback(os.close, descriptor)
            if os.write(descriptor, body) == len(body):
                draft.replace(self._path)
                before, self._held, self._descriptor = self._held, lock.pop_all(), descriptor
                before.close()

    def close(self, *, remove: bool = False) -> None:
        """Let go of it; with ``remove`` for good: nothing in it is needed any more."""
        with self._lock:
            self._writer = ""
            if remove:
                self._path.unlink(missing_ok=True)
            self._held.close()

    def _told(self, end: ChainEnd) -> list[LogEntry] | None:
        try:
            size = os.fstat(self._descriptor).st_size
            body = os.pread(self._descriptor, size, 0) if size <= _MOST_BYTES else b""
            # A last line without its newline was not written to its end, so nobody was told of it.
            body = body[: body.rfind(b"\n") + 1]
            os.ftruncate(self._descriptor, len(body))
        except OSError:
            return None
        writers: set[str] = set()
        entries: list[LogEntry] = []
        for line in body.split(b"\n")[:-1]:
            try:
                if line.startswith(b'{"writer"'):
                    writers.add(json.loads(line)["writer"])
                else:
                    entries.append(LogEntry.model_validate_json(line))
            except (ValueError, ValidationError, KeyError, TypeError):
                return None
        entries = [entry for entry in entries if entry.id > end.last]
        neighbours = [entry.id for entry in entries] == list(range(end.last + 1, end.last + 1 + len(entries)))
        return entries if end.writer in writers and neighbours else None

    def _write(self, data: bytes) -> bool:
        """Append all of the data or nothing."""
        try:
            size = os.fstat(self._descriptor).st_size
            if size + len(data) > _MOST_BYTES:
                return False
            try:
                if os.write(self._descriptor, data) == len(data):
                    return True
            finally:
                if os.fstat(self._descriptor).st_size != size + len(data):
                    os.ftruncate(self._descriptor, size)
        except OSError:
            pass
        return False


def _named(writer: str) -> bytes:
    return json.dumps({"writer": writer}).encode() + b"\n"
