"""From a program's write in the guest to the client that follows the run's log, beside `tail -f` over ssh.

The program's lines tell when they were written, by the guest's clock. How far that is from the host's is looked at
before and after, over a channel that is open anyway, and taken into account.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict

import httpx
from temporalio import activity

from activities.agent.steps import Agent
from activities.finish import Finish
from activities.machine.lease import Leases, agent_queue
from activities.machine.network import Decision, MachineNetworks
from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import USUAL, Stand, restoring
from benchmarks.lab import Lab
from benchmarks.stand_ins import manifest, stand_in_worker
from cli.stack.up import Stack
from foundation.engine import connect_engine
from foundation.errors import TaskyardError
from foundation.settings import Settings
from guest.contract import AGENT_USER, GUEST_ADDRESS, WORKSPACE
from machines.host import MachineHost
from machines.ssh import GuestShell
from storage.bucket import Bucket
from storage.live.host import HostLogs
from worker.main import polling
from worker.registry import Activity
from worker.room import published_room
from worker.service.server import HostService
from workflows import steps
from workflows.runs.budget import Budget
from workflows.runs.messages import NetworkUse, TokenUsage
from workflows.runs.requests import CollectRequest, CollectResult, ProvisionRequest, ProvisionResult
from workflows.specs.wire import NetworkPolicy

LINES = 250
_PAUSE_SECONDS = 0.1
_LOOKS = 20
_UNCERTAIN_MOST = 0.02
_LINE = '{"at": "%s"}'


def _program(line: str) -> str:
    """Writes lines with their times."""
    # Nothing but bash itself: in an emulated guest, a child process for each line would be most of what it does.
    return (
        f"exec 3<> <(:); for ((line = 0; line < {LINES}; line++)); do "
        f"printf '{line}\\n' \"$EPOCHREALTIME\"; read -rt {_PAUSE_SECONDS} -u 3; done"
    )


def _agent(line: str) -> bytes:
    return f"""#!/bin/bash
{_program(line)}
echo '{{"type": "result", "subtype": "success", "is_error": false}}'
cat >/dev/null
""".encode()


# Unix times: of the host before, of the guest, of the host after.
Look = tuple[float, float, float]
# Unix times: of the arrival here, of the writing there.
Arrival = tuple[float, float]


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand, Stack(lab.settings, parts=("temporal", "bucket", "server")):
        yield Sides(lambda: event_loop.run(_ours(stand)), lambda: tail_by_hand(stand))


async def _ours(stand: Stand) -> Run:
    async with written(stand) as (machine, http):
        reply = await http.post("/tasks", json=manifest() | {"vm": asdict(stand.size)})
        task_id = reply.raise_for_status().json()["task_id"]
        arrivals: list[Arrival] = []
        accept = {"Accept": "text/event-stream"}
        async with http.stream("GET", f"/tasks/{task_id}/logs?follow=true&stream=stdout", headers=accept) as events:
            async for line in events.aiter_lines():
                now = time.time()
                if line.startswith('data: {"at"'):
                    arrivals.append((now, float(json.loads(line.removeprefix("data: "))["at"])))
    return latencies(arrivals, machine.looks)


@asynccontextmanager
async def written(stand: Stand, line: str = _LINE) -> AsyncIterator[tuple[MachineSteps, httpx.AsyncClient]]:
    """Real steps for one run, except that its repository is none and its agent is the program; and a client.

    ``line`` is what the program writes each time, with ``%s`` where its time is to stand.
    """
    settings = stand.lab.settings
    client = await connect_engine(settings)
    bucket = Bucket(settings)
    agent = Agent(
        settings, stand.host, bucket, _NoModel(), MachineNetworks(_NoNetwork()), client, asyncio.get_running_loop()
    )
    leases = Leases(settings, stand.host, bucket)
    machine = MachineSteps(stand, line)
    instead: dict[str, Activity] = {
        steps.RESERVE.name: leases.reserve_host,
        steps.PROVISION.name: machine.provision,
        steps.RUN_AGENT.name: agent.run_agent,
        steps.CLOSE.name: agent.close_session,
        steps.COLLECT.name: machine.collect,
        steps.RELEASE.name: leases.release_machine,
        steps.FINISH.name: Finish(bucket).finish_run,
    }
    async with (
        _told(settings, stand.host, bucket),
        stand_in_worker(settings, client, instead=instead),
        # As the real lease says, agents are followed on a queue of their own.
        polling(client, agent_queue(settings), 1, [agent.run_agent]),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.api_port}/api/v1", timeout=120) as http,
    ):
        yield machine, http


@asynccontextmanager
async def _told(settings: Settings, host: MachineHost, bucket: Bucket) -> AsyncIterator[None]:
    """What a worker has beside its steps for those who follow the logs of its runs."""
    with HostLogs(bucket, settings.home / "live-logs"):
        service = HostService(settings, host, bucket)
        await service.start()
        try:
            async with published_room(settings.host_name, host, bucket, service.address):
                yield
        finally:
            await service.stop()


def tail_by_hand(stand: Stand) -> Run:
    """The same by `tail -f` over ssh."""
    lines, clock = (stand.lab.directory / name for name in ("lines-read", "clock"))
    try:
        stand.by_hand(
            "tail.sh",
            GUEST_USER="agent",
            PROGRAM=_program(_LINE),
            COUNT=str(LINES),
            LINES_READ=str(lines),
            CLOCK=str(clock),
        )
        came = [line.split(" ", 1) for line in lines.read_text().splitlines()]
        looks = [_look(*line.split()) for line in clock.read_text().splitlines()]
        return latencies([(float(at), float(json.loads(line)["at"])) for at, line in came], looks)
    finally:
        for path in (lines, clock):
            path.unlink(missing_ok=True)


class _NoModel:
    """What the agent's steps ask of the model gateway; the program asks no model."""

    def token(self, machine_id: str) -> str:
        return f"none-of-{machine_id}"

    def set_budget(self, machine_id: str, budget: Budget) -> None:
        """There is none."""

    def account(self, machine_id: str) -> tuple[TokenUsage, str | None]:  # noqa: ARG002 -- the gateway's own signature
        return TokenUsage(), None


