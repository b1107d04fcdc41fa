"""The worker process of a VM host: polls the shared queue and its own two, serves gateway and machines, sweeps."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import structlog
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from activities.machine.lease import agent_queue, host_queue
from foundation.engine import connect_engine
from foundation.errors import BucketUnavailable
from foundation.settings import Settings
from machines.host import MachineHost
from machines.ledger import Capacity
from storage.bucket import Bucket
from storage.live.host import HostLogs
from worker.disk_watch import watch_disks
from worker.egress.egress import Egress
from worker.gateway.model_gateway import Gateway
from worker.metrics import WorkerMetrics
from worker.pool import kept_pool
from worker.registry import WORKFLOWS, implementations, placed
from worker.retention import expire_daily
from worker.room import published_room
from worker.service.server import HostService
from worker.sweeper import sweep_forever

# Steps that are no machine's own: looks for room, and the ends of runs.
SHARED_STEPS = 32
# Beside one follower and two other steps for each machine that the host holds: attempts that nobody waits for any more.
_SPARE_STEPS = 16
_LEAST_MEMORY_BYTES = 512 * 2**20
_GRACE = timedelta(seconds=10)
# The sandbox would be a quarter of what a run costs the worker. The tests run the workflow in it, where it refuses
# clocks, chance and input; recorded histories are replayed both in it and without it.
_RUNNER = UnsandboxedWorkflowRunner()
_HEARTBEAT_THROTTLE = timedelta(seconds=2)
_BUILD = f"taskyard-{version('taskyard')}"
_RETRY_SECONDS = 1.0
_RETRY_SECONDS_MOST = 10.0

log = structlog.get_logger("worker")


async def run(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT. Machines are left alone at the end: the next worker goes on with their runs."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with AsyncExitStack() as stack:
        bucket = await _bucket(settings, stopping)
        client = await _client(settings, stopping)
        if bucket is None or client is None:
            return
        logs = stack.enter_context(HostLogs(bucket, settings.home / "live-logs"))
        await asyncio.to_thread(logs.forget)
        host = MachineHost(settings)
        metrics = WorkerMetrics()
        gateway = Gateway(settings, metrics)
        await gateway.start()
        stack.push_async_callback(gateway.stop)
        egress = Egress(settings, metrics)
        await egress.start()
        stack.push_async_callback(egress.stop)
        service = HostService(settings, host, bucket)
        await service.start()
        stack.push_async_callback(service.stop)
        for poller in _pollers(settings, client, host, bucket, gateway, egress, metrics):
            await stack.enter_async_context(poller)
        sweeper = asyncio.create_task(sweep_forever(host, client))
        stack.callback(sweeper.cancel)
        disks = asyncio.create_task(watch_disks(settings, host, metrics, bucket))
        stack.callback(disks.cancel)
        expiring = asyncio.create_task(expire_daily(settings))
        stack.callback(expiring.cancel)
        stack.enter_context(metrics.serving(settings.worker_metrics_port, host))
        await stack.enter_async_context(published_room(settings.host_name, host, bucket, service.address))
        await stack.enter_async_context(kept_pool(settings, host))
        log.info("ready", host=settings.host_name, queue=host_queue(settings), temporal=settings.temporal_target)
        if settings.model_is_scripted:
            log.warning("the model is scripted: no ANTHROPIC_API_KEY is set")
        await stopping.wait()
        log.info("stopping; running machines are left to the next worker")


def _pollers(
    settings: Settings,
    client: Client,
    host: MachineHost,
    bucket: Bucket,
    gateway: Gateway,
    egress: Egress,
    metrics: WorkerMetrics,
) -> list[AbstractAsyncContextManager[None]]:
    """One for each queue: what any host can do, what only the host of the lease can, and the agents that it follows."""
    work = placed(implementations(settings, client, host, bucket, gateway, egress, metrics))
    most = most_machines(host.room()[0])
    return [
        polling(client, settings.task_queue, SHARED_STEPS, work.shared, list(WORKFLOWS.values())),
        polling(client, host_queue(settings), 2 * most + _SPARE_STEPS, work.host),
        polling(client, agent_queue(settings), most + _SPARE_STEPS, work.agents),
    ]


def most_machines(capacity: Capacity) -> int:
    """How many machines, however small, fit on a host at once."""
    return max(1, min(capacity.cpus, capacity.memory_bytes // _LEAST_MEMORY_BYTES))


@asynccontextmanager
async def polling(
    client: Client,
    queue: str,
    most: int,
    activities: Sequence[Callable[..., Any]],
    workflows: Sequence[type] = (),
) -> AsyncIterator[None]:
    """Poll one queue while the block runs, for ``most`` steps at once. Each has a thread of the queue's own."""
    with ThreadPoolExecutor(most, thread_name_prefix=queue) as threads:
        async with Worker(
            client,
            task_queue=queue,
            workflows=workflows,
            workflow_runner=_RUNNER,
            activities=activities,
            activity_executor=threads,
            max_concurrent_activities=most,
            max_concurrent_local_activities=most,
            graceful_shutdown_timeout=_GRACE,
            # Without one, the SDK hashes every loaded module at each start, on the event loop.
            build_id=_BUILD,
            # Live progress and cancellation ride on heartbeats, so they may not be held back for long.
            max_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
            default_heartbeat_throttle_interval=_HEARTBEAT_THROTTLE,
        ):
            yield


async def _bucket(settings: Settings, stopping: asyncio.Event) -> Bucket | None:
    """The bucket, made if it is not there; waits for an S3 service that does not answer yet."""
    bucket = Bucket(settings)
    delay = _RETRY_SECONDS
    while not stopping.is_set():
        try:
            await asyncio.to_thread(bucket.ensure)
        except BucketUnavailable as error:
            log.warning("waiting for the bucket", error=error.message)
            delay = await _pause(stopping, delay)
        else:
            return bucket
    return None


async def _client(settings: Settings, stopping: asyncio.Event) -> Client | None:
    delay = _RETRY_SECONDS
    while not stopping.is_set():
        try:
            return await connect_engine(settings)
        except RuntimeError as error:
            log.warning("waiting for Temporal", address=settings.temporal_target, error=str(error))
            delay = await _pause(stopping, delay)
    return None


async def _pause(stopping: asyncio.Event, seconds: float) -> float:
    """Wait, or stop waiting when the worker is to stop. Returns the next wait's length."""
    try:
        await asyncio.wait_for(stopping.wait(), seconds)
    except TimeoutError:
        return min(seconds * 2, _RETRY_SECONDS_MOST)
    return 0.0
