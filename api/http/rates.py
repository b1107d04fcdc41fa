"""How often one client may ask: limits for each address and kind of request, none unless the settings have some."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from foundation.errors import RateLimitExceeded
from foundation.settings import RateKind

_WINDOW_SECONDS = 60.0


@dataclass(frozen=True)
class Standing:
    """How a client stands after a request: ``free_in`` seconds it may make another one more than now."""

    limit: int
    remaining: int
    free_in: float
    refused: bool

    @property
    def headers(self) -> dict[str, str]:
        """The same for the client."""
        return {
            "X-RateLimit-Limit": str(self.limit),
            "X-RateLimit-Remaining": str(self.remaining),
            "X-RateLimit-Reset": str(ceil(time.time() + self.free_in)),
        }


class Rates:
    """The requests of the last minute and the streams that are open. Each server process counts its own."""

    def __init__(self, limits: Mapping[RateKind, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._requests: dict[tuple[RateKind, str], deque[float]] = {}
        self._streams = Counter[str]()
        self._swept = clock()

    def take(self, kind: RateKind, client: str) -> Standing | None:
        """Count a request, unless it is one too many. None where there is no limit."""
        limit = self._limits.get(kind)
        if limit is None:
            return None
        now = self._clock()
        self._forget(now)
        times = self._requests.setdefault((kind, client), deque())
        while times and times[0] <= now - _WINDOW_SECONDS:
            times.popleft()
        refused = len(times) >= limit
        if not refused:
            times.append(now)
        return Standing(limit, limit - len(times), times[0] + _WINDOW_SECONDS - now, refused)

    @contextmanager
    def stream(self, client: str) -> Iterator[None]:
        """Count an open stream while the block runs. Raises RateLimitExceeded."""
        limit = self._limits.get("stream")
        if limit is not None and self._streams[client] >= limit:
            raise RateLimitExceeded(f"{limit} streams may be open at once; close one of them.", limit=limit)
        self._streams[client] += 1
        try:
            yield
        finally:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    def _forget(self, now: float) -> None:
        """Once a minute, forget who has not asked for one."""
        if now - self._swept > _WINDOW_SECONDS:
            self._swept = now
            self._requests = {key: times for key, times in self._requests.items() if times[-1] > now - _WINDOW_SECONDS}


def count(request: Request, kind: RateKind, rates: Rates) -> None:
    """Count a request, and remember for its answer how many are left. Raises RateLimitExceeded for one too many."""
    standing = rates.take(kind, address(request))
    if standing is None:
        return
    request.state.rate_headers = standing.headers
    if standing.refused:
        wait = ceil(standing.free_in)
        raise RateLimitExceeded(
            f"{standing.limit} requests of this kind are taken in a minute; ask again in {wait} s.",
            limit=standing.limit,
            retry_after_seconds=wait,
        )


def address(connection: HTTPConnection) -> str:
    """Whom to count a request for."""
    return connection.client.host if connection.client else ""


class RateHeaders:
    """Tells with every counted answer how many requests are left."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(scope.get("state", {}).get("rate_headers", {}))
            await send(message)

        await self._app(scope, receive, send_counted if scope["type"] == "http" else send)
