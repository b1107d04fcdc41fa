"""What a process of a guest is started with: the files laid for it, and its unit."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from foundation.service.processes import Limits, ProcessSpec
from guest.contract import (
    AGENT_USER,
    EXIT_RECORD,
    GUEST_ENVIRONMENT,
    PROCESS_ENVIRONMENT,
    PROCESS_PROGRAMS,
    SPEC_DIGEST,
)
from guest.programs import perl_command, process_program
from machines.processes.places import Places

GRACE_SECONDS = 30

# Processes of one machine, those that have ended among them; their files stay as long as the machine.
PROCESSES_MOST = 1024
#: Bytes that a process may write on stdout and stderr together: then it is stopped, as the guest's disk holds them.
OUTPUT_BYTES_MOST = 4 * 2**30

# By how much the unit's own clock is behind that of the process's runner, for a runner that is gone.
_BACKSTOP_SECONDS = 60
_USER_SHELL = ""
_NO_DIGEST = "-"


@dataclass(frozen=True)
class LaidFile:
    """A file of the guest: its absolute ``place``, its content, its mode and who owns it."""

    place: str
    data: bytes
    mode: int = 0o644
    owner: str = "root"


@dataclass(frozen=True)
class Launch:
    """What a process is started with. ``inbox`` is what its stdin begins with, ``open_stdin`` whether more may come.

    ``directory`` empty: the workspace if there is one, else the user's home. ``output_bytes_most`` 0: its follower
    watches over that. With ``digest``, another start under the same key is a conflict unless it has the same.
    """

    command: Sequence[str]
    directory: str = ""
    user: str = AGENT_USER
    environment: Mapping[str, str] = field(default_factory=dict)
    inbox: bytes = b""
    open_stdin: bool = True
    limits: Limits = field(default_factory=Limits)
    output_bytes_most: int = 0
    processes_most: int = 0
    digest: str = _NO_DIGEST
    files: Sequence[LaidFile] = ()
    # To the millisecond, as the guest keeps it: its record says the same as the answer to the start.
    began: datetime = field(
        default_factory=lambda: datetime.fromtimestamp(round(datetime.now(UTC).timestamp(), 3), UTC)
    )


def launch_of(spec: ProcessSpec) -> Launch:
    """What the spec asks for, within the bounds that hold for every process that a user starts."""
    command = spec.argv if spec.argv is not None else [_USER_SHELL, "-c", spec.shell or ""]
    return Launch(
        command=command,
        directory=spec.directory or "",
        user=spec.user,
        environment=spec.environment,
        open_stdin=spec.stdin,
        limits=spec.limits,
        output_bytes_most=OUTPUT_BYTES_MOST,
        processes_most=PROCESSES_MOST,
        # What becomes of its output makes it no other process.
        digest=hashlib.sha256(spec.model_dump_json(exclude={"keep"}).encode()).hexdigest(),
    )


def start_command(places: Places, launch: Launch) -> str:
    """The command that starts it; its stdin is to be ``start_files``."""
    words = [
        *(places.directory, places.volatile, places.cgroup, launch.digest, launch.user, str(launch.processes_most)),
        *_unit(places, launch),
    ]
    return f"{perl_command('start-process')} {shlex.join(words)}"


def start_files(places: Places, launch: Launch) -> bytes:
    """Every file that the process's runner reads, each after a line with its mode, owner, size and place."""
    environment = "".join(f"{name}={value}\0" for name, value in launch.environment.items())
    directory, volatile = places.directory, places.volatile
    files = [
        LaidFile(f"{directory}/workdir", launch.directory.encode(), 0o600),
        LaidFile(f"{directory}/inbox", launch.inbox, 0o600),
        LaidFile(f"{directory}/delivered", b"", 0o600),
        LaidFile(f"{directory}/stdout", b"", 0o600),
        LaidFile(f"{directory}/stderr", b"", 0o600),
        LaidFile(f"{directory}/began", f"{launch.began.timestamp():.3f}\n".encode()),
        *(LaidFile(f"{places.programs}/{name}", process_program(name), 0o755) for name in PROCESS_PROGRAMS),
        # Not empty, so that a full tmpfs has room for the record.
        LaidFile(f"{volatile}/{EXIT_RECORD}", b"\n"),
        LaidFile(f"{volatile}/{PROCESS_ENVIRONMENT}", environment.encode(), 0o600),
        LaidFile(f"{volatile}/{SPEC_DIGEST}", launch.digest.encode(), 0o600),
        *launch.files,
    ]
    if not launch.open_stdin:
        files.append(LaidFile(f"{directory}/closed", b""))
    # Last: with it, all is there.
    files.append(LaidFile(f"{directory}/argv", "".join(f"{word}\0" for word in launch.command).encode(), 0o600))
    return b"".join(
        f"{file.mode:o} {file.owner} {len(file.data)} {file.place}\n".encode() + file.data for file in files
    )


def _unit(places: Places, launch: Launch) -> list[str]:
    limits = launch.limits
    properties = {
        "TimeoutStopSec": GRACE_SECONDS,
        "OOMPolicy": "continue",
        "IgnoreSIGPIPE": "no",
        # What holds for every program of the guest. What is set for this one comes later, and so wins.
        "EnvironmentFile": f"-{GUEST_ENVIRONMENT}",
        "ExecStopPost": f"{places.programs}/record-exit {places.directory} {places.volatile}",
    }
    if limits.cpu_seconds is not None:
        properties["LimitCPU"] = f"{limits.cpu_seconds}:{limits.cpu_seconds + 1}"
    if limits.open_files is not None:
        properties["LimitNOFILE"] = limits.open_files
    if limits.memory_bytes is not None:
        properties |= {"MemoryMax": limits.memory_bytes, "MemorySwapMax": 0}
    if limits.processes is not None:
        # And the runner.
        properties["TasksMax"] = limits.processes + 1
    if limits.timeout is not None:
        properties["RuntimeMaxSec"] = f"{limits.timeout + _BACKSTOP_SECONDS:.3f}"
    return [
        "systemd-run",
        f"--unit={places.unit}.service",
        f"--description=Process {places.key}",
        "--collect",
        "--service-type=exec",
        *(f"--property={name}={value}" for name, value in properties.items()),
        f"{places.programs}/run-process",
        *(places.directory, places.volatile, places.cgroup, launch.user),
        f"{limits.timeout or 0:.3f}",
        str(launch.output_bytes_most),
    ]
