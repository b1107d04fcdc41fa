"""From a program's write in the guest to a hundred clients that follow the run's stream at once, beside `tail -f`.

All of them are fed by one reader of the server. The clients are one process on the same host, whose own work counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from uuid import uuid4

from api.environments.core import Environments
from api.runs.acceptance import accept
from api.runs.admission import Admission
from api.runs.core import Core
from api.runs.recorded import TASK_RUNS
from api.temporal.client import Engine
from api.temporal.index import RunIndex
from api.temporal.visibility import TemporalVisibility
from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.log_latency import LINES, Arrival, latencies, tail_by_hand, written
from benchmarks.cases.machine_stand import USUAL, Stand, restoring
from benchmarks.lab import Lab
from benchmarks.stand_ins import manifest
from cli.stack.up import Stack
from foundation.documents import Document
from foundation.errors import TaskyardError
from storage.bucket import Bucket

FOLLOWERS = 100
# What the program writes, as Claude Code would say it.
_LINE = '{"type": "assistant", "message": {"content": [{"type": "text", "text": "%s"}]}}'
_PROJECT = "/api/projects/1"


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand, Stack(lab.settings, parts=("temporal", "bucket", "server")):
        yield Sides(lambda: event_loop.run(_ours(stand)), lambda: tail_by_hand(stand))


async def _ours(stand: Stand) -> Run:
    settings = stand.lab.settings
    key = settings.client_keys()[0].decode()
    async with written(stand, _LINE) as (machine, http):
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{settings.api_port}{_PROJECT}/tasks"
        task = (await http.post(f"{url}/", json={"description": "Write"}, headers=headers)).raise_for_status().json()
        engine = Engine(settings)
        bucket = Bucket(settings)
        admission = Admission(bucket, Environments(settings, bucket))
        core = Core(engine, bucket, RunIndex(TemporalVisibility(engine, TASK_RUNS), TASK_RUNS), admission)
        wanted = manifest() | {"vm": asdict(stand.size)}
        wanted["metadata"] = wanted["metadata"] | {"id": str(uuid4())}
        run = await core.submit(accept(Document(wanted)).manifest, parent=task["id"])
        path = f"{_PROJECT}/tasks/{task['id']}/runs/{run.id}/stream/"
        reading = [asyncio.create_task(_follow(settings.api_port, path, key)) for _ in range(FOLLOWERS)]
        arrivals = [arrival for each in reading for arrival in await each]
    return latencies(arrivals, machine.looks, FOLLOWERS)


async def _follow(port: int, path: str, key: str) -> list[Arrival]:
    """What one client hears and when, by a plain connection: a client library would be most of what is measured."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        arrivals: list[Arrival] = []
        # To the run's end, after which the guest's clock was looked at again.
        while not (line := await reader.readline()).startswith(b"event: stream-end"):
            now = time.time()
            if not line:
                raise TaskyardError(f"A stream broke off after {len(arrivals)} lines.")
            if b'"agent_message"' in line:
                update = json.loads(line.removeprefix(b"data: "))["notification"]["params"]["update"]
                arrivals.append((now, float(update["content"]["text"])))
        return arrivals
    finally:
        writer.close()


CASE = Case(
    name="followers",
    title=f"{FOLLOWERS} followers of {LINES} lines of a live log",
    by_hand="`tail -f` of the program's file over ssh, read by one plain process (`benchmarks/by_hand/tail.sh`)",
    figures=(
        Figure("median", "from the write in the guest to a client of the run's stream", unit="ms"),
        Figure("p99", "the same, 99th percentile", unit="ms", limit=100),
    ),
    open=_open,
    repeat=2,
)
