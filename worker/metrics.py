"""A worker's metrics for Prometheus, on a loopback port of its own: its gateway, its agents' costs, its host's room."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, make_wsgi_app

from foundation.urls import is_local_name
from machines.host import MachineHost
from worker.gateway.usage import TOKEN_FIELDS
from workflows.runs.requests import AgentResult

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_CONNECTION_SECONDS = 30

log = structlog.get_logger("metrics")

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_RESOURCES = ("cpus", "memory_bytes", "disk_bytes")


class WorkerMetrics:
    """The series of one worker process. Labels are classes of status, kinds of tokens and of room, and outcomes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "taskyard_gateway_requests", "Answers of the model API by class", ["status"], registry=self.registry
        )
        self._request_seconds = Histogram(
            "taskyard_gateway_request_duration_seconds",
            "To the first byte of an answer of the model API",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self._tokens = Counter(
            "taskyard_gateway_tokens", "Tokens that passed the gateway", ["kind"], registry=self.registry
        )
        self._gateway_cost = Counter(
            "taskyard_gateway_cost_usd",
            "Cost of what passed the gateway by its price table, in US dollars",
            registry=self.registry,
        )
        self._unpriced = Counter(
            "taskyard_gateway_unpriced_tokens", "Tokens of models that have no price", registry=self.registry
        )
        self._refusals = Counter(
            "taskyard_gateway_budget_refusals",
            "Requests of runs that have used up their budget",
            registry=self.registry,
        )
        self._cost = Counter(
            "taskyard_agent_cost_usd", "Cost that the agents reported, in US dollars", registry=self.registry
        )
        self._agents = Counter(
            "taskyard_agent_runs", "Agents that have ended here", ["outcome"], registry=self.registry
        )
        self._machines = Gauge("taskyard_host_machines", "Machines of this host", registry=self.registry)
        self._room = Gauge("taskyard_host_room", "What machines may have", ["resource"], registry=self.registry)
        self._free = Gauge("taskyard_host_free", "What no machine has", ["resource"], registry=self.registry)
        self._stopped = Gauge(
            "taskyard_host_machines_stopped",
            "Machines that stand still until the host's disk has room again",
            registry=self.registry,
        )
        self._connections = Counter(
            "taskyard_egress_connections", "What guests asked the egress proxy for", ["verdict"], registry=self.registry
        )
        self._traffic = Counter(
            "taskyard_egress_bytes", "Bytes that passed the egress proxy", ["direction"], registry=self.registry
        )
        for verdict in ("allowed", "blocked", "failed"):
            self._connections.labels(verdict)
        self._sent = self._traffic.labels("sent")
        self._received = self._traffic.labels("received")
        for status in ("2xx", "4xx", "5xx"):
            self._requests.labels(status)
        for kind in TOKEN_FIELDS:
            self._tokens.labels(kind.removesuffix("_tokens"))
        for outcome in ("success", "failure"):
            self._agents.labels(outcome)

    def take_request(self, status: int, seconds: float) -> None:
        """The model API has answered, or has not: 502 and 504 are the gateway's own."""
        self._requests.labels(f"{status // 100}xx").inc()
        self._request_seconds.observe(seconds)

    def take_connection(self, verdict: str) -> None:
        """The egress proxy has decided: allowed, blocked or failed."""
        self._connections.labels(verdict).inc()

    def take_traffic(self, *, sent: int, received: int) -> None:
        """Bytes from a guest to a host, and back."""
        if sent:
            self._sent.inc(sent)
        if received:
            self._received.inc(received)

    def take_stopped(self, count: int) -> None:
        """So many machines stand still for want of disk."""
        self._stopped.set(count)

    def take_usage(self, usage: Mapping[str, float]) -> None:
        """Tokens of one answer, by the model API's names of them, and their cost."""
        for field in TOKEN_FIELDS:
            self._tokens.labels(field.removesuffix("_tokens")).inc(max(0, usage.get(field, 0)))
        self._gateway_cost.inc(max(0.0, usage.get("cost_usd", 0.0)))
        self._unpriced.inc(max(0, usage.get("unpriced_tokens", 0)))

    def take_refusal(self) -> None:
        """A request was refused because the run has used up its budget."""
        self._refusals.inc()

    def take_result(self, result: AgentResult) -> None:
        """An agent has ended."""
        self._agents.labels("failure" if result.cause else "success").inc()
        if result.total_cost_usd and result.total_cost_usd > 0:
            self._cost.inc(result.total_cost_usd)

    @contextmanager
    def serving(self, port: int, host: MachineHost) -> Iterator[None]:
        """Serve them while the block runs; port 0: do not. A port that is taken costs the metrics, not the worker."""
        self._machines.set_function(lambda: len(host.records()))
        for resource in _RESOURCES:
            self._room.labels(resource).set_function(partial(_amount, host, 0, resource))
            self._free.labels(resource).set_function(partial(_amount, host, 1, resource))
        if not port:
            yield
            return
        try:
            server = make_server(
                "127.0.0.1", port, _for_own_names(make_wsgi_app(self.registry)), _Server, handler_class=_SilentHandler
            )
        except OSError as error:
            log.warning("metrics are not served; set TASKYARD_WORKER_METRICS_PORT", port=port, error=str(error))
            yield
            return
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingMixIn, WSGIServer):
    """One thread for each connection, which ends with the process."""

    daemon_threads = True
    block_on_close = False


class _SilentHandler(WSGIRequestHandler):
    timeout = _CONNECTION_SECONDS

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name of the base class
        """Requests for metrics are not worth a line each."""


def _for_own_names(application: WSGIApplication) -> WSGIApplication:
    """The application for who asks by an address or as localhost: a web page can make other names lead here."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if is_local_name(environ.get("HTTP_HOST", "")):
            return application(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"Requests for this name are refused; ask by address or as localhost.\n"]

    return checked


def _amount(host: MachineHost, which: int, resource: str) -> float:
    room = host.room()[which]
    amounts = {
        "cpus": room.cpus,
        "memory_bytes": room.guest_memory_bytes,
        "disk_bytes": room.disk_free_bytes if which else room.disk_total_bytes,
    }
    return float(amounts[resource])
