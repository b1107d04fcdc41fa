"""What happens in runs, as the five events of the contract (section 3): of one run, or of all of them.

Nothing is kept for a client that is slow. Output is read from the log on from where the client is, at its own pace,
and of figures and progress it gets the newest; it misses no line and no change of state. What a stream holds is a
handful of events, and what it shares with all others of its run: one reader of the log and one look at the run each
second.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, get_args

from api.runs.core import Core
from api.runs.log import timestamp
from api.runs.watching.looks import Look, RunWatches
from api.runs.watching.sources import LogEnd, Put, Source, merged
from foundation.errors import EngineUnavailable, TaskyardError
from foundation.urls import without_credentials
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from storage.layout import TASKS
from storage.runlog import LogEntry, tail
from storage.segments import GUEST_STREAMS
from workflows.runs.messages import AgentProgress, TaskStatus, TokenUsage
from workflows.runs.states import STATE_MESSAGES, TaskState

Kind = Literal["state_change", "output", "progress", "metrics", "error"]
KINDS: frozenset[str] = frozenset(get_args(Kind))

Event = dict[str, Any]

_LONGEST_ID = 80
_SCAN_SECONDS = 1.0
_REMEMBERED_ENDS = 1000
_RANK = {state: rank for rank, state in enumerate(TaskState)}


def error_event(task_id: str | None, error: TaskyardError) -> Event:
    """An error that is the stream's own."""
    named = None if task_id is None else without_credentials(task_id[:_LONGEST_ID])
    event = _event("error", named, datetime.now(UTC)) | {"error": error.code, "message": error.message}
    return event | ({"details": error.details} if error.details else {})


class RunEvents:
    """Events of the runs of one server process."""

    def __init__(self, core: Core, bucket: Bucket, followers: RunLogFollowers, watches: RunWatches[TaskStatus]) -> None:
        self._core = core
        self._bucket = bucket
        self._followers = followers
        self._watches = watches

    async def of_run(self, task_id: str, kinds: frozenset[str], after_id: int = 0) -> AsyncGenerator[Event]:
        """Events of one run, its state first, to its end; output from the log's entry after ``after_id`` on.

        Raises TaskNotFound.
        """
        await self._core.status(task_id)
        async with aclosing(self._follow(_Run(task_id, kinds), after_id)) as events:
            async for event in events:
                yield event

    async def of_all(self, kinds: frozenset[str]) -> AsyncGenerator[Event]:
        """Events of all runs from now on, never ending; first the state of each that has not ended."""
        async with merged(partial(self._scan, kinds)) as events:
            async for event in events:
                yield event

    async def _follow(self, run: _Run, after_id: int) -> AsyncGenerator[Event]:
        beside: list[_Source] = []
        if "output" in run.kinds:
            beside.append(lambda put: self._output(run, after_id, put))
        else:
            run.log.set()
        async with merged(lambda put: self._looks(run, put), *beside) as events:
            async for event in events:
                yield event

    async def _output(self, run: _Run, after_id: int, put: _Put) -> None:
        async with aclosing(self._followers.follow(TASKS.place(run.task_id), after_id)) as entries:
            async for entry in entries:
                run.log.begin_line()
                if entry.stream in GUEST_STREAMS:
                    await put(_output_event(run.task_id, entry))
                run.log.end_line()
        run.log.set()

    async def _looks(self, run: _Run, put: _Put) -> None:
        async with aclosing(self._watches.watch(run.task_id)) as looks:
            async for look in looks:
                for event in run.news_of(look):
                    await put(event)
                if look.ended:
                    # The last lines come before the state that ends the stream.
                    await run.log.wait()
                    for event in run.end(look.status):
                        await put(event)

    async def _scan(self, kinds: frozenset[str], put: _Put) -> None:
        known: dict[str, TaskState] = {}
        streams: dict[str, asyncio.Task[None]] = {}
        over: deque[str] = deque(maxlen=_REMEMBERED_ENDS)
        moment = 0

        def ended(task_id: str) -> None:
            del streams[task_id]
            over.append(task_id)

        async with asyncio.TaskGroup() as group:
            while True:
                with suppress(EngineUnavailable):
                    first = moment == 0
                    moment, changed = await self._core.changes(moment)
                    for status in changed:
                        if status.id in streams or status.id in over:
                            continue
                        run = _Run(status.id, kinds, known.pop(status.id, None), whole=not first)
                        if status.state.terminal or status.state is TaskState.PENDING:
                            for event in run.of_status(status):
                                await put(event)
                            if not status.state.terminal:
                                known[status.id] = status.state
                        else:
                            # A run that was there before this stream has its earlier lines in its log.
                            begin = await self._log_end(status.id) if first else 0
                            stream = group.create_task(self._pass_on(run, begin, put))
                            streams[status.id] = stream
                            stream.add_done_callback(lambda _, task_id=status.id: ended(task_id))  # type: ignore[misc]
                await asyncio.sleep(_SCAN_SECONDS)

    async def _pass_on(self, run: _Run, after_id: int, put: _Put) -> None:
        try:
            async with aclosing(self._follow(run, after_id)) as events:
                async for event in events:
                    await put(event)
        except TaskyardError as error:
            await put(error_event(run.task_id, error))

    async def _log_end(self, task_id: str) -> int:
        last = await asyncio.to_thread(tail, self._bucket, TASKS.place(task_id), 1)
        return last[-1].id if last else 0


