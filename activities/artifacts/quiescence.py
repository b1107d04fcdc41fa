"""A machine's workspace disk at rest, so that it can be read from its host while the machine lives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from foundation.errors import GuestUnreachable, MachineError, MachineLost
from guest.programs import shell_command
from machines.host import MachineHost

_FREEZE_SECONDS = 60

log = structlog.get_logger("artifacts")


@contextmanager
def quiesced(host: MachineHost, machine_id: str, notes: list[str]) -> Iterator[bool]:
    """The machine's workspace disk at rest for the time of the block; True when it is dirty all the same.

    A guest that answers is frozen and thawed again; one that does not is killed, since nothing else would stop it.
    """
    shell = None
    if host.is_alive(machine_id):
        try:
            shell = host.connect(machine_id)
            frozen = shell.run(shell_command("freeze-workspace"), timeout=_FREEZE_SECONDS, check=False)
        except GuestUnreachable as silent:
            notes.append(f"The guest did not answer ({silent.message}); its machine was stopped to read its disk.")
            host.kill(machine_id)
            shell = None
        except MachineLost:
            shell = None
    if shell is None:
        yield True
        return
    try:
        if frozen.exit_code:
            notes.append("The guest's workspace could not be frozen; a copy of it was read and mended.")
        yield frozen.exit_code != 0
    finally:
        try:
            shell.run(shell_command("thaw-workspace"), timeout=_FREEZE_SECONDS, check=False)
        except MachineError as error:
            log.warning("the workspace could not be thawed", machine=machine_id, error=error.message)
