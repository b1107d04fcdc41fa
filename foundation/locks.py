"""One way to hold a lock among the processes and threads of this host: flock on a file, which ends with its holder.

A lock's file stays when the lock is let go, unless what it guards is removed, and the file with it.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

_POLL_SECONDS = 0.05


class _Open(Protocol):
    def fileno(self) -> int: ...


def take(
    file: int | _Open,
    *,
    shared: bool = False,
    patience: float | None = None,
    busy: Callable[[], object] = lambda: None,
) -> bool:
    """Lock an open file until it is closed, alone or ``shared``; False when it stayed busy for ``patience`` seconds.

    With None it waits in the kernel for as long as it takes. With a number, even an infinite one, it looks again and
    again, so that an exception raised in this thread meanwhile is not held up. ``busy`` is called once, before the
    first wait. A lock that is held already is let go before it becomes one of the other kind.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    if _at_once(file, kind):
        return True
    if patience == 0:
        return False
    busy()
    if patience is None:
        fcntl.flock(file, kind)
        return True
    end = time.monotonic() + patience
    while not _at_once(file, kind):
        if time.monotonic() >= end:
            return False
        time.sleep(_POLL_SECONDS)
    return True


@contextmanager
def held(
    path: Path,
    *,
    shared: bool = False,
    patience: float | None = None,
    busy: Callable[[], object] = lambda: None,
) -> Iterator[bool]:
    """Hold the lock of a file, made if need be, for the time of the block; the arguments are those of ``take``.

    Gives whether it is held. A file that somebody has removed, or made anew, while this waited is not the one to hold.
    Raises FileNotFoundError when its directory is not there.
    """
    end = None if patience is None else time.monotonic() + patience
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            left = None if end is None else max(0.0, end - time.monotonic())
            if not take(descriptor, shared=shared, patience=left, busy=busy):
                yield False
                return
            if _is(descriptor, path):
                yield True
                return
        finally:
            os.close(descriptor)


def _at_once(file: int | _Open, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(descriptor: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)
