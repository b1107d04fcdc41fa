"""Output of processes that is to outlive their machine: followed in the guest, and stored in the bucket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import structlog

from foundation.errors import TaskyardError
from foundation.settings import Settings
from foundation.units import parse_size
from machines.host import MachineHost
from machines.processes.detached import DetachedProcess
from machines.processes.following import Ended
from storage.bucket import Bucket
from storage.layout import Place
from storage.processes.outputs import OutputWriter, kept_records, write_record
from storage.redaction import Redactor

# All that the processes of one machine have written since it was last stored, before the machine goes.
_SETTLE_SECONDS = 60.0

_log = structlog.get_logger("outputs")


class KeptOutputs:
    """Stores the output of processes whose caller wants it kept."""

    def __init__(self, settings: Settings, host: MachineHost, bucket: Bucket) -> None:
        self._host = host
        self._bucket = bucket
        self._most = parse_size(settings.log_limit)

    def store(
        self,
        machine_id: str,
        place: Place,
        key: str,
        redactor: Redactor,
        *,
        follow: bool,
        leaves: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Store what the process writes, to its end or, without ``follow``, as far as it has written.

        False when it was left before, as ``leaves`` said. Raises what the guest's connection and the bucket raise,
        after which it can be called again, and NotFound when the machine has no such process.
        """
        process = DetachedProcess(self._host.connect(machine_id), key)
        process.record()
        writer = OutputWriter(self._bucket, place, key, redactor, self._most)
        news = threading.Event()
        following = process.following(writer.resume(), news, follow=follow)
        try:
            while not leaves():
                # Before the look: what comes after it wakes the wait below.
                news.clear()
                pieces = following.read()
                for piece in pieces:
                    if isinstance(piece, Ended):
                        record = process.record()
                        if record.state == "running":
                            # It was not followed to its end, and whoever does so goes on here.
                            writer.pause()
                        else:
                            writer.flush(last=True)
                            write_record(self._bucket, place, record)
                        return True
                    writer.feed(piece.stream, piece.offset, piece.data)
                writer.flush()
                if not pieces:
                    news.wait(following.tick())
        finally:
            following.close()
        return False

    def settle(self, machine_id: str, place: Place, redactor: Redactor) -> None:
        """Store what the machine's processes have written so far, as it is about to go. Never fails."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        try:
            running = [each.key for each in kept_records(self._bucket, place) if each.state == "running"]
            for key in running if self._host.is_alive(machine_id) else ():
                self.store(machine_id, place, key, redactor, follow=False, leaves=lambda: time.monotonic() > deadline)
        except TaskyardError as error:
            _log.warning("output could not be kept", machine=machine_id, error=error.message)
