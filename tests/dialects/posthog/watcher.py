"""How a desktop client watches a run, as the contract has it (section 4.6): the measure of what a stream must be.

It asks for the run, follows it from its latest event on while it reads the history in pages, and puts both together by
the text of their JSON. When a stream ends it asks for the run again: only that says whether the run has ended.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

ENDED = frozenset({"completed", "failed", "cancelled"})
FATAL = frozenset({401, 403, 404, 406})
PAGE = 5000
ATTEMPTS = 5
BASE_SECONDS = 0.02


class StreamRefused(Exception):
    """The stream was refused for good; the client shows that and stops."""


@dataclass(frozen=True)
class SentEvent:
    """One frame of a stream."""

    data: Any
    event: str = ""
    id: str = ""


async def sent_events(reply: httpx.Response) -> AsyncIterator[SentEvent]:
    """The frames of a stream. The order of the fields of one is part of the contract (section 1.14)."""
    begun = b""
    async for piece in reply.aiter_bytes():
        *whole, begun = (begun + piece).split(b"\n\n")
        for frame in whole:
            names = [line.partition(b": ")[0].decode() for line in frame.split(b"\n")]
            assert names == [name for name in ("event", "id", "data") if name in names], frame
            fields = dict(line.decode().split(": ", 1) for line in frame.split(b"\n"))
            yield SentEvent(json.loads(fields["data"]), fields.get("event", ""), fields.get("id", ""))


@dataclass
class Watcher:
    """One watcher of one run. ``cuts`` breaks a stream off behind so many of its log's events, each once."""

    http: httpx.AsyncClient
    path: str
    cuts: list[int] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    standings: list[dict[str, Any]] = field(default_factory=list)
    ends: list[Any] = field(default_factory=list)
    connections: int = 0
    _last_id: str = ""
    _updated: datetime | None = None
    _status: str = ""
    _live: list[Any] = field(default_factory=list)
    _bootstrapping: bool = True
    _attempts: int = 0

    @property
    def follows(self) -> bool:
        """Whether its stream has begun, so that it misses nothing from now on."""
        return bool(self._last_id)

    async def watch(self) -> None:
        """Watch the run to its end. Raises StreamRefused, and TimeoutError when it has to come back too often."""
        await self._look()
        if self._status in ENDED:
            self.shown = await self._history()
            return
        following = asyncio.create_task(self._follow())
        history = await self._history()
        self.shown += history
        had = Counter(map(json.dumps, history))
        for event in self._live:
            if had[json.dumps(event)]:
                had[json.dumps(event)] -= 1
            else:
                self.shown.append(event)
        self._bootstrapping = False
        await self._look()
        await following

    async def _follow(self) -> None:
        while True:
            with suppress(httpx.HTTPError):
                await self._connect()
            await self._look()
            if self._status in ENDED:
                return
            self._attempts += 1
            if self._attempts > ATTEMPTS:
                raise TimeoutError("the stream broke off too often")
            await asyncio.sleep(BASE_SECONDS * 2 ** (self._attempts - 1))

    async def _connect(self) -> None:
        headers = {"Accept": "text/event-stream"}
        params = {}
        if self._last_id:
            headers["Last-Event-ID"] = self._last_id
        else:
            params["start"] = "latest"
        cut = self.cuts.pop(0) if self.cuts else None
        self.connections += 1
        async with self.http.stream("GET", f"{self.path}/stream/", params=params, headers=headers) as reply:
            if reply.status_code in FATAL:
                raise StreamRefused(reply.status_code)
            reply.raise_for_status()
            async for sent in sent_events(reply):
                self._take(sent)
                if cut is not None and sent.data.get("type") == "notification":
                    cut -= 1
                    if cut <= 0:
                        return

    def _take(self, sent: SentEvent) -> None:
        if sent.id:
            self._last_id = sent.id
        if sent.event == "error":
            raise httpx.StreamError(sent.data["error"])
        self._attempts = 0
        if sent.event in {"stream-end", "end"}:
            self.ends.append(sent.data)
        elif sent.event != "keepalive":
            if sent.data.get("type") == "task_run_state":
                self._stand(sent.data)
            elif sent.data.get("type") != "permission_request":
                (self._live if self._bootstrapping else self.shown).append(sent.data)

    def _stand(self, run: dict[str, Any]) -> None:
        updated = datetime.fromisoformat(run["updated_at"])
        if self._updated is not None and updated <= self._updated:
            return
        self._updated, self._status = updated, run["status"]
        self.standings.append(run)

    async def _look(self) -> None:
        self._stand((await self.http.get(f"{self.path}/")).raise_for_status().json())

    async def _history(self) -> list[Any]:
        entries: list[Any] = []
        while True:
            params = {"limit": PAGE, "offset": len(entries)}
            page = (await self.http.get(f"{self.path}/session_logs/", params=params)).raise_for_status()
            entries += page.json()
            if page.headers["X-Has-More"] != "true":
                return entries