class _NoNetwork:
    """What the steps ask of the egress proxy; the program asks for nothing."""

    def set_policy(self, machine_id: str, policy: NetworkPolicy) -> None:
        """There is no proxy to be told."""

    def use(self, machine_id: str) -> NetworkUse:  # noqa: ARG002
        return NetworkUse()

    def drain(self, machine_id: str, *, last: bool = False) -> list[Decision]:  # noqa: ARG002
        return []


class MachineSteps:
    """Steps of a run without a workspace, in whose machine the program stands in Claude Code's place."""

    def __init__(self, stand: Stand, line: str) -> None:
        self._stand = stand
        self._line = line
        self.looks: list[Look] = []

    @activity.defn(name=steps.PROVISION.name)
    def provision(self, request: ProvisionRequest) -> ProvisionResult:
        """A restored machine with the program."""
        host, image = self._stand.host, self._stand.image
        record = host.ensure_running(request.machine_id, image, self._stand.lab.report)
        shell = host.connect(request.machine_id)
        shell.run(f"mkdir -p {WORKSPACE} && chown {AGENT_USER}: {WORKSPACE}")
        shell.write("/usr/local/bin/claude", _agent(self._line), 0o755)
        self.looks += _look_at_clock(shell)
        return ProvisionResult(
            vm_name=request.machine_id,
            vm_ip=GUEST_ADDRESS,
            acceleration=record.acceleration or "",
            image=image.digest,
            boot_seconds=record.boot_seconds or 0,
        )

    @activity.defn(name=steps.COLLECT.name)
    def collect(self, request: CollectRequest) -> CollectResult:
        """No artifacts."""
        self.looks += _look_at_clock(self._stand.host.connect(request.machine_id))
        return CollectResult()


def _look_at_clock(shell: GuestShell) -> list[Look]:
    looks = []
    talk = shell.stream("exec bash -c 'while read -r; do echo $EPOCHREALTIME; done'")
    try:
        for _ in range(_LOOKS):
            before, answer = time.time(), b""
            talk.sendall(b"\n")
            while not answer.endswith(b"\n"):
                answer += talk.recv(100)
            looks.append((before, float(answer), time.time()))
    finally:
        talk.close()
    return looks


def _look(before: str, there: str, after: str) -> Look:
    return float(before), float(there), float(after)


def latencies(arrivals: Sequence[Arrival], looks: Sequence[Look], followers: int = 1) -> Run:
    """Milliseconds from write to arrival. Raises TaskyardError for a clock that is not known well enough."""
    if len(arrivals) != LINES * followers:
        raise TaskyardError(f"Of {LINES * followers} lines that were written, {len(arrivals)} came.")
    # Of several looks, the quickest says most exactly what the guest's clock is ahead by.
    first, last = (min(part, key=lambda look: look[2] - look[0]) for part in (looks[:_LOOKS], looks[_LOOKS:]))
    uncertain = max(after - before for before, _, after in (first, last)) / 2
    if uncertain > _UNCERTAIN_MOST:
        raise TaskyardError(f"The guest's clock is known to {1000 * uncertain:.0f} ms only; measure on a quieter host.")
    ahead_first, ahead_last = (there - (before + after) / 2 for before, there, after in (first, last))
    drift = (ahead_last - ahead_first) / (last[1] - first[1])
    took = [1000 * (came - (written - ahead_first - drift * (written - first[1]))) for came, written in arrivals]
    quantiles = statistics.quantiles(took, n=100)
    return Run({"median": quantiles[49], "p99": quantiles[98]})


CASE = Case(
    name="sse",
    title=f"{LINES} lines of a live log",
    by_hand="`tail -f` of the program's file over ssh, read by a plain process (`benchmarks/by_hand/tail.sh`)",
    figures=(
        Figure("median", "from the write in the guest to the client of the event stream", unit="ms", limit=15),
        Figure("p99", "the same, 99th percentile", unit="ms", limit=60),
    ),
    open=_open,
    repeat=2,
)
