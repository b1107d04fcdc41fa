"""The soak: hundreds of runs at once without machines, for an hour, and every answer of the API held against Temporal.

``python -m benchmarks soak --minutes 60 --runs 300``. Real are Temporal, the bucket, the API server and the worker's
process with the real workflow, run log and final record; agents live as they are told (``soak_worker.py``). Nobody
asks the server for anything that all runs are needed for but one checker, whose pauses are seconds to minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psutil
import websockets
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import Client
from temporalio.service import RPCError

from benchmarks import event_loop
from benchmarks.lab import Lab
from benchmarks.soak.growth import Samples
from benchmarks.soak.truth import Span, Truth, by_state, read_truth
from benchmarks.soak.worker import Life
from benchmarks.stand_ins import manifest
from cli.stack.embedded import PARTS
from cli.stack.supervisor import LOG_BYTES_MOST, Supervisor
from cli.stack.up import Stack
from foundation.engine import connect_engine
from workflows.names import RUNS
from workflows.runs.states import TaskState

TASKS = "/api/v1/tasks"
# How old an answer may be (docs/api.md), and what asking for the truth takes at most beside it.
ANSWER_AGE_SECONDS = 2.0
_SLACK_SECONDS = 1.0
_SLOW_SECONDS = 20.0

_SAMPLE_SECONDS = 5.0
_REPORT_SECONDS = 30.0
_READERS = 6
_SUBMITTED_AT_ONCE = 8
_FORGOTTEN_AT_ONCE = 8
_ENDING_SECONDS = 300.0
_FAULTS_SHOWN = 20
# A part may write while its log is looked at.
_LOG_SLACK = 1.05

_OPEN = f"WorkflowType = '{RUNS.type}' AND ExecutionStatus = 'Running'"
_EVERY = frozenset(TaskState)
_ENDED = frozenset(state for state in TaskState if state.terminal)
_UNDER_WAY = _EVERY - _ENDED - {TaskState.PENDING}


@dataclass
class Soak:
    """One soak: what it is to do, what stands where, and what it has found."""

    client: Client
    http: httpx.AsyncClient
    socket_url: str
    runs: int
    seconds: float
    chance: random.Random
    kept_seconds: float
    began: float = field(default_factory=time.monotonic)
    submitted: int = 0
    faults: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    slowest: dict[str, float] = field(default_factory=dict)
    open_ids: set[str] = field(default_factory=set)

    @property
    def over(self) -> bool:
        return time.monotonic() - self.began > self.seconds

    def fault(self, text: str) -> None:
        self.faults.append(text)
        if len(self.faults) <= _FAULTS_SHOWN:
            _say(f"FAULT at {time.monotonic() - self.began:.0f} s: {text}")

    async def ask(self, what: str, path: str, **parameters: Any) -> httpx.Response | None:
        """An answer; none, and a fault, when it is no answer or one of status 500 or above."""
        began = time.monotonic()
        try:
            reply = await self.http.request(parameters.pop("method", "GET"), path, **parameters)
        except httpx.HTTPError as error:
            self.fault(f"{what}: {type(error).__name__} {error}")
            return None
        took = time.monotonic() - began
        self.asked[what] += 1
        self.slowest[what] = max(took, self.slowest.get(what, 0.0))
        if reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR or took > _SLOW_SECONDS:
            self.fault(f"{what}: {reply.status_code} after {took:.1f} s: {reply.text[:200]}")
            return None
        return reply

    # --- what goes on

    async def keep_running(self) -> None:
        """Keep as many runs open as are to be."""
        while not self.over:
            counted = await self.client.count_workflows(_OPEN)
            missing = min(self.runs - counted.count, _SUBMITTED_AT_ONCE)
            await asyncio.gather(*(self._submit() for _ in range(missing)))
            await asyncio.sleep(1.0)

    async def _submit(self) -> None:
        quick = self.chance.random() < 0.15  # noqa: PLR2004 -- one in seven
        life = Life(
            self.chance.uniform(1, 15) if quick else self.chance.uniform(60, min(400, max(61, self.seconds / 2))),
            self.chance.choice((0, 0, 0, 2)),
        )
        asked = manifest()
        asked["claude"]["prompt"] = life.prompt
        asked["metadata"] |= {"name": f"soak {self.submitted}", "labels": {"part": str(self.submitted % 7)}}
        self.submitted += 1
        reply = await self.ask("submit", TASKS, method="POST", json=asked)
        if reply is None or reply.status_code != httpx.codes.ACCEPTED:
            self.fault(f"a run was not taken: {reply.text[:200] if reply else 'no answer'}")
            return
        task_id = str(reply.json()["task_id"])
        if self.chance.random() < 0.1:  # noqa: PLR2004 -- one in ten
            self._later(self.chance.uniform(0, life.seconds), lambda: self._cancel(task_id))
        elif self.chance.random() < 0.02:  # noqa: PLR2004 -- one in fifty
            self._later(self.chance.uniform(0, life.seconds), lambda: self._terminate(task_id))

    async def _cancel(self, task_id: str) -> None:
        await self.ask("cancel", f"{TASKS}/{task_id}", method="DELETE")

    async def _terminate(self, task_id: str) -> None:
        with suppress(RPCError):
            await self.client.get_workflow_handle(RUNS.workflow_id(task_id)).terminate("soak")

    def _later(self, seconds: float, what: Callable[[], Awaitable[None]]) -> None:
        async def wait() -> None:
            await asyncio.sleep(seconds)
            await what()

        task = asyncio.create_task(wait())
        _RUNNING.add(task)
        task.add_done_callback(_RUNNING.discard)

    async def forget(self) -> None:
        """Let Temporal forget what ended long ago, as its retention does."""
        while not self.over:
            await asyncio.sleep(5.0)
            before = f"{datetime.now(UTC) - timedelta(seconds=self.kept_seconds):%Y-%m-%dT%H:%M:%S.%fZ}"
            old = [
                run
                async for run in self.client.list_workflows(
                    f"WorkflowType = '{RUNS.type}' AND CloseTime < '{before}'", limit=100
                )
            ]
            for first in range(0, len(old), _FORGOTTEN_AT_ONCE):
                await asyncio.gather(
                    *(self._forget(run.id, run.run_id) for run in old[first : first + _FORGOTTEN_AT_ONCE])
                )

    async def _forget(self, run: str, run_id: str) -> None:
        execution = WorkflowExecution(workflow_id=run, run_id=run_id)
        request = DeleteWorkflowExecutionRequest(namespace=self.client.namespace, workflow_execution=execution)
        with suppress(RPCError):
            await self.client.workflow_service.delete_workflow_execution(request)

    async def read(self, number: int) -> None:
        """Follow the log or the events of one run after the other, and leave most of them before they end."""
        await asyncio.sleep(number)
        while not self.over:
            if not self.open_ids:
                await asyncio.sleep(1.0)
                continue
            task_id = self.chance.choice(sorted(self.open_ids))
            try:
                async with asyncio.timeout(self.chance.uniform(1, 60)):
                    await (self._follow(task_id) if number % 2 else self._listen(task_id))
            except TimeoutError:
                pass
            except (httpx.HTTPError, websockets.WebSocketException, OSError) as error:
                self.fault(f"a reader of {task_id}: {type(error).__name__} {error}")
            await asyncio.sleep(0.2)

    async def _follow(self, task_id: str) -> None:
        async with self.http.stream("GET", f"{TASKS}/{task_id}/logs", params={"follow": "true"}) as reply:
            self.asked["follow"] += 1
            if reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR:
                self.fault(f"follow: {reply.status_code}")
            async for _ in reply.aiter_lines():
                pass

    async def _listen(self, task_id: str) -> None:
        async with websockets.connect(f"{self.socket_url}{TASKS}/stream?task_id={task_id}") as socket:
            self.asked["listen"] += 1
            async for frame in socket:
                event = json.loads(frame)
                if event["type"] == "error" and event["error"] not in {"agent_exit", "cancelled", "internal_error"}:
                    self.fault(f"listen: {frame[:200]!s}")

    # --- what is checked

    async def check(self) -> None:
        """Ask at random intervals, each time for something else, and compare with what Temporal says."""
        checks = [self._lists, self._filter, self._label, self._health, self._metrics, self._status]
        longest = min(180.0, self.seconds / 8)
        while not self.over:
            # As many short pauses as long ones, by their order of magnitude.
            await asyncio.sleep(longest ** self.chance.random())
            before = await read_truth(self.client)
            self.open_ids = {task_id for task_id, state in before.items() if not state.terminal}
            await asyncio.sleep(ANSWER_AGE_SECONDS + _SLACK_SECONDS)
            await self.chance.choice(checks)(before)

    async def _span(self, before: Truth) -> Span:
        return Span(before, await read_truth(self.client))

    async def _rows(self, **filters: str) -> list[dict[str, Any]] | None:
        rows: list[dict[str, Any]] = []
        while True:
            # By their begin, upwards: runs that come meanwhile move no page.
            page = {"order": "asc", "limit": 1000, "offset": len(rows)}
            reply = await self.ask("list", TASKS, params={**page, **filters})
            if reply is None:
                return None
            rows += reply.json()["tasks"]
            if not reply.json()["has_more"]:
                return rows

    async def _lists(self, before: Truth) -> None:
        rows = await self._rows()
        if rows is not None:
            self._take("list", (await self._span(before)).faults_of_list(rows, _EVERY))

    async def _filter(self, before: Truth) -> None:
        wanted = self.chance.choice([_UNDER_WAY, _ENDED, frozenset({TaskState.RUNNING}), frozenset({TaskState.FAILED})])
        rows = await self._rows(state=",".join(wanted))
        if rows is not None:
            self._take(f"list of {'/'.join(sorted(wanted))}", (await self._span(before)).faults_of_list(rows, wanted))

    async def _label(self, before: Truth) -> None:
        rows = await self._rows(**{"label.part": "3"})
        if rows is None:
            return
        span = await self._span(before)
        ids = {str(row["id"]) for row in rows}
        own = Span(*({key: state for key, state in truth.items() if key in ids} for truth in (span.before, span.after)))
        self._take("list of a label", own.faults_of_list(rows, _EVERY))
        if wrong := [row["id"] for row in rows if row["labels"].get("part") != "3"]:
            self.fault(f"list of a label: {wrong[:5]} have another")

    async def _health(self, before: Truth) -> None:
        if (reply := await self.ask("health", "/api/v1/health")) is not None:
            span, answer = await self._span(before), reply.json()
            self._take("health", span.fault_of_count("tasks.running", answer["tasks"]["running"], _UNDER_WAY))
            if answer["agents"]["connected"] != 1:
                self.fault(f"health: {answer['agents']} with one worker")

    async def _metrics(self, before: Truth) -> None:
        if (reply := await self.ask("metrics", "/metrics")) is not None:
            span = await self._span(before)
            for family in text_string_to_metric_families(reply.text):
                for sample in family.samples:
                    if sample.name == "agentic_tasks_by_state" and sample.labels["state"] != TaskState.PENDING:
                        state = TaskState(sample.labels["state"])
                        self._take("metrics", span.fault_of_count(state, sample.value, frozenset({state})))

    async def _status(self, before: Truth) -> None:
        for task_id in self.chance.sample(sorted(before), min(5, len(before))):
            reply = await self.ask("status", f"{TASKS}/{task_id}")
            if reply is not None and reply.status_code == httpx.codes.OK:
                span = Span(before, {})
                self._take("status", span.faults_of_status(task_id, TaskState(reply.json()["state"])))

    def _take(self, what: str, faults: list[str]) -> None:
        self.asked[f"check {what.split(maxsplit=1)[0]}"] += 1
        for text in faults[:3]:
            self.fault(f"{what}: {text}")
        if faults[3:]:
            self.fault(f"{what}: {len(faults) - 3} more like this")

    # --- the end

    async def end(self) -> None:
        """End what still runs, and see that nothing is left of it."""
        async for run in self.client.list_workflows(_OPEN):
            await self._cancel(RUNS.resource_id(run.id) or run.id)
        deadline = time.monotonic() + _ENDING_SECONDS
        while left := {key: state for key, state in (await read_truth(self.client)).items() if not state.terminal}:
            if time.monotonic() > deadline:
                self.fault(f"runs that did not end: {by_state(left)}")
                break
            await asyncio.sleep(1.0)
        await asyncio.sleep(ANSWER_AGE_SECONDS + _SLACK_SECONDS)
        await self._lists(await read_truth(self.client))
        reply = await self.ask("metrics", "/metrics")
        for family in text_string_to_metric_families(reply.text if reply else ""):
            for sample in family.samples:
                if sample.name in {"taskyard_log_followers", "taskyard_event_streams"} and sample.value:
                    self.fault(f"{sample.name} is {sample.value:g} after all have left")


_RUNNING: set[asyncio.Task[None]] = set()


def _say(text: str) -> None:
    Console(highlight=False, markup=False).print(text, soft_wrap=True)


async def _soak(lab: Lab, worker_pid: int, server_pid: int, runs: int, seconds: float, seed: int) -> int:
    settings = lab.settings
    client = await connect_engine(settings)
    url = f"http://127.0.0.1:{settings.api_port}"
    # What is forgotten after a while keeps the number of runs level, so that growth shows.
    kept = min(600.0, seconds / 6)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=httpx.Limits(max_connections=None)) as http:
        chance = random.Random(seed)  # noqa: S311 -- a seed makes a soak of the same course
        soak = Soak(client, http, f"ws://127.0.0.1:{settings.ws_port}", runs, seconds, chance, kept)
        samples = Samples(
            {"server": server_pid, "worker": worker_pid}, settings.home, frozenset({"temporal", "bucket", "logs"})
        )
        beside = [soak.keep_running(), soak.forget(), soak.check(), *(soak.read(number) for number in range(_READERS))]
        async with asyncio.TaskGroup() as group:
            for one in beside:
                group.create_task(one)
            await _sample(soak, samples)
        for task in list(_RUNNING):
            task.cancel()
        await asyncio.gather(*_RUNNING, return_exceptions=True)
        await soak.end()
        # By then as many runs have come as are kept, and been forgotten.
        growth = samples.growth(soak.began + max(2 * kept, seconds / 3))
        for series in growth:
            if series.too_much:
                soak.fault(f"{series} grows")
        # Logs grow until they are put aside, which an hour may not see.
        for log in settings.logs.iterdir():
            if log.stat().st_size > _LOG_SLACK * LOG_BYTES_MOST:
                soak.fault(f"{log.name} is beyond its limit")
        asked = ", ".join(f"{count} {what}" for what, count in sorted(soak.asked.items()))
        slowest = ", ".join(f"{what} {took:.2f} s" for what, took in sorted(soak.slowest.items()))
        _say(f"asked: {asked}\nslowest: {slowest}\n" + "; ".join(map(str, growth)))
        verdict = f"{len(soak.faults)} FAULTS" if soak.faults else "no fault"
        _say(f"soak of {seconds / 60:g} min, {runs} runs at once, {soak.submitted} in all: {verdict}")
        return 1 if soak.faults else 0


async def _sample(soak: Soak, samples: Samples) -> None:
    reported = 0.0
    while not soak.over:
        try:
            told = samples.take()
        except psutil.Error as error:
            soak.fault(f"a process has ended: {error}")
            soak.seconds = 0
            return
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            passed = reported - soak.began
            _say(f"{passed:6.0f} s: {soak.submitted} submitted, {len(soak.faults)} faults; {told}")
        await asyncio.sleep(_SAMPLE_SECONDS)


def main(arguments: list[str]) -> int:
    """Run a soak; 1 when it has found a fault."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks soak", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--runs", type=int, default=300, help="runs that are open at any time")
    parser.add_argument("--seed", type=int, default=None, help="of all that is random; printed at the start")
    chosen = parser.parse_args(arguments)
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(10**6)
    _say(f"soak of {chosen.minutes:g} min with {chosen.runs} runs at once, seed {seed}")
    with (
        Lab(lambda _: None) as lab,
        Stack(lab.settings, parts=("temporal", "bucket", "server"), restart=False) as stack,
    ):
        supervisor = Supervisor(lab.settings.logs, lambda _: None)
        part = replace(PARTS["worker"](lab.settings), command=[sys.executable, "-P", "-m", "benchmarks.soak.worker"])
        try:
            supervisor.start([part], restart=False)
            pids = stack.pids() | supervisor.pids()
            return event_loop.run(_soak(lab, pids["worker"], pids["server"], chosen.runs, 60 * chosen.minutes, seed))
        finally:
            supervisor.stop(["worker"])
