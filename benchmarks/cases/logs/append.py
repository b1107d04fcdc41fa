"""Entries of a client appended to a log up to a hundred thousand: what the first and the last of them cost.

The plain way keeps the log as one object, which each append reads and writes anew.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from api.told.appending import ClientLogs
from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.lab import Lab
from cli.stack.up import Stack
from foundation.errors import TaskyardError
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import read_entries
from storage.segments import told_draft

ENTRIES = 100_000
# As an agent sends them: what half a second gives.
BATCH = 50
_CLIENTS = 2
# How many of the first and of the last entries are looked at.
_SPAN = 10_000
_SAMPLES = 10
_TEXT = "It reads the file, finds the fault and mends it; then it runs the tests again. " * 3


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with Stack(lab.settings, parts=("bucket",)):
        bucket = Bucket(lab.settings)
        bucket.ensure()
        yield Sides(lambda: event_loop.run(_ours(bucket)), lambda: _by_hand(bucket))


def _line(number: int) -> str:
    update = {"sessionUpdate": "agent_message", "content": {"type": "text", "text": f"{number} {_TEXT}"}}
    notification = {"jsonrpc": "2.0", "method": "session/update", "params": {"update": update}}
    return json.dumps({"type": "notification", "notification": notification}) + "\n"


async def _ours(bucket: Bucket) -> Run:
    """Two clients at once, each by a server of its own."""
    place = TASKS.place(f"append-{uuid.uuid4().hex}")
    servers = [ClientLogs(bucket) for _ in range(_CLIENTS)]
    took: list[float] = []

    async def client(server: ClientLogs, first: int) -> None:
        for begin in range(first * BATCH, ENTRIES, _CLIENTS * BATCH):
            drafts = [told_draft(_line(number)) for number in range(begin, begin + BATCH)]
            began = time.perf_counter()
            await server.append(place, lambda _, drafts=drafts: drafts, BATCH * len(_TEXT))  # type: ignore[misc]
            took.append(time.perf_counter() - began)

    await asyncio.gather(*(client(server, first) for first, server in enumerate(servers)))
    stored = await asyncio.to_thread(lambda: sum(1 for _ in read_entries(bucket, place)))
    if stored != ENTRIES:
        raise TaskyardError(f"The log has {stored} entries instead of {ENTRIES}.")
    return _figures(took[: _SPAN // BATCH], took[-_SPAN // BATCH :])


def _by_hand(bucket: Bucket) -> Run:
    """One client, and of the appends those alone that are looked at."""
    key = f"append/{uuid.uuid4().hex}.jsonl"
    spans = []
    for begin in (0, ENTRIES - _SPAN):
        bucket.put(key, "".join(_line(number) for number in range(begin)).encode())
        took = []
        for sample in range(_SAMPLES):
            more = "".join(_line(begin + sample * BATCH + number) for number in range(BATCH)).encode()
            began = time.perf_counter()
            bucket.put(key, (bucket.get(key) or b"") + more)
            took.append(time.perf_counter() - began)
        spans.append(took)
    return _figures(*spans)


def _figures(first: list[float], last: list[float]) -> Run:
    medians = [1000 * statistics.median(span) for span in (first, last)]
    return Run({"first": medians[0], "last": medians[1], "growth": medians[1] / medians[0]})


CASE = Case(
    name="append",
    title=f"{BATCH} entries of a client appended to a log, up to {ENTRIES} of them, by {_CLIENTS} clients at once",
    by_hand="one object, read and written anew with each append, by one client",
    figures=(
        Figure("last", f"an append at the end of {ENTRIES} entries, median", "ms"),
        Figure("first", f"the same among the first {_SPAN}", "ms"),
        Figure("growth", "how many times as long the last take as the first", "times", limit=1.5),
    ),
    open=_open,
)