class _Run:
    """One run as one stream has shown it: ``known`` is the last state that it sent."""

    def __init__(
        self, task_id: str, kinds: frozenset[str], known: TaskState | None = None, *, whole: bool = False
    ) -> None:
        self.task_id = task_id
        self.kinds = kinds
        self.log = LogEnd()
        self._known = known
        self._known_at = datetime.min.replace(tzinfo=UTC)
        self._usage: TokenUsage | None = None
        self._whole = whole
        self._progress: AgentProgress | None = None
        self._sampled: datetime | None = None

    def news_of(self, look: Look[TaskStatus]) -> list[Event]:
        """What is new in a look, but for the end of the run."""
        events = self._state_changes(look.status, ending=False)
        progress, usage = look.status.progress, look.status.usage
        known = (self._progress, self._usage)
        if "progress" in self.kinds and (progress, usage) != known and progress.last_activity_at is not None:
            self._progress, self._usage = progress, usage
            event = _event("progress", self.task_id, progress.last_activity_at)
            event |= {"progress": progress.model_dump(mode="json")}
            events.append(event | {"usage": usage.model_dump(mode="json") if usage else None})
        if "metrics" in self.kinds and look.machine is not None and look.machine.at != self._sampled:
            self._sampled = look.machine.at
            figures = look.machine.model_dump(mode="json", exclude={"at"})
            events.append(_event("metrics", self.task_id, look.machine.at) | {"metrics": figures})
        return events

    def end(self, status: TaskStatus) -> list[Event]:
        """The last events of the run."""
        events = self._state_changes(status, ending=True)
        if "error" in self.kinds and status.cause is not None:
            event = _event("error", self.task_id, status.state_changed_at)
            event |= {"error": status.cause.value, "message": status.error or ""}
            events.insert(0, event | {"details": {"exit_code": status.exit_code}})
        return events

    def of_status(self, status: TaskStatus) -> list[Event]:
        """The events of a run that is not followed, from its status."""
        return self.end(status) if status.state.terminal else self._state_changes(status, ending=False)

    def _state_changes(self, status: TaskStatus, *, ending: bool) -> list[Event]:
        """States entered since the last one that was sent, in the order in which the run comes through them."""
        entered = [(step.state, step.at) for step in status.transitions]
        if not entered or entered[-1][0] is not status.state:
            entered.append((status.state, status.state_changed_at))
        if self._known is None and not self._whole:
            entered = entered[-1:]
        events = []
        for state, at in entered:
            if (state.terminal and not ending) or not self._is_new(state, at):
                continue
            message = status.state_message if state is status.state else STATE_MESSAGES[state]
            events.append(
                _event("state_change", self.task_id, at)
                | {
                    "previous_state": self._known.value if self._known else None,
                    "new_state": state.value,
                    "state_message": message,
                }
            )
            self._known, self._known_at = state, at
        return events if "state_change" in self.kinds else []

    def _is_new(self, state: TaskState, at: datetime) -> bool:
        """Whether a state comes after the last one that was sent."""
        if self._known is None:
            return True
        if state.recurs and self._known.recurs:
            return state is not self._known and at > self._known_at
        return _RANK[state] > _RANK[self._known]


_Put = Put[Event]
_Source = Source[Event]


def _event(kind: Kind, task_id: str | None, at: datetime) -> Event:
    return {"type": kind, "task_id": task_id, "timestamp": timestamp(at)}


def _output_event(task_id: str, entry: LogEntry) -> Event:
    return _event("output", task_id, entry.ts) | {
        "id": entry.id,
        "stream": entry.stream,
        "data": entry.data,
        "bytes": len(entry.data.encode()),
    }
