"""What a run's log has, notification by notification, so that a page of it costs the reading of that page.

A table is made when it is first asked for and grows with the log. It has no text: only where each notification is,
its type and its time. When the bucket has deleted what it tells of, it is made anew of what is left.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from api.posthog.events.notifications import Notification, RunName, notifications
from storage.bucket import ObjectStore
from storage.layout import Place
from storage.reader import read_entries

_TABLES_MOST = 64
_ROWS_MOST = 4_000_000
_KIND_CHARS = 200
_NO_TIME = float("-inf")
#: Text of one page: a page that would be longer has fewer entries, and says that there are more.
PAGE_CHARS = 16 * 1024 * 1024


@dataclass(frozen=True)
class LogQuery:
    """Which notifications: of these types, of none of those, later than a time; and which page of what is left."""

    kinds: frozenset[str] = frozenset()
    without: frozenset[str] = frozenset()
    after: datetime | None = None
    limit: int = 1000
    offset: int = 0


@dataclass(frozen=True)
class LogPage:
    """The texts of a page; how many notifications there are, how many match, and whether some come behind the page."""

    texts: list[str]
    total: int
    matching: int
    more: bool


_NOTHING = LogPage([], 0, 0, more=False)


class LogTables:
    """The tables of one server process, of the runs that were asked for last. Thread-safe; everything blocks."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._tables: OrderedDict[Place, _Table] = OrderedDict()

    def page(self, place: Place, run: RunName, query: LogQuery) -> LogPage:
        """A page of what the bucket has now. Raises BucketUnavailable."""
        with self._lock:
            table = self._tables.setdefault(place, _Table())
            self._tables.move_to_end(place)
        with table.lock:
            table.grow(self._store, place, run)
            page = table.page(self._store, place, run, query)
            if page is None:
                # The bucket's own rule deletes what is old, the oldest first.
                table.clear()
                table.grow(self._store, place, run)
                page = table.page(self._store, place, run, query) or _NOTHING
        self._forget()
        return page

    def _forget(self) -> None:
        with self._lock:
            while len(self._tables) > 1 and (
                len(self._tables) > _TABLES_MOST or sum(map(len, self._tables.values())) > _ROWS_MOST
            ):
                self._tables.popitem(last=False)


class _Table:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Know nothing of the log any more."""
        self._last = 0
        self._entries = array("q")
        self._kinds: list[str] = []
        self._names: dict[str, str] = {}
        self._times = array("d")

    def __len__(self) -> int:
        return len(self._entries)

    def grow(self, store: ObjectStore, place: Place, run: RunName) -> None:
        """Take what the log has had since."""
        for entry in read_entries(store, place, self._last):
            for told in notifications(entry, run):
                if told.logged:
                    kind = told.kind[:_KIND_CHARS]
                    self._entries.append(entry.id)
                    self._kinds.append(self._names.setdefault(kind, kind))
                    self._times.append(told.at.timestamp() if told.at else _NO_TIME)
            self._last = entry.id

    def page(self, store: ObjectStore, place: Place, run: RunName, query: LogQuery) -> LogPage | None:
        """A page; None when the bucket does not have what stands on it any more."""
        rows = list(self._matching(query))
        chosen = rows[query.offset : query.offset + query.limit]
        texts = list(self._texts(store, place, run, chosen))
        if chosen and not texts:
            return None
        more = query.offset + len(texts) < len(rows)
        return LogPage(texts, len(self), len(rows), more)

    def _matching(self, query: LogQuery) -> Iterator[int]:
        after = query.after.timestamp() if query.after else None
        for row, kind in enumerate(self._kinds):
            if (query.kinds and kind not in query.kinds) or kind in query.without:
                continue
            if after is None or self._times[row] > after:
                yield row

    def _texts(self, store: ObjectStore, place: Place, run: RunName, rows: list[int]) -> Iterator[str]:
        """The notifications of these rows, as many as a page holds."""
        if not rows:
            return
        left = PAGE_CHARS
        wanted = iter(rows)
        row = next(wanted)
        for entry in read_entries(store, place, self._entries[row] - 1):
            if entry.id > self._entries[row]:
                return
            if entry.id < self._entries[row]:
                continue
            told: list[Notification] = [each for each in notifications(entry, run) if each.logged]
            # The rows of one entry stand together.
            first = row
            while first and self._entries[first - 1] == entry.id:
                first -= 1
            while self._entries[row] == entry.id:
                text = told[row - first].text
                if len(text) > left and left < PAGE_CHARS:
                    return
                left -= len(text)
                yield text
                if (following := next(wanted, None)) is None:
                    return
                row = following
