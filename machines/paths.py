"""Where the files and sockets of one machine are, and whose a socket is."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from foundation.machine_ids import MACHINE_ID
from foundation.settings import Settings

OVERLAY = "root.qcow2"
WORKSPACE = "workspace.raw"
CONSOLE = "console.log"
OUTPUT = "qemu.log"
PID_FILE = "qemu.pid"
MEMORY = "memory.state"
ENDING = "ending"
PROCESS_NAME = "process"

_SOCKET_NAME = re.compile(rf"({MACHINE_ID.pattern})\.(?:qmp|identity)")


@dataclass(frozen=True)
class MachinePaths:
    """Where the files and sockets of one machine are."""

    directory: Path
    sockets: Path
    machine_id: str

    @property
    def overlay(self) -> Path:
        return self.directory / OVERLAY

    @property
    def workspace(self) -> Path:
        return self.directory / WORKSPACE

    @property
    def console(self) -> Path:
        return self.directory / CONSOLE

    @property
    def output(self) -> Path:
        return self.directory / OUTPUT

    @property
    def memory(self) -> Path:
        """What a paused machine remembers."""
        return self.directory / MEMORY

    @property
    def process_name(self) -> Path:
        """Holds the name that the machine's process was started with, when that is not the machine's own."""
        return self.directory / PROCESS_NAME

    @property
    def ending(self) -> Path:
        """There from when somebody destroys the machine: whoever is starting it gives up."""
        return self.directory / ENDING

    @property
    def pid_file(self) -> Path:
        return self.directory / PID_FILE

    @property
    def qmp(self) -> Path:
        return self.sockets / f"{self.machine_id}.qmp"

    @property
    def identity(self) -> Path:
        return self.sockets / f"{self.machine_id}.identity"


def machine_paths(settings: Settings, machine_id: str) -> MachinePaths:
    """The paths of a machine of this home."""
    # Resolved: the paths are arguments of a QEMU that runs elsewhere, and must be the same for every caller.
    return MachinePaths(settings.machines.resolve() / machine_id, settings.sockets.absolute(), machine_id)


def volatile_file(settings: Settings, machine_id: str) -> Path:
    """A file beside the machine that must not reach a disk; below home where the host has no file system in memory."""
    memory = Path("/dev/shm")  # noqa: S108 -- whoever makes the file makes it for its user alone
    if not os.access(memory, os.W_OK | os.X_OK):
        return settings.machines / machine_id / "volatile"
    digest = hashlib.sha256(os.fsencode(settings.machines.resolve())).hexdigest()[:12]
    return memory / f"taskyard-{os.getuid()}-{digest}-{machine_id}"


def machine_of(machines: Path, process_name: str) -> str:
    """The machine whose process was started under that name: its own, or that of the pool's member that it was.

    ``machines`` is the directory of all of them.
    """
    if (machines / process_name).is_dir():
        return process_name
    for path in machines.glob(f"*/{PROCESS_NAME}"):
        with suppress(OSError):
            if path.read_text() == process_name:
                return path.parent.name
    return process_name


def socket_owner(name: str) -> str | None:
    """The machine id in a socket's file name; None for a socket that is no machine's."""
    match = _SOCKET_NAME.fullmatch(name)
    return match[1] if match else None
