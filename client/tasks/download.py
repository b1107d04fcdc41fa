"""Artifacts on their way into files of this host: checked, whole or not there at all, and never over something else.

Names come from a guest by way of a server, and neither is trusted: none leads out of the directory, none through a
symbolic link, and none onto a file that is there already, unless that was asked for.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import Self

import httpx

from client.tasks.replies import Artifact
from foundation.errors import Conflict, ServiceUnavailable, TaskyardError

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

CHUNK_BYTES = 256 * 1024

_NAME_BYTES = 255
_ENDING_BYTES = 20
# So often in a row the server may be away before the rest of a run's artifacts is not asked for any more.
_AWAY_MOST = 3
_UNWRITABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\ud800-\udfff]" if os.name != "nt" else '[\x00-\x1f\x7f-\x9f\ud800-\udfff<>:"|?*\\\\]|[. ]$'
)
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def unwatched(_done: int, _all: int) -> None:
    """The progress of whom it does not interest."""


@dataclass(frozen=True)
class Fetched:
    """How it went with one artifact: ``path`` is its file; with ``error`` it is not there, or not this artifact."""

    artifact: Artifact
    path: Path
    error: TaskyardError | None = None


def local_path(name: str) -> Path:
    """The relative path of an artifact's file: its name, with what no file here can be called written otherwise."""
    return Path(*[_local_part(part) for part in name.split("/") if part not in {"", ".", ".."}] or ["artifact"])


class Download:
    """One artifact on its way into a file: written beside it, checked, and only then put in place.

    What lies at ``target`` stays, unless it is a file and ``force`` is set; the same bytes there are as good as a
    download. With ``below`` no directory between that one and the target may be a symbolic link. Its methods raise
    TaskyardError; they block, and may be called in any thread.
    """

    def __init__(
        self, name: str, target: Path, headers: httpx.Headers, *, verify: bool, force: bool, batch: Batch | None = None
    ) -> None:
        self.done = 0
        self.size = size_of(headers)
        self.wanted = True
        self._name = name
        self._target = target
        self._checksum = headers.get("X-Checksum-SHA256")
        self._verify = verify
        self._force = force
        self._batch = batch
        self._digest = hashlib.sha256()
        self._draft = target.parent / f".{secrets.token_hex(8)}.part"
        self._file: int | None = None
        self._lock = Lock()
        self._closed = False

    def open(self) -> None:
        """Look at the target and make the draft. Afterwards ``wanted`` says whether any bytes are. Raises Conflict."""
        with self._lock, self._sentences():
            if self._closed:
                return
            if self._batch is None:
                self._target.parent.mkdir(parents=True, exist_ok=True)
            else:
                self._batch.make_parents(self._target)
            if self._is_there():
                self.wanted = False
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
            self._file = os.open(self._draft, flags, 0o666)

    def take(self, piece: bytes) -> None:
        """Write a piece of the bytes."""
        with self._lock, self._sentences():
            if self._file is None:
                return
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            self._digest.update(piece)
            self.done += len(piece)

    def finish(self) -> int:
        """Check and put in place; the size in bytes. Raises TaskyardError for damaged bytes."""
        with self._lock, self._sentences():
            if not self.wanted:
                return self.size
            self._close_file()
            if self._verify and self._checksum is None:
                raise TaskyardError(f"'{self._name}' came without its checksum; without the check it can be had.")
            if self._verify and self._digest.hexdigest() != self._checksum:
                raise TaskyardError(f"'{self._name}' arrived damaged; download it again.")
            self._place()
            return self.done

    def close(self) -> None:
        """Leave no draft behind."""
        with self._lock:
            self._closed = True
            self._close_file()
            with suppress(OSError):
                self._draft.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        try:
            self.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _is_there(self) -> bool:
        """Whether the target has these bytes already. Raises Conflict when it must not be replaced."""
        try:
            found = self._target.lstat()
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode):
            raise Conflict(f"'{self._target}' is there already and is no file; nothing is written over or through it.")
        if self._checksum is not None and found.st_size == self.size and _sha256(self._target) == self._checksum:
            return True
        if self._batch is not None and self._batch.has_written(found):
            raise Conflict(f"'{self._target}' is the file of another artifact; download '{self._name}' by itself.")
        if not self._force:
            raise self._occupied()
        return False

    def _place(self) -> None:
        if self._force:
            if not self._is_there():
                self._draft.replace(self._target)
        else:
            try:
                # Unlike a rename, a link never takes the place of what came there meanwhile.
                os.link(self._draft, self._target)
            except FileExistsError:
                raise self._occupied() from None
            except OSError:
                # A file system without links.
                if self._target.is_symlink() or self._target.exists():
                    raise self._occupied() from None
                self._draft.rename(self._target)
        if self._batch is not None:
            self._batch.written(self._target.lstat())

    def _occupied(self) -> Conflict:
        return Conflict(f"'{self._target}' is there already and has other content; move it, or overwrite it by force.")

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _sentences(self) -> _Sentences:
        return _Sentences(self._target)


class Batch:
    """Downloads of one run into one directory: what they have written, and how often the server was away in a row."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._written: set[tuple[int, int]] = set()
        self._away = 0
        self.given_up: TaskyardError | None = None

    def target(self, artifact: Artifact) -> Path:
        """Where an artifact goes."""
        return self._directory / local_path(artifact.name)

    def ended(self, error: TaskyardError | None) -> None:
        """Note how one artifact went. When the server stays away, ``given_up`` is set."""
        self._away = self._away + 1 if isinstance(error, ServiceUnavailable) else 0
        if self._away >= _AWAY_MOST:
            self.given_up = error

    def make_parents(self, target: Path) -> None:
        """Make the directories between the batch's own and the target. Raises Conflict where something else stands."""
        self._directory.mkdir(parents=True, exist_ok=True)
        place = self._directory
        for part in target.relative_to(self._directory).parts[:-1]:
            place /= part
            with suppress(FileExistsError):
                place.mkdir()
            if not stat.S_ISDIR(place.lstat().st_mode):
                raise Conflict(f"'{place}' is no directory of its own; nothing is written through it.")

    def has_written(self, found: os.stat_result) -> bool:
        """Whether a file is one of this batch's."""
        return (found.st_dev, found.st_ino) in self._written

    def written(self, found: os.stat_result) -> None:
        """A file was put in place."""
        self._written.add((found.st_dev, found.st_ino))


def size_of(headers: httpx.Headers) -> int:
    """Bytes that the answer will have; 0 when it does not say."""
    length = headers.get("Content-Length", "")
    return int(length) if length.isdecimal() else 0


class _Sentences:
    """Turns what the file system refuses into a sentence."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __enter__(self) -> None:
        return

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise TaskyardError(f"'{self._target}' cannot be written: {error.strerror}.") from error


def _local_part(part: str) -> str:
    text = _UNWRITABLE.sub(lambda match: "".join(f"%{byte:02X}" for byte in _raw(match[0])), part)
    if os.name == "nt" and _DEVICE.fullmatch(text):
        text = f"_{text}"
    if len(_raw(text)) <= _NAME_BYTES:
        return text
    ending = PurePosixPath(text).suffix
    ending = ending if len(_raw(ending)) <= _ENDING_BYTES else ""
    mark = f"~{hashlib.sha256(_raw(part)).hexdigest()[:16]}{ending}"
    return _raw(text)[: _NAME_BYTES - len(_raw(mark))].decode(errors="ignore") + mark


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
