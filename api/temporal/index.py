"""Every run of a resource that Temporal knows, as rows in this process: lists and totals never read all of them again.

Nothing in it is a record of its own: it is filled from Temporal's visibility store once, and before an answer it takes
in whatever the store shows otherwise by then. Each server process derives the same rows by itself.

A look reads the runs that are under way and those that began or closed since the last look that succeeded, asks by
their ids for those that were under way and are not any more, and counts the earlier ones. Where the store counts
others than the rows, it is read anew, in the part where the counts differ, before anything is answered. "Since" and
"earlier" are by the times that Temporal has written itself, so no clock of this host counts; and a run that the
store shows late, or under a time that lies behind, is found by the counts.

How old an answer can be: a look is shared by all requests of the next half second; when the store is slow, of four
times its own length, but of two seconds at most. All rows are read anew every ten minutes, beside the answers, for what
counts do not show: a run that Temporal forgets in the very moment in which another one shows for the first time, long
after its end.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any, Generic

from api.temporal.rows import Order, Resource, Row, Status
from api.temporal.visibility import Entry, Selection, Visibility
from foundation.errors import EngineUnavailable

# Beyond this the runs that began first and have ended leave the lists; a row takes about 2 KiB.
MOST_ROWS = 100_000

_LOOK_SECONDS = 0.5
_SLOW_LOOK_SECONDS = 2.0
_LOOK_SHARE = 4
# What Temporal usually needs to show a run, by its own times; a longer delay costs counting, and nothing else.
_MARGIN = timedelta(seconds=5)
_REREAD_SECONDS = 600.0
_REREAD_SHARE = 20
# Runs that this process has started are kept for so long when the store does not show them.
_NOTED_SECONDS = 600.0
# Below this, a span of runs is read whole where its counts differ.
_SPAN_ROWS = 100
_BATCH_RUNS = 100
_PAUSE_ROWS = 25
_CHANGES = 10_000
_INSTANT = timedelta(microseconds=1)

OnChange = Callable[[Status, str | None], None]


@dataclass
class _Look:
    """What one look has seen: runs by their ids, and the latest time of the store.

    ``reached`` is the time up to which it has read everything; the next look begins there. ``gone`` are the runs that
    the store was found to have forgotten meanwhile: a page that was read before then still has them.
    """

    run_ids: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)
    latest: datetime | None = None
    reached: datetime | None = None

    def take(self, entry: Entry[Any]) -> None:
        self.run_ids.add(entry.run_id)
        latest = entry.closed or entry.began
        self.latest = max(self.latest or latest, latest)


class RunIndex(Generic[Status]):
    """The rows of one resource in one process.

    ``on_change`` gets the status of each run seen in a new state, and the state before.
    """

    def __init__(
        self,
        store: Visibility[Status],
        resource: Resource[Status],
        on_change: OnChange[Status] = lambda _, __: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._resource = resource
        self._on_change = on_change
        self._clock = clock
        self._rows: dict[str, Row] = {}
        # The row that stands for each id, and the others of the few ids that have some: Temporal's reset makes them.
        self._current: dict[str, Row] = {}
        self._hidden: defaultdict[str, set[str]] = defaultdict(set)
        self._orders: dict[str, Order] = {}
        self._owned: defaultdict[str, set[str]] = defaultdict(set)
        self._moment = 1
        self._changed: deque[str] = deque(maxlen=_CHANGES)
        self._noted: dict[str, float] = {}
        self._look_task: asyncio.Task[None] | None = None
        self._reread_task: asyncio.Task[None] | None = None
        # What is read anew beside the looks.
        self._beside = _Look()
        self._fresh_until = 0.0
        self._read_at: float | None = None
        self._read_seconds = 0.0
        # The time, by the store's own, up to which the last look that succeeded has read; None while it had no run.
        self._reached: datetime | None = None
        # Of the runs that began by then, those that have ended are not kept.
        self._left_out: datetime | None = None

    async def look(self) -> None:
        """Bring the rows up to date, as the module's first lines say. Raises EngineUnavailable."""
        if self._clock() < self._fresh_until:
            return
        if self._look_task is None:
            self._look_task = asyncio.create_task(self._look())
            self._look_task.add_done_callback(self._looked)
        await asyncio.shield(self._look_task)

    def note(self, status: Status, run_id: str) -> None:
        """Take a run that this process has just started, before the store shows it."""
        if run_id not in self._rows:
            now = self._clock()
            self._noted[run_id] = now
            self._put(self._resource.make_row(status, run_id, datetime.now(UTC), None, None), status)

    def may_run(self, task_id: str) -> bool:
        """Whether the run has not ended, as far as the rows show without a look."""
        row = self._current.get(task_id)
        return row is not None and not row.ended

    def rows(self) -> Iterable[Row]:
        """The rows, in no order."""
        return self._current.values()

    def ordered(self, name: str, key: Callable[[Row], Any]) -> Sequence[Row]:
        """The rows from the lowest key to the highest; sorted when a name is first used, and kept so from then on."""
        if name not in self._orders:
            self._orders[name] = Order(self._current.values(), key)
        return self._orders[name].rows

    def of_owner(self, owner: str) -> list[Row]:
        """The rows that belong to a resource, in no order."""
        return [self._current[each] for each in self._owned.get(owner, ())]

    def changes(self, since: int) -> tuple[int, list[Row] | None]:
        """The runs shown in another state since a moment, and the moment now.

        None in their place when there were too many to remember: then every row has to be looked at. Moments are
        numbers from 0 on, which is no moment yet.
        """
        missed = self._moment - since
        if not since or missed > len(self._changed):
            return self._moment, None
        ids = dict.fromkeys(islice(self._changed, len(self._changed) - missed, None))
        return self._moment, [self._current[task_id] for task_id in ids if task_id in self._current]

    def counts(self) -> Counter[str]:
        """How many runs there are in each state."""
        return Counter(row.state for row in self.rows())

    async def close(self) -> None:
        """End what runs beside the requests."""
        running = [task for task in (self._look_task, self._reread_task) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # --- a look

    def _looked(self, task: asyncio.Task[None]) -> None:
        self._look_task = None
        if not task.cancelled():
            # Heard of by those who wait for it; without any, it is no unforeseen failure.
            task.exception()

    async def _look(self) -> None:
        begun = self._clock()
        look = _Look(latest=self._reached)
        if self._reached is None:
            await self._read_all(look)
        else:
            await self._read_since(self._reached - _MARGIN, look)
        self._reached = look.reached
        self._forget_notes()
        ended = self._clock()
        self._fresh_until = ended + max(_LOOK_SECONDS, min(_SLOW_LOOK_SECONDS, _LOOK_SHARE * (ended - begun)))
        if self._read_at is not None and ended - self._read_at > max(
            _REREAD_SECONDS, _REREAD_SHARE * self._read_seconds
        ):
            self._reread_task = self._reread_task or asyncio.create_task(self._reread())

    async def _read_since(self, since: datetime, look: _Look) -> None:
        await self._read(Selection(under_way=True), look)
        await self._read(Selection(since=since), look)
        look.reached = look.latest
        waiting = self._resource.waiting
        expected = [
            row.run_id for row in self._rows.values() if row.was_under_way(waiting) or row.happened_since(since)
        ]
        await self._ask_for(expected, look)
        earlier = [
            row
            for row in self._rows.values()
            if row.recorded is not None and row.began < since and (self._left_out is None or row.began > self._left_out)
        ]
        await self._mend(earlier, self._left_out + _INSTANT if self._left_out else None, since, since, look)

    async def _mend(self, rows: list[Row], begin: datetime | None, end: datetime, since: datetime, look: _Look) -> None:
        """Read the store anew where it counts others than the rows, which are those that began in a span of time."""
        span = Selection(began_from=begin, began_before=end)
        closed = Selection(began_from=begin, began_before=end, closed_before=since)
        in_store, closed_in_store = await asyncio.gather(self._store.count(span), self._store.count(closed))
        own_closed = sum(row.closed is not None and row.closed < since for row in rows)
        if (in_store, closed_in_store) == (len(rows), own_closed):
            return
        rows = sorted(rows, key=lambda row: row.began)
        middle = rows[len(rows) // 2].began if rows else end
        if min(len(rows), in_store) <= _SPAN_ROWS or middle == rows[0].began:
            fresh = _Look(latest=look.latest)
            await self._read(span, fresh)
            await self._ask_for([row.run_id for row in rows], fresh)
        else:
            await self._mend([row for row in rows if row.began < middle], begin, middle, since, look)
            await self._mend([row for row in rows if row.began >= middle], middle, end, since, look)

    async def _read_all(self, look: _Look) -> None:
        """Read every run; what changes meanwhile is since the times of the first page, and read after it."""
        begun = self._clock()
        known = [run_id for run_id, row in self._rows.items() if row.recorded is not None]
        first: datetime | None = None
        async for page in self._store.pages(Selection()):
            await self._take_page(page, look)
            first = first or look.latest
        await self._ask_for(known, look)
        if first is not None:
            await self._read_since(first - _MARGIN, look)
        self._read_at = self._clock()
        self._read_seconds = self._read_at - begun

    async def _reread(self) -> None:
        self._beside = _Look()
        try:
            with suppress(EngineUnavailable):
                await self._read_all(self._beside)
        finally:
            self._reread_task = None

    async def _read(self, selection: Selection, look: _Look) -> None:
        async for page in self._store.pages(selection):
            await self._take_page(page, look)

    async def _ask_for(self, run_ids: Iterable[str], look: _Look) -> None:
        """Ask for the runs that a look has not seen; what the store does not know by its id, it has forgotten."""
        missing = [run_id for run_id in run_ids if run_id not in look.run_ids]
        for first in range(0, len(missing), _BATCH_RUNS):
            batch = tuple(missing[first : first + _BATCH_RUNS])
            await self._read(Selection(run_ids=batch), look)
            for run_id in batch:
                if run_id not in look.run_ids:
                    self._drop(run_id)

    async def _take_page(self, page: Sequence[Entry[Status]], look: _Look) -> None:
        for number, entry in enumerate(page, 1):
            if entry.run_id in look.gone:
                continue
            look.take(entry)
            held, recorded = self._rows.get(entry.run_id), entry.recorded
            if held is None or held.recorded != recorded:
                began, closed = entry.began, entry.closed
                if held is None and closed is not None and self._left_out is not None and began <= self._left_out:
                    continue
                status = await entry.status()
                self._take(self._resource.make_row(status, entry.run_id, began, closed, recorded), status)
            if number % _PAUSE_ROWS == 0:
                # Reading many rows is work for the processor: others get their turn.
                await asyncio.sleep(0)

    # --- the rows

    def _take(self, row: Row, status: Status) -> None:
        if row.is_newer_than(self._rows.get(row.run_id)):
            self._noted.pop(row.run_id, None)
            self._put(row, status)
            if len(self._rows) > MOST_ROWS:
                self._shorten()

    def _put(self, row: Row, status: Status) -> None:
        held = self._rows.get(row.run_id)
        self._rows[row.run_id] = row
        current = self._current.get(row.id)
        if current is None or current.run_id == row.run_id or row.began >= current.began:
            if current is not None and current.run_id != row.run_id:
                self._hidden[row.id].add(current.run_id)
            self._set_current(row.id, row)
        else:
            self._hidden[row.id].add(row.run_id)
        if (held is None or held.state != row.state) and self._read_at is not None:
            self._moment += 1
            self._changed.append(row.id)
            self._on_change(status, held.state if held else None)

    def _set_current(self, task_id: str, row: Row | None) -> None:
        before = self._current.get(task_id)
        for order in self._orders.values():
            order.replace(before, row)
        if before is not None and before.owner is not None:
            self._owned[before.owner].discard(task_id)
            if not self._owned[before.owner]:
                del self._owned[before.owner]
        if row is not None and row.owner is not None:
            self._owned[row.owner].add(task_id)
        if row is None:
            del self._current[task_id]
        else:
            self._current[task_id] = row

    def _drop(self, run_id: str) -> None:
        row = self._rows.pop(run_id, None)
        self._noted.pop(run_id, None)
        if row is None:
            return
        if self._reread_task is not None:
            self._beside.gone.add(run_id)
        hidden = self._hidden.get(row.id, set())
        if self._current[row.id].run_id == run_id:
            others = sorted((self._rows[other] for other in hidden), key=lambda other: other.began)
            self._set_current(row.id, others[-1] if others else None)
        hidden -= {run_id, self._current[row.id].run_id if row.id in self._current else ""}
        if not hidden:
            self._hidden.pop(row.id, None)

    def _shorten(self) -> None:
        ended = sorted((row for row in self._rows.values() if row.closed is not None), key=lambda row: row.began)
        # Some more at once, so that not every further run is a reason to sort all of them.
        for row in ended[: len(self._rows) - MOST_ROWS + MOST_ROWS // 100]:
            self._left_out = row.began
            self._drop(row.run_id)

    def _forget_notes(self) -> None:
        oldest = self._clock() - _NOTED_SECONDS
        for run_id in [run_id for run_id, noted in self._noted.items() if noted < oldest]:
            self._drop(run_id)
