"""Counters, gauges and histograms of the API process, in the text form that Prometheus reads.

The figures of runs follow from the index: each server process sees every run by itself, so that several servers
show the same, and a sum over them would count twice. Labels are states, outcomes, stages and kinds only.
"""

from __future__ import annotations

import time
from collections import Counter as Counter_
from collections.abc import Callable
from itertools import pairwise
from math import nan

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from workflows.runs.messages import TaskStatus
from workflows.runs.states import Cause, TaskState

_RUN_BUCKETS = (1, 5, 15, 30, 60, 120, 300, 600, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600, 24 * 3600, 48 * 3600)
_STAGE_BUCKETS = (0.1, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 6 * 3600, 24 * 3600)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_TOKEN_KINDS = ("input", "output", "cache_creation_input", "cache_read_input")
_OUTCOMES = ("success", "failure", "timeout", "cancelled")
_TIMEOUTS = frozenset({Cause.RUN_TIMEOUT, Cause.NO_OUTPUT_TIMEOUT, Cause.STAGE_TIMEOUT, Cause.PROVISION_TIMEOUT})
_RANK: dict[str, int] = {state: rank for rank, state in enumerate(TaskState)}
_AFTER_READY = frozenset({TaskState.READY, TaskState.RUNNING, TaskState.AWAITING_DECISION, TaskState.COMPLETING})

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """The series of one application; each application has its own registry."""

    def __init__(self, followers: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.started = time.time()
        self.submitted = Counter("taskyard_tasks_submitted", "Runs accepted by this process", registry=self.registry)
        self.tasks = Gauge(
            "agentic_tasks_by_state", "Runs that Temporal knows, by state", ["state"], registry=self.registry
        )
        self.outcomes = Counter(
            "agentic_task_outcomes", "Runs that ended while this process ran", ["outcome"], registry=self.registry
        )
        self.agents = Gauge("agentic_agents_connected", "Workers that poll for tasks", registry=self.registry)
        self.entered = Counter(
            "agentic_tasks", "Runs that entered this state while this process ran", ["state"], registry=self.registry
        )
        self.active = Gauge("agentic_tasks_active", "Runs that have not ended", ["state"], registry=self.registry)
        self.durations = Histogram(
            "agentic_task_duration_seconds",
            "From submission to the end",
            ["outcome"],
            buckets=_RUN_BUCKETS,
            registry=self.registry,
        )
        self.provisioned = Histogram(
            "agentic_vm_provision_duration_seconds",
            "From an image to a machine that answers",
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.stages = Histogram(
            "taskyard_task_stage_duration_seconds",
            "Time of runs in each of their states",
            ["stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.waited = Histogram(
            "taskyard_queue_wait_seconds",
            "From submission to room on a host",
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self.tokens = Counter("taskyard_task_tokens", "Tokens of ended runs", ["kind"], registry=self.registry)
        self.cost = Counter(
            "taskyard_task_cost_usd", "Cost of ended runs by the price table, in US dollars", registry=self.registry
        )
        for state in TaskState:
            self.entered.labels(state.value)
            if state.terminal:
                self.durations.labels(state.value)
            else:
                self.active.labels(state.value)
                self.stages.labels(state.value)
        for kind in _TOKEN_KINDS:
            self.tokens.labels(kind)
        for outcome in _OUTCOMES:
            self.outcomes.labels(outcome)
        self.requests = Histogram(
            "taskyard_http_request_duration_seconds",
            "Time to the first byte of an answer",
            ["method", "route", "status"],
            registry=self.registry,
        )
        uptime = Gauge("agentic_uptime_seconds", "Time since this process started", registry=self.registry)
        uptime.set_function(lambda: time.time() - self.started)
        self.streams = Gauge("taskyard_event_streams", "Clients of event streams now", registry=self.registry)
        self.tied = Gauge("taskyard_machine_streams", "Clients tied to machines now", registry=self.registry)
        following = Gauge("taskyard_log_followers", "Clients that follow a run now", registry=self.registry)
        following.set_function(followers)

    def take_counts(self, counts: Counter_[str] | None, workers: int = 0) -> None:
        """Show how many runs are in each state, and how many workers there are; None: nobody knows now."""
        self.agents.set(nan if counts is None else workers)
        if counts is None:
            self.tasks.clear()
            self.active.clear()
            return
        for state in TaskState:
            self.tasks.labels(state.value).set(counts[state])
            if not state.terminal:
                self.active.labels(state.value).set(counts[state])

    def take_change(self, status: TaskStatus, before: str | None) -> None:
        """A run was seen in another state than ``before``; what it came through since is counted once.

        Times of states are known when the run has written them down: at ``ready`` and at its end.
        """
        rank = _RANK[before] if before else -1
        # One that waited for a decision was seen in that state, and is not counted for it once more.
        newer = [
            step
            for step in status.transitions
            if _RANK[step.state] > rank and step.state is not TaskState.AWAITING_DECISION
        ]
        for state in dict.fromkeys([*(step.state for step in newer), status.state]):
            self.entered.labels(state.value).inc()
        if status.state.terminal or (status.state in _AFTER_READY and before not in _AFTER_READY):
            for step, following in pairwise(status.transitions):
                if before in _AFTER_READY and _RANK[step.state] < _RANK[TaskState.READY]:
                    continue
                self._take_stage(step.state, (following.at - step.at).total_seconds())
        if status.state.terminal:
            took = (status.state_changed_at - status.created_at).total_seconds()
            self.durations.labels(status.state.value).observe(max(0.0, took))
            self.outcomes.labels(_outcome(status)).inc()
            for kind in _TOKEN_KINDS if status.usage else ():
                self.tokens.labels(kind).inc(getattr(status.usage, f"{kind}_tokens"))
            if status.usage and status.usage.cost_usd:
                self.cost.inc(status.usage.cost_usd)

    def _take_stage(self, state: TaskState, seconds: float) -> None:
        # The first two times are those of different clocks.
        seconds = max(0.0, seconds)
        self.stages.labels(state.value).observe(seconds)
        if state is TaskState.PENDING:
            self.waited.observe(seconds)
        elif state is TaskState.PROVISIONING:
            self.provisioned.observe(seconds)

    def text(self) -> bytes:
        """All series as text."""
        return generate_latest(self.registry)


def _outcome(status: TaskStatus) -> str:
    if status.state is TaskState.COMPLETED:
        return "success"
    if status.state is TaskState.CANCELLED:
        return "cancelled"
    return "timeout" if status.cause in _TIMEOUTS else "failure"


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
                route = getattr(scope.get("route"), "path", "none")
                # A client may call its method what it likes.
                method = scope["method"] if scope["method"] in _METHODS else "other"
                self._metrics.requests.labels(method, route, str(message["status"])).observe(
                    time.perf_counter() - begun
                )
            await send(message)

        await self._app(scope, receive, measured)
