"""What 500 open streams into machines cost one API server: memory while they rest, while nobody reads, and CPU.

The host's service is the real one, over machines that are records alone: a connection to any port gives back what it
gets, or more than its client takes. By hand it is socat, which passes connections on between the same two ends.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import psutil
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect
from temporalio import activity
from websockets.asyncio.client import ClientConnection, connect

from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.status import live_run
from benchmarks.lab import Lab
from cli.stack.up import Stack
from foundation.machine_ids import MACHINE_ID
from guest.contract import GUEST_ADDRESS
from machines.host import MachineHost
from machines.records import MachineRecord, new_epoch
from storage.bucket import Bucket
from worker.service.machine import machine_of
from worker.service.server import HostService
from workflows import steps
from workflows.runs.requests import ProvisionRequest, ProvisionResult

STREAMS = 500
_ROUNDS = 10
_OPENED_AT_ONCE = 20
_MESSAGE = b"m" * 64
_PIECE = b"z" * 32768
_ECHO_PORT, _FLOOD_PORT = 7, 9
# A client of its own host has a window of megabytes otherwise, which the kernel fills before anybody waits.
_WINDOW_BYTES = 32768
_REST_SECONDS = 1.0
_LOOKS_MOST = 60
_MOVED_LITTLE = 2**20
_MIB = 2**20


@dataclass
class _Flow:
    """What has been sent to clients that do not read."""

    bytes: int = 0


class _RecordedMachines(MachineHost):
    """Machines that are there, and have no guest."""

    _EPOCH = new_epoch()

    def record(self, machine_id: str) -> MachineRecord:
        now = datetime.now(UTC)
        return MachineRecord(
            id=machine_id,
            owner_workflow="",
            owner_run="",
            cpus=1,
            memory_bytes=1,
            disk_bytes=1,
            state="running",
            created_at=now,
            deadline=now + timedelta(hours=1),
            epoch=self._EPOCH,
        )

    def is_alive(self, machine_id: str) -> bool:
        return MACHINE_ID.fullmatch(machine_id) is not None

    def connect(self, machine_id: str) -> Any:
        return machine_id


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with Stack(lab.settings, parts=("temporal", "bucket", "server")) as stack:
        server = psutil.Process(stack.pids()["server"])
        yield Sides(lambda: event_loop.run(_ours(lab, server)), lambda: event_loop.run(_by_hand(lab)))


async def _ours(lab: Lab, server: psutil.Process) -> Run:
    flow = _Flow()
    machines = _RecordedMachines(lab.settings)

    @activity.defn(name=steps.PROVISION.name)
    def provision(request: ProvisionRequest) -> ProvisionResult:
        epoch = machines.record(request.machine_id).epoch
        return ProvisionResult(
            vm_name=request.machine_id,
            vm_ip=GUEST_ADDRESS,
            acceleration="tcg",
            image="",
            boot_seconds=0,
            machine_epoch=epoch,
        )

    async def port(client: WebSocket) -> None:
        await machine_of(client, "ports")
        await client.accept()
        with suppress(WebSocketDisconnect):
            while True:
                message = await client.receive_bytes()
                await client.send_bytes(message)
                while client.path_params["port"] == str(_FLOOD_PORT):
                    await client.send_bytes(_PIECE)
                    flow.bytes += len(_PIECE)

    routes = (WebSocketRoute("/v1/machines/{machine_id}/connect/{port}", port),)
    service = HostService(lab.settings, machines, Bucket(lab.settings), routes)
    await service.start()
    try:
        async with live_run(lab, instead={steps.PROVISION.name: provision}) as (_, _http, task_id):
            url = f"ws://127.0.0.1:{lab.settings.api_port}/api/v1/tasks/{task_id}/connect"

            async def opened(number: int) -> _Stream:
                connection = _narrow("127.0.0.1", lab.settings.api_port)
                options: dict[str, Any] = {"compression": None, "max_queue": 1, "ping_interval": None, "proxy": None}
                return _WebSocketStream(await connect(f"{url}/{number}", sock=connection, **options))

            return await _measured(opened, lambda: [server], flow)
    finally:
        await service.stop()


async def _by_hand(lab: Lab) -> Run:
    flow = _Flow()
    ports = {number: _free_port() for number in (_ECHO_PORT, _FLOOD_PORT)}

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, floods: bool) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while message := await reader.readexactly(len(_MESSAGE)):
                writer.write(message)
                await writer.drain()
                while floods:
                    writer.write(_PIECE)
                    await writer.drain()
                    flow.bytes += len(_PIECE)
        writer.close()

    passing: list[subprocess.Popen[bytes]] = []
    servers: list[asyncio.Server] = []
    try:
        for number, port in ports.items():
            path = lab.directory / f"port-{number}"
            path.unlink(missing_ok=True)
            floods = number == _FLOOD_PORT
            servers.append(
                await asyncio.start_unix_server(
                    lambda reader, writer, floods=floods: serve(reader, writer, floods=floods),  # type: ignore[misc]
                    path,
                    backlog=STREAMS,
                )
            )
            passing.append(_socat(port, path))

        async def opened(number: int) -> _Stream:
            connection = await _until_taken(ports[number])
            return _PlainStream(*await asyncio.open_connection(sock=connection, limit=len(_PIECE)))

        def processes() -> list[psutil.Process]:
            parents = [psutil.Process(each.pid) for each in passing]
            return [*parents, *(child for parent in parents for child in parent.children())]

        return await _measured(opened, processes, flow)
    finally:
        for each in passing:
            each.terminate()
            each.wait()
        for server in servers:
            server.close()


class _Stream(Protocol):
    """One client's end."""

    async def say(self) -> None:
        """Send a message."""

    async def hear(self) -> None:
        """Take one message."""

    def leave(self) -> None:
        """Be gone."""


