"""Notes of who came into a machine: an event in its run's log for each use, and a line in the worker's own."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict

import structlog

from activities.machine.secrets import RunSecrets
from foundation.errors import Conflict, TaskyardError
from foundation.settings import Settings
from foundation.urls import without_credentials
from machines.records import MachineRecord
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.runlog import append_event
from workflows.names import RUNS

#: The type of such an event; its kind is one of exec, shell, files and port.
ACCESS = "access"

_ONCE_IN_SECONDS = 60.0
_REMEMBERED_MOST = 4096
_MESSAGE_CHARS = 200
# While the bucket is away; what is beyond is told in the worker's log alone.
_PENDING_MOST = 256
_AT_ONCE = 4
_GRACE_SECONDS = 2.0

_log = structlog.get_logger("access")


class AccessLog:
    """Notes uses of this host's machines, of each kind and target once a minute. For the event loop alone.

    The log of a preserved machine's run is closed: its uses stand in the worker's log.
    """

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._secrets = RunSecrets(settings)
        self._bucket = bucket
        self._noted: OrderedDict[tuple[str, str, str], float] = OrderedDict()
        self._pending: set[asyncio.Task[None]] = set()
        self._writers = asyncio.Semaphore(_AT_ONCE)

    def note(self, record: MachineRecord, kind: str, message: str) -> None:
        """Note a use of the machine; returns at once. ``message`` is a sentence, in which secrets are taken out."""
        message = " ".join(message.split())
        if not self._is_new(record.id, kind, message) or len(self._pending) >= _PENDING_MOST:
            return
        task = asyncio.create_task(self._write(record, kind, message))
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    async def close(self) -> None:
        """Wait a moment for what is being written."""
        if self._pending:
            await asyncio.wait(self._pending, timeout=_GRACE_SECONDS)
        for task in self._pending:
            task.cancel()

    def _is_new(self, machine_id: str, kind: str, message: str) -> bool:
        key, now = (machine_id, kind, message[:_MESSAGE_CHARS]), time.monotonic()
        if now - self._noted.get(key, -_ONCE_IN_SECONDS) < _ONCE_IN_SECONDS:
            return False
        self._noted[key] = now
        self._noted.move_to_end(key)
        while len(self._noted) > _REMEMBERED_MOST:
            self._noted.popitem(last=False)
        return True

    async def _write(self, record: MachineRecord, kind: str, message: str) -> None:
        async with self._writers:
            try:
                await asyncio.to_thread(self._append, record, kind, message)
            except (TaskyardError, OSError) as error:
                _log.warning("an access could not be written to the run's log", machine=record.id, error=str(error))

    def _append(self, record: MachineRecord, kind: str, message: str) -> None:
        redactor = self._secrets.redactor(record.id)
        event = redactor.redact_json({"type": ACCESS, "message": without_credentials(message), "kind": kind})
        # Cut last: half of a secret would not be found.
        event["message"] = _shortened(event["message"])
        _log.info("access", machine=record.id, kind=kind, message=event["message"])
        task_id = RUNS.resource_id(record.owner_workflow)
        if not task_id:
            return
        try:
            append_event(self._bucket, TASKS.place(task_id), event)
        except Conflict:
            # The log is closed: its run has ended, and the machine is kept.
            return


def _shortened(message: str) -> str:
    return message if len(message) <= _MESSAGE_CHARS else message[: _MESSAGE_CHARS - 1] + "…"
