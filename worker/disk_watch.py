"""Looks after the machines' disks while the worker runs: one that was full and has room again keeps nobody stopped."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable

import structlog

from foundation.errors import TaskyardError
from foundation.settings import Settings
from foundation.units import format_size
from machines.disks.disk_watch import DiskLook
from machines.host import MachineHost
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import append_event
from worker.metrics import WorkerMetrics
from workflows.names import RUNS

LOOK_SECONDS = 5.0
_THOROUGH = 12
_STOPPED = "The disk of this run's host is full: its machine stands still until there is room, and then goes on."
_RESUMED = "The disk of this run's host was full, and its machine stood still; it goes on now."

log = structlog.get_logger("disk")


async def watch_disks(settings: Settings, host: MachineHost, metrics: WorkerMetrics, bucket: Bucket) -> None:
    """Look every few seconds until cancelled. A look that fails is logged and repeated."""
    stopped: list[str] = []
    for count in itertools.count():
        # A disk may have been full between two looks; and whoever stands still is asked until it goes on.
        thoroughly = bool(stopped) or count % _THOROUGH == 0
        try:
            look = await asyncio.to_thread(host.look_after_disks, thoroughly=thoroughly)
        except (TaskyardError, OSError) as error:
            log.warning("the machines' disks could not be looked after", error=str(error))
        else:
            metrics.take_stopped(len(look.stopped))
            await asyncio.to_thread(_report, settings, host, bucket, look, set(stopped))
            stopped = look.stopped
        await asyncio.sleep(LOOK_SECONDS)


def _report(settings: Settings, host: MachineHost, bucket: Bucket, look: DiskLook, before: set[str]) -> None:
    """What has changed since the last look: in the worker's log, and in the logs of the runs."""
    if look.resumed:
        log.info("machines go on: the disk has room again", machines=look.resumed)
        _note_in_runs(host, bucket, look.resumed, _RESUMED)
    fresh = [machine_id for machine_id in look.stopped if machine_id not in before]
    if fresh:
        log.error(
            "the disk is full: machines stand still until there is room; remove what is not needed",
            directory=str(settings.home),
            free=format_size(look.free_bytes),
            machines=look.stopped,
        )
        _note_in_runs(host, bucket, fresh, _STOPPED)


def _note_in_runs(host: MachineHost, bucket: Bucket, machine_ids: Iterable[str], message: str) -> None:
    for machine_id in machine_ids:
        try:
            run = RUNS.resource_id(host.record(machine_id).owner_workflow)
            if run is not None:
                append_event(bucket, TASKS.place(run), {"type": "note", "message": message})
        except (TaskyardError, OSError) as error:
            # A bucket on the same disk takes nothing now; that the machine stood still is said when it goes on.
            log.warning("the logs of the runs could not be written", error=str(error))
            return
