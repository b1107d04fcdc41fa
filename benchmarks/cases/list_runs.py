"""Lists among five thousand runs: a page with its filters, order and total, beside what Temporal itself lists."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.finished_runs import make_ended_runs
from benchmarks.lab import Lab
from cli.stack.up import Stack
from foundation.engine import connect_engine
from foundation.errors import TaskyardError
from workflows import names
from workflows.runs.states import TaskState

RUNS = 5000
PAGE = 100
_REQUESTS = 40

# Each is asked as often as the others, in turns.
QUERIES = (
    "",
    "state=completed",
    "state=failed,cancelled&sort=name&order=asc",
    "label.team=team-3&sort=started_at",
    "sort=state_changed_at&offset=4900",
    "state=completed&label.team=team-4&order=asc",
)


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with Stack(lab.settings, parts=("temporal", "bucket", "server")):
        lab.report(f"making {RUNS} runs that have ended")
        event_loop.run(_make(lab))
        with httpx.Client(base_url=f"http://127.0.0.1:{lab.settings.api_port}", timeout=60) as http:
            _settle(http)
            yield Sides(lambda: _ours(http), lambda: event_loop.run(_by_hand(lab)))


async def _make(lab: Lab) -> None:
    await make_ended_runs(await connect_engine(lab.settings), RUNS)


def _settle(http: httpx.Client) -> None:
    """Wait until the server shows all of them."""
    deadline = time.monotonic() + 120
    while (total := _ask(http, "")) != RUNS:
        if time.monotonic() > deadline:
            raise TaskyardError(f"The server lists {total} runs instead of {RUNS}.")
        time.sleep(0.5)


def _ask(http: httpx.Client, query: str) -> int:
    reply = http.get(f"/api/v1/tasks?limit={PAGE}&{query}")
    reply.raise_for_status()
    return int(reply.json()["total_count"])


def _ours(http: httpx.Client) -> Run:
    took = []
    for _ in range(_REQUESTS):
        for query in QUERIES:
            began = time.perf_counter()
            _ask(http, query)
            took.append(time.perf_counter() - began)
    return _figures(took)


async def _by_hand(lab: Lab) -> Run:
    client = await connect_engine(lab.settings)
    query = f"WorkflowType = '{names.RUNS.type}' AND {names.STATE_KEY.name} = '{TaskState.COMPLETED}'"
    took = []
    for _ in range(_REQUESTS):
        began = time.perf_counter()
        async for _execution in client.list_workflows(query, page_size=PAGE, limit=PAGE):
            pass
        await client.count_workflows(query)
        took.append(time.perf_counter() - began)
    return _figures(took)


def _figures(took: list[float]) -> Run:
    quantiles = statistics.quantiles([1000 * seconds for seconds in took], n=100)
    return Run({"median": quantiles[49], "p95": quantiles[94]})


CASE = Case(
    name="list",
    title=f"A page of {PAGE} among {RUNS} runs",
    by_hand=f"Temporal's own client: the first {PAGE} runs of one state, in no order of ours, and their count",
    figures=(
        Figure("median", f"a page of {PAGE}, over six filters and orders", "ms"),
        Figure("p95", "the same, 95th percentile", "ms"),
    ),
    open=_open,
)