@dataclass
class _WebSocketStream:
    connection: ClientConnection

    async def say(self) -> None:
        await self.connection.send(_MESSAGE)

    async def hear(self) -> None:
        await self.connection.recv()

    def leave(self) -> None:
        self.connection.transport.abort()


@dataclass
class _PlainStream:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self) -> None:
        self.writer.write(_MESSAGE)

    async def hear(self) -> None:
        await self.reader.readexactly(len(_MESSAGE))

    def leave(self) -> None:
        cast("asyncio.Transport", self.writer.transport).abort()


async def _measured(
    opened: Callable[[int], Awaitable[_Stream]], processes: Callable[[], Sequence[psutil.Process]], flow: _Flow
) -> Run:
    before = _memory(processes())
    async with _all(opened, _ECHO_PORT) as streams:
        for stream in streams:
            await stream.say()
        await asyncio.gather(*(stream.hear() for stream in streams))
        idle = _memory(processes())
        cpu = _cpu(processes())
        for _ in range(_ROUNDS):
            for stream in streams:
                await stream.say()
            await asyncio.gather(*(stream.hear() for stream in streams))
        cpu = _cpu(processes()) - cpu
    await asyncio.sleep(_REST_SECONDS)
    rested = _memory(processes())
    async with _all(opened, _FLOOD_PORT) as streams:
        for stream in streams:
            await stream.say()
        await _until_rest(flow)
        stalled = _memory(processes())
    await asyncio.sleep(_REST_SECONDS)
    return Run(
        {
            "idle": (idle - before) / _MIB,
            "stalled": (stalled - min(rested, before)) / _MIB,
            "cpu": 1000 * cpu / (_ROUNDS * STREAMS / 1000),
        }
    )


@asynccontextmanager
async def _all(opened: Callable[[int], Awaitable[_Stream]], port: int) -> AsyncIterator[list[_Stream]]:
    streams: list[_Stream] = []
    try:
        for _ in range(0, STREAMS, _OPENED_AT_ONCE):
            streams += await asyncio.gather(*(opened(port) for _ in range(_OPENED_AT_ONCE)))
        yield streams
    finally:
        for stream in streams:
            stream.leave()


async def _until_rest(flow: _Flow) -> None:
    for _ in range(_LOOKS_MOST):
        held = flow.bytes
        await asyncio.sleep(_REST_SECONDS)
        if held and flow.bytes - held < _MOVED_LITTLE:
            return


def _memory(processes: Sequence[psutil.Process]) -> float:
    """Bytes that these alone have."""
    return float(sum(process.memory_full_info().uss for process in processes))


def _cpu(processes: Sequence[psutil.Process]) -> float:
    """Seconds of all threads. To the nanosecond: of many processes, each has less than a tick of the usual figure."""
    tasks = [task for process in processes for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat")]
    return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9


def _narrow(host: str, port: int) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _WINDOW_BYTES)
    connection.connect((host, port))
    connection.setblocking(False)
    return connection


async def _until_taken(port: int) -> socket.socket:
    while True:
        try:
            return _narrow("127.0.0.1", port)
        except ConnectionRefusedError:
            await asyncio.sleep(_REST_SECONDS / 10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _socat(port: int, path: Path) -> subprocess.Popen[bytes]:
    listen = f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog={STREAMS}"
    return subprocess.Popen(["socat", listen, f"UNIX-CONNECT:{path}"], stderr=subprocess.DEVNULL)


CASE = Case(
    name="host-streams",
    title=f"{STREAMS} streams into machines",
    by_hand="socat, a process for each connection, between the same two ends",
    figures=(
        Figure("idle", f"memory that {STREAMS} streams at rest add to the API server", unit="MiB", limit=100),
        Figure("stalled", f"the same of {STREAMS} clients that read nothing of what is sent", unit="MiB", limit=400),
        Figure("cpu", "CPU of the API server for 1,000 messages there and back", unit="ms"),
    ),
    open=_open,
)
