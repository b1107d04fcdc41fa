"""The run logs that the process of a host writes: one open writer for each, and those who listen to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.bucket import ObjectStore
from storage.layout import Place
from storage.live.attached import attached, attached_to
from storage.live.journal import Journal, Superseded
from storage.live.told import Told
from storage.redaction import Redactor
from storage.runlog import RunLogWriter
from storage.sealing import append_behind
from storage.segments import Drafts

# An old worker that is stopping lets go of its followers within seconds.
_PATIENCE_SECONDS = 10.0
_TRIES = 5
# Segments that are on their way to the bucket at once, of different logs.
_STORING = 32
# A journal is needed until the next attempt of its run on this host.
_KEPT_SECONDS = 7 * 24 * 3600.0


class HostLogs:
    """The logs of one bucket as this process writes them. Thread-safe.

    ``directory`` holds the journals: ``<kind>/<id>`` below it. While it is entered, every event of this process for
    the bucket's logs comes here.
    """

    def __init__(self, store: ObjectStore, directory: Path, *, patience: float = _PATIENCE_SECONDS) -> None:
        self._store = store
        self._directory = directory
        self._patience = patience
        self._lock = threading.Lock()
        self._logs: dict[Place, _Log] = {}
        self._threads: ThreadPoolExecutor | None = None
        self._attachment = ExitStack()

    def __enter__(self) -> Self:
        self._threads = self._attachment.enter_context(ThreadPoolExecutor(_STORING, thread_name_prefix="log"))
        self._attachment.enter_context(attached_to(self._store, self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._attachment.close()

    @contextmanager
    def open(self, place: Place, redactor: Redactor) -> Iterator[RunLogWriter]:
        """The writer of a log, which tells its entries at once. One that was open is superseded."""
        with self._using(place) as log:
            with log.lock:
                log.retire()
                if log.journal is None:
                    log.journal = Journal.open(log.path, self._patience)
                writer = RunLogWriter(
                    self._store,
                    place,
                    redactor,
                    journal=log.journal,
                    tell=log.told.take,
                    live=True,
                    aside=self._threads.submit if self._threads is not None else None,
                )
                log.writer = writer
            log.told.become(live=True)
            try:
                yield writer
            finally:
                writer.settle()
                log.end(writer)

    def append(self, place: Place, drafts: Drafts) -> None:
        """Store what was made elsewhere, behind all that was told.

        Raises Conflict when closed, BucketUnavailable, and what ``drafts`` raises, which is asked anew when the log
        has gone on meanwhile.
        """
        with self._using(place) as log:
            for _ in range(_TRIES):
                writer = log.writer
                if writer is not None:
                    with suppress(Superseded):
                        writer.append(drafts)
                        return
                    continue
                with log.lock:
                    if log.writer is None:
                        self._append_beside(log, place, drafts)
                        return
            raise Superseded(f"The log of {place} changes hands again and again; try again.")

    @contextmanager
    def listening(self, place: Place) -> Iterator[Told]:
        """What is told of a log while the block runs, whether a writer is open now or later."""
        with self._using(place) as log:
            yield log.told

    def forget(self) -> None:
        """Remove journals that nobody has come back to."""
        oldest = time.time() - _KEPT_SECONDS
        for path in self._directory.glob("*/*"):
            with suppress(OSError):
                if path.stat().st_mtime < oldest and (journal := Journal.open(path, 0)):
                    journal.close(remove=True)

    def _append_beside(self, log: _Log, place: Place, drafts: Drafts) -> None:
        """Where no writer is open: one that was may have told what is not stored yet."""
        if not log.path.exists():
            append_behind(self._store, place, None, drafts)
            return
        journal = Journal.open(log.path, self._patience)
        stored = False
        try:
            RunLogWriter(self._store, place, Redactor({}), journal=journal, tell=log.told.take).append(drafts)
            stored = True
        finally:
            if journal is not None:
                journal.close(remove=stored)

    @contextmanager
    def _using(self, place: Place) -> Iterator[_Log]:
        with self._lock:
            log = self._logs.setdefault(place, _Log(self._directory / place.prefix.rstrip("/")))
            log.users += 1
        try:
            yield log
        finally:
            with self._lock:
                log.users -= 1
                if not log.users:
                    del self._logs[place]


class _Log:
    """One log that is written or listened to. ``lock`` is held while its writer changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 0
        self.lock = threading.Lock()
        self.told = Told()
        self.journal: Journal | None = None
        self.writer: RunLogWriter | None = None

    def retire(self) -> None:
        """Let the open writer, if there is one, store nothing that the next one does not know of."""
        if self.writer is not None and self.journal is not None:
            self.journal.retire()
            self.writer.settle()

    def end(self, writer: RunLogWriter) -> None:
        """Its writer has gone. The journal stays for who comes next, who can tell by it what was told."""
        with self.lock:
            if self.writer is not writer:
                return
            self.writer = None
            self.told.become(live=False)
            if self.journal is not None:
                self.journal.close()
                self.journal = None


def open_log(store: ObjectStore, place: Place, redactor: Redactor) -> AbstractContextManager[RunLogWriter]:
    """The writer of a log: through the process's own logs, if it has some, else one that nobody listens to."""
    logs = attached(store)
    if isinstance(logs, HostLogs):
        return logs.open(place, redactor)
    return nullcontext(RunLogWriter(store, place, redactor))
