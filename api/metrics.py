"""Counters and gauges of the API process, in the text form that Prometheus reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The series of one application; each application has its own registry."""

    def __init__(self, followers: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.started = time.time()
        self.submitted = Counter("taskyard_tasks_submitted", "Runs accepted by this process", registry=self.registry)
        self.tasks = Gauge("taskyard_tasks", "Runs that Temporal knows, by state", ["state"], registry=self.registry)
        self.requests = Histogram(
            "taskyard_http_request_duration_seconds",
            "Time to the first byte of an answer",
            ["method", "route", "status"],
            registry=self.registry,
        )
        uptime = Gauge("taskyard_uptime_seconds", "Time since this process started", registry=self.registry)
        uptime.set_function(lambda: time.time() - self.started)
        following = Gauge("taskyard_log_followers", "Clients that follow a run now", registry=self.registry)
        following.set_function(followers)

    def text(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)


class RequestTimes:
    """Measures every request by its route's template, so that ids never become labels."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = time.perf_counter()

        async def measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route: Any = scope.get("route")
                self._metrics.requests.labels(
                    scope["method"], getattr(route, "path", "none"), str(message["status"])
                ).observe(time.perf_counter() - begun)
            await send(message)

        await self._app(scope, receive, measured)
