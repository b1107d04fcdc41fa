"""One way to write a file of this host: into a draft beside it, which then takes its name, so that nobody sees a half.

What a crash of the host may take with it is the caller's choice, because waiting for a disk is slow.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

PRIVATE = 0o600
#: As any program makes a file: the process's umask says who else may read it.
ORDINARY = 0o666

_PUSH_SECONDS = 0.01
_WRITE_OUT = 2  # SYNC_FILE_RANGE_WRITE: what is not on its way to the disk yet is sent there, and not awaited


def write_whole(path: Path, data: bytes | str, mode: int = PRIVATE) -> None:
    """Put ``data`` in the place of the file: whoever looks, now or after a crash of this process, finds the old or new.

    A crash of the host may leave an empty file: for what is made again, or goes with the host's memory anyway.
    Raises OSError, and then the old file is there.
    """
    with _draft(path, data, mode) as draft:
        draft.replace(path)


def write_durably(path: Path, data: bytes | str, mode: int = PRIVATE) -> None:
    """The same, also after a crash of the host: it has reached the disk when this returns, under its name."""
    with _draft(path, data, mode, durable=True) as draft:
        draft.replace(path)
    sync(path.parent)


def write_once(path: Path, data: bytes | str, mode: int = PRIVATE) -> None:
    """Make the file with this content unless there is one: of several at once, one is first, and the others' is lost.

    Raises OSError.
    """
    with _draft(path, data, mode) as draft, suppress(FileExistsError):
        os.link(draft, path)


def sync(path: Path) -> None:
    """Have a file, or a directory's entries, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def on_their_way(*files: Path) -> Iterator[None]:
    """Have what anybody writes to the files meanwhile go to the disk at once, so that ``sync`` waits for less.

    Nothing is known to have reached it. Raises OSError for a file that cannot be opened.
    """
    over = threading.Event()

    def push(opened: list[IO[bytes]]) -> None:
        libc = ctypes.CDLL(None)
        while not over.wait(_PUSH_SECONDS):
            for file in opened:
                libc.sync_file_range(file.fileno(), ctypes.c_int64(0), ctypes.c_int64(0), _WRITE_OUT)

    with ExitStack() as stack:
        opened = [stack.enter_context(file.open("rb")) for file in files]
        pushing = threading.Thread(target=push, args=(opened,), name="write-out", daemon=True)
        pushing.start()
        try:
            yield
        finally:
            over.set()
            pushing.join()


@contextmanager
def _draft(path: Path, data: bytes | str, mode: int, *, durable: bool = False) -> Iterator[Path]:
    """A new file beside ``path`` that holds the data, for the time of the block."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)
