"""What a host says of the machines that it keeps after a failure: the servers advertise these and no others."""

from __future__ import annotations

import threading

from foundation.errors import TaskyardError
from machines.host import MachineHost
from storage.bucket import ObjectStore
from storage.preserved import PreservedMachine, replace_preserved
from workflows.names import RUNS

# Whoever looks later also writes later, so that what the bucket holds is never older than what was said before.
_saying = threading.Lock()


def say_preserved(name: str, host: MachineHost, store: ObjectStore) -> int:
    """Say which machines of failed runs the host of this name keeps now; gives how many. May raise BucketUnavailable.

    One whose process has ended is not among them: nobody can enter it any more.
    """
    with _saying:
        runs: dict[str, PreservedMachine] = {}
        for record in host.records():
            paused = record.state == "paused"
            if not record.preserved or not (paused or host.is_alive(record.id)):
                continue
            try:
                command = None if paused else host.ssh_command(record.id)
            except TaskyardError:
                continue
            run = RUNS.resource_id(record.owner_workflow) or record.owner_workflow
            runs[run] = PreservedMachine(machine_id=record.id, until=record.deadline, ssh_command=command)
        replace_preserved(store, name, runs)
    return len(runs)
