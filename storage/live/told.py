"""The newest entries of one log in memory, for those who follow it through the process that writes it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

_ENTRIES = 1000
_BYTES = 512 * 1024


class Told:
    """A window of neighbouring entries, as lines of NDJSON without their newlines. Thread-safe.

    ``live`` says whether a writer is open, so that entries come here before they are stored.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._first = 1
        self._bytes = 0
        self._wakes: set[Callable[[], object]] = set()
        self._live = False

    def take(self, first: int, lines: Sequence[bytes]) -> None:
        """Entries from the id ``first`` on. Those that are known are dropped."""
        with self._lock:
            end = self._first + len(self._lines)
            if first > end or not self._lines:
                # Others have written in between: whoever is behind reads that from the bucket.
                self._lines.clear()
                self._bytes = 0
                self._first = end = first
            for line in lines[end - first :]:
                self._lines.append(line)
                self._bytes += len(line)
            while len(self._lines) > _ENTRIES or (self._bytes > _BYTES and len(self._lines) > 1):
                self._bytes -= len(self._lines.popleft())
                self._first += 1
            self._wake()

    def after(self, entry_id: int, most: int) -> list[bytes] | None:
        """The entries behind an id, ``most`` at once; None when the first of them are no longer here."""
        with self._lock:
            if self._lines and entry_id + 1 < self._first:
                return None
            start = max(0, entry_id + 1 - self._first)
            return list(islice(self._lines, start, start + most))

    @property
    def live(self) -> bool:
        """Whether a writer is open."""
        return self._live

    def become(self, *, live: bool) -> None:
        """A writer was opened, or closed."""
        with self._lock:
            self._live = live
            self._wake()

    @property
    def listened(self) -> bool:
        """Whether somebody listens."""
        return bool(self._wakes)

    @contextmanager
    def listening(self, wake: Callable[[], object]) -> Iterator[None]:
        """Have ``wake`` called, in any thread, whenever there is something new; it must not block."""
        with self._lock:
            self._wakes.add(wake)
        try:
            yield
        finally:
            with self._lock:
                self._wakes.discard(wake)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake()
