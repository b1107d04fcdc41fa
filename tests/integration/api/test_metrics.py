"""Metrics that move with the runs, and the dashboard's queries against what the processes really tell."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from machines.host import MachineHost
from tests.api_site import ApiSite, until
from tests.stack_settings import free_ports
from worker.metrics import WorkerMetrics
from workflows.runs.messages import TokenUsage
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause

DASHBOARD = Path(__file__).parents[3] / "dashboards" / "taskyard.json"
WORDS = {
    "sum", "max", "by", "rate", "increase", "histogram_quantile", "le", "state", "outcome", "stage", "status", "kind",
    "route", "resource", "verdict", "direction",
}  # fmt: skip

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


async def told(site: ApiSite) -> Samples:
    reply = await site.http.get("/metrics")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(reply.text)


async def test_the_documented_series_move_with_the_runs(site: ApiSite) -> None:
    before = await told(site)
    site.steps.instead["run_agent"] = lambda request: (
        AgentResult(exit_code=0, usage=TokenUsage(requests=1, input_tokens=11, output_tokens=7))
        if request.claude.prompt == "do it"
        else AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="left with 3")
    )
    waiting = await site.submit()
    assert (await told(site))[("agentic_tasks_active", (("state", "pending"),))] >= 1
    async with site.worker():
        failing = await site.submit(claude={"prompt": "fail"})
        await site.until_state(waiting, "completed")
        await site.until_state(failing, "failed")

        async def counted() -> bool:
            now = await told(site)
            return all(
                value(now, "agentic_task_duration_seconds_count", outcome=outcome)
                > value(before, "agentic_task_duration_seconds_count", outcome=outcome)
                for outcome in ("completed", "failed")
            )

        await until(counted, "both ends in the metrics")
    after = await told(site)
    for state, least in (("pending", 2), ("running", 2), ("completed", 1), ("failed", 1)):
        assert (
            value(after, "agentic_tasks_total", state=state) - value(before, "agentic_tasks_total", state=state)
            >= least
        )
    for name, labels in (
        ("agentic_vm_provision_duration_seconds_count", {}),
        ("taskyard_queue_wait_seconds_count", {}),
        ("taskyard_task_stage_duration_seconds_count", {"stage": "staging"}),
        ("taskyard_task_stage_duration_seconds_count", {"stage": "completing"}),
    ):
        assert value(after, name, **labels) - value(before, name, **labels) >= 2, name
    assert value(after, "taskyard_task_tokens_total", kind="input") >= 11
    assert value(after, "agentic_tasks_by_state", state="completed") >= 1
    assert value(after, "agentic_agents_connected") >= 1
    for outcome in ("success", "failure"):
        name = "agentic_task_outcomes_total"
        assert value(after, name, outcome=outcome) - value(before, name, outcome=outcome) >= 1
    # Ids never become labels, nor does what a client calls its method or asks for.
    await site.http.request("BREW", "/pot/of/tea")
    after = await told(site)
    requests = {labels for name, labels in after if name == "taskyard_http_request_duration_seconds_count"}
    assert (("method", "other"), ("route", "none"), ("status", "404")) in requests
    assert not any(word in label for labels in requests for _, label in labels for word in ("BREW", "tea"))
    assert not any(waiting in label for _, labels in after for _, label in labels)


@pytest.fixture
def worker_text(site: ApiSite) -> str:
    metrics = WorkerMetrics()
    metrics.take_request(200, 0.3)
    metrics.take_request(504, 600)
    metrics.take_usage({"input_tokens": 5, "output_tokens": 3})
    metrics.take_result(AgentResult(exit_code=0, total_cost_usd=0.25))
    metrics.take_result(AgentResult(exit_code=1, cause=Cause.AGENT_EXIT))
    port = free_ports(1)
    with metrics.serving(port, MachineHost(site.settings)):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = str(reply.read().decode())
        # A second worker on the port goes without.
        with WorkerMetrics().serving(port, MachineHost(site.settings)):
            pass
    return text


def test_a_worker_tells_of_its_gateway_its_costs_and_its_room(worker_text: str) -> None:
    found = samples(worker_text)
    assert value(found, "taskyard_gateway_requests_total", status="5xx") == 1
    assert value(found, "taskyard_gateway_request_duration_seconds_count") == 2
    assert value(found, "taskyard_gateway_tokens_total", kind="input") == 5
    assert value(found, "taskyard_agent_cost_usd_total") == 0.25
    assert value(found, "taskyard_agent_runs_total", outcome="failure") == 1
    assert (
        value(found, "taskyard_host_room", resource="cpus") >= value(found, "taskyard_host_free", resource="cpus") > 0
    )


async def test_every_query_of_the_dashboard_finds_its_series_and_labels(site: ApiSite, worker_text: str) -> None:
    await site.http.get("/api/v1/tasks")
    known: dict[str, set[str]] = {}
    for name, labels in samples((await site.http.get("/metrics")).text) | samples(worker_text):
        known.setdefault(name, set()).update(label for label, _ in labels)
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    assert len(queries) > 20
    asked = set()
    for query in queries:
        names = set(re.findall(r"\b(?:taskyard|agentic)_\w+", query))
        assert names, query
        for name in names:
            assert name in known, f"{name} of {query}"
            grouped = {word for group in re.findall(r"by \(([^)]*)\)", query) for word in group.split(", ")}
            matched = set(re.findall(r"(\w+)=~?\"", query))
            assert (grouped | matched) <= known[name], query
        asked |= names
        rest = re.sub(r"\"[^\"]*\"|\[\w+\]|\b(?:taskyard|agentic)_\w+|[\d.]+", "", query)
        assert set(re.findall(r"[a-z_]+", rest)) <= WORDS, query
    # What nobody looks at need not be told.
    own = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in known}
    looked_at = {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in asked}
    assert own - looked_at == set()
