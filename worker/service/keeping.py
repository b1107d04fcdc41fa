"""Keeps the output of processes that is to outlive their machines: a thread for each, for as long as the machine is."""

from __future__ import annotations

import threading

import structlog

from activities.machine.outputs import KeptOutputs
from activities.machine.secrets import RunSecrets
from foundation.errors import MachineNotFound, NotFound, RateLimitExceeded, TaskyardError
from foundation.service.processes import ProcessRecord
from foundation.settings import Settings
from machines.host import MachineHost
from machines.records import MachineRecord
from storage.bucket import Bucket
from storage.layout import TASKS, Place
from storage.processes.outputs import kept_record, kept_records, write_record
from workflows.names import RUNS

#: Processes of one machine whose output is kept at once: each takes a channel, of which a machine has 64.
KEPT_MOST = 16
_AGAIN_SECONDS = 1.0
_AGAIN_SECONDS_MOST = 30.0
_END_SECONDS = 5.0

_log = structlog.get_logger("outputs")


class OutputKeeper:
    """Follows the processes of this host's machines whose output is kept. Thread-safe."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket) -> None:
        self._host = host
        self._bucket = bucket
        self._secrets = RunSecrets(settings)
        self._outputs = KeptOutputs(settings, host, bucket)
        self._leaving = threading.Event()
        self._lock = threading.Lock()
        self._threads: dict[tuple[str, str], threading.Thread] = {}

    def start(self) -> None:
        """Go on with what a worker of before kept; returns at once."""
        threading.Thread(target=self._go_on, name="outputs", daemon=True).start()

    def stop(self) -> None:
        """Leave; whoever comes next goes on where the bucket ends. Waits a moment."""
        self._leaving.set()
        with self._lock:
            threads = list(self._threads.values())
        for thread in threads:
            thread.join(_END_SECONDS)

    def check(self, record: MachineRecord, key: str) -> None:
        """Return when the output of one more process can be kept. Raises NotFound, RateLimitExceeded."""
        if _place(record) is None:
            raise NotFound("Nothing of this machine is kept: it is no run's")
        with self._lock:
            others = [machine_id for machine_id, other in self._threads if other != key]
        if others.count(record.id) >= KEPT_MOST:
            raise RateLimitExceeded(
                f"The output of {KEPT_MOST} processes of this machine is kept at once; wait until one has ended",
                limit=KEPT_MOST,
            )

    def keep(self, record: MachineRecord, process: ProcessRecord) -> None:
        """Keep the output of a process that was started. Raises BucketUnavailable; may be called again."""
        place = _place(record)
        if place is None:
            return
        known = kept_record(self._bucket, place, process.key)
        if known is None:
            # First the word that there is something to be kept, which a worker that comes next reads.
            write_record(self._bucket, place, process.model_copy(update={"state": "running"}))
        if known is None or known.state == "running":
            self._begin(record.id, place, process.key)

    def _go_on(self) -> None:
        records: list[MachineRecord] = list(self._host.records())
        pause = _AGAIN_SECONDS
        while records and not self._leaving.is_set():
            record = records[-1]
            try:
                place = _place(record)
                if place is not None:
                    for process in kept_records(self._bucket, place):
                        if process.state == "running":
                            self._begin(record.id, place, process.key)
                records.pop()
            except TaskyardError as error:
                _log.warning("what is kept could not be read", machine=record.id, error=error.message)
                self._leaving.wait(pause)
                pause = min(2 * pause, _AGAIN_SECONDS_MOST)

    def _begin(self, machine_id: str, place: Place, key: str) -> None:
        with self._lock:
            if (machine_id, key) in self._threads or self._leaving.is_set():
                return
            thread = threading.Thread(target=self._follow, args=(machine_id, place, key), name="output", daemon=True)
            self._threads[machine_id, key] = thread
            thread.start()

    def _follow(self, machine_id: str, place: Place, key: str) -> None:
        pause = _AGAIN_SECONDS
        try:
            while not self._leaving.is_set():
                try:
                    redactor = self._secrets.redactor(machine_id)
                    self._outputs.store(machine_id, place, key, redactor, follow=True, leaves=self._leaving.is_set)
                    break
                except (MachineNotFound, NotFound):
                    return
                except (TaskyardError, OSError) as error:
                    # Paused, silent, or the bucket is away: as long as the machine has a record, it may come back.
                    if self._is_gone(machine_id):
                        return
                    _log.info("output is not kept for a while", machine=machine_id, process=key, error=str(error))
                    self._leaving.wait(pause)
                    pause = min(2 * pause, _AGAIN_SECONDS_MOST)
        finally:
            with self._lock:
                self._threads.pop((machine_id, key), None)

    def _is_gone(self, machine_id: str) -> bool:
        try:
            return self._host.record(machine_id).state == "destroying"
        except MachineNotFound:
            return True
        except TaskyardError:
            return False


def _place(record: MachineRecord) -> Place | None:
    """Where what is kept of the machine goes; None when nobody's run has it."""
    task_id = RUNS.resource_id(record.owner_workflow)
    return TASKS.place(task_id) if task_id else None
