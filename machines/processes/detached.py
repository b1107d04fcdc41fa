"""Detached processes of a guest: each is started once for its key and lives until it ends, whoever started it.

A process's argv, inbox, stdout and stderr are files of the guest's disk; its environment and its exit record are files
in the guest's memory, where a full disk cannot keep a record from being written. Its unit keeps it together: what it
has started ends with it, and takes its signals.

Every process that was accepted ends with a record: one that it exited, or one that it is ``lost``, when there is a unit
no more and no record that can be read.

Output lies on the guest's disk. What of it is to outlive the machine is followed, and written with its offsets to where
it is to be, as the agent's follower does with the run log: nothing here needs to know of that.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from signal import Signals

from foundation.errors import (
    Conflict,
    GuestUnreachable,
    InsufficientResources,
    InvalidParameter,
    MachineError,
    NotFound,
    SessionClosed,
)
from foundation.service.processes import KEY, ProcessRecord, ProcessSpec
from guest.contract import (
    AGENT_KEY,
    INBOX_CLOSED,
    INBOX_GAP,
    NO_PROCESS,
    NO_SUCH_USER,
    START_LOCK,
    STARTED_AS_ANOTHER,
    STARTED_BEFORE,
    STOPPED,
    TOO_MANY_PROCESSES,
)
from guest.programs import perl_command
from machines.processes.following import Chunk, Ended, ExitRecord, Following, Stream, follow
from machines.processes.launch import GRACE_SECONDS, PROCESSES_MOST, Launch, launch_of, start_command, start_files
from machines.processes.places import list_arguments, places_of
from machines.ssh import GuestShell

#: What is fed at once at most.
FEED_BYTES_MOST = 4 * 2**20

# An emulated guest takes a second of its processors for each of many that are started at once.
_START_SECONDS = 180
_LIST_SECONDS = 120
_STOP_SECONDS = GRACE_SECONDS + 15
_OFFSET_MOST = 2**53
_EPOCH = datetime.fromtimestamp(0, UTC)
_LINE = re.compile(
    rf"(?P<key>{KEY.pattern})\t(?P<alive>[01])\t(?P<began>-|[0-9]{{1,12}}(?:\.[0-9]{{1,6}})?)\t(?P<out>\d{{1,18}})\t"
    r"(?P<err>\d{1,18})\t(?P<ended>[^\t\n]{1,64})\t(?P<codes>[^\t\n]{1,64})"
)


class DetachedProcess:
    """One process of a guest, over the guest's shell. Every method may be called again after any failure.

    Each raises GuestUnreachable or MachineLost when the connection breaks, and ValueError for what is no key.
    """

    def __init__(self, shell: GuestShell, key: str) -> None:
        self.places = places_of(key)
        self._shell = shell

    def start(self, launch: Launch) -> bool:
        """Start it unless it was started or stopped before; whether it was not.

        Raises Conflict when another one was started under the key, InvalidParameter when the guest has no such user,
        InsufficientResources when the machine has as many processes as it keeps.
        """
        command, files = start_command(self.places, launch), start_files(self.places, launch)
        done = self._shell.run(command, input=files, timeout=_START_SECONDS, check=False)
        match done.exit_code:
            case 0:
                return True
            case code if code == STARTED_BEFORE:
                return False
            case code if code == STARTED_AS_ANOTHER:
                raise Conflict(
                    f"Another process was started with the key '{self.places.key}'; choose a key of its own for each"
                )
            case code if code == TOO_MANY_PROCESSES:
                raise InsufficientResources(
                    f"The machine has {PROCESSES_MOST} processes, those that have ended among them, and keeps no more"
                )
            case code if code == NO_SUCH_USER:
                raise InvalidParameter(
                    f"The machine has no user '{launch.user}'; name one that it has, or give a number", field="user"
                )
        raise MachineError(f"The process could not be started: {_said(done.stderr)}", exit_code=done.exit_code)

    def deliver(self, message_id: str, data: bytes) -> None:
        """Append to its stdin, once for each id, whole or not at all. Raises SessionClosed."""
        self._deliver([message_id, self.places.volatile, str(len(data))], data)

    def feed(self, offset: int, data: bytes) -> int:
        """Have ``data`` be the bytes of its stdin from ``offset`` on; those that it has already are left out.

        How many bytes it has then. Raises Conflict when bytes before the offset have not come, SessionClosed when it
        takes no more. At most ``FEED_BYTES_MOST`` at once.
        """
        if not 0 <= offset <= _OFFSET_MOST:
            raise InvalidParameter("offset is a number of bytes from the beginning", field="offset")
        if len(data) > FEED_BYTES_MOST:
            raise InvalidParameter(f"At most {FEED_BYTES_MOST} bytes are taken at once", field="body")
        done = self._deliver(["", self.places.volatile, str(len(data)), str(offset)], data)
        return int(done) if re.fullmatch(rb"[0-9]{1,18}", done) else offset + len(data)

    def close(self) -> None:
        """End its stdin after what was delivered so far."""
        self._shell.run(shlex.join([f"{self.places.programs}/close", self.places.directory]))

    def signal(self, name: str) -> None:
        """Send a signal, named as ``TERM``, to all of its processes; KILL ends the whole group, whatever it does.

        Raises InvalidParameter for a signal that there is not, Conflict when it has ended.
        """
        number = _signals().get(name.removeprefix("SIG"))
        if number is None:
            raise InvalidParameter(f"There is no signal '{name[:20]}'; use a name such as TERM", field="signal")
        command = f"{perl_command('signal-process')} {shlex.join([self.places.cgroup, str(number)])}"
        done = self._shell.run(command, check=False)
        if done.exit_code == NO_PROCESS:
            raise Conflict(f"Process '{self.places.key}' has ended: it takes no signals")
        if done.exit_code != 0:
            raise MachineError(f"The signal could not be sent: {_said(done.stderr)}")

    def stop(self, *, force: bool) -> bool:
        """TERM to all of its processes, KILL to those left after the grace period; with ``force`` at once.

        False when some are left all the same; what they wrote is on the disks then. Takes a minute at most. One that
        was not started yet never is.
        """
        unit, cgroup, volatile = self.places.unit, self.places.cgroup, self.places.volatile
        kill = f"systemctl kill --signal=KILL {unit}\n" if force else ""
        # A frozen group takes no TERM, but every group takes the kernel's own kill. The lock is that of ``start``.
        script = (
            f"mkdir -p {volatile}; ( flock -w 5 9; : >{volatile}/{STOPPED} ) 9>{volatile}/{START_LOCK}\n"
            f"{kill}timeout {GRACE_SECONDS + 5} systemctl stop {unit}\n"
            f"[ -d {cgroup} ] || exit 0\n"
            f"echo 1 >{cgroup}/cgroup.kill; sleep 2\n"
            f"[ -d {cgroup} ] || exit 0\n"
            "timeout 5 sync; exit 9\n"
        )
        return self._shell.run(script, timeout=_STOP_SECONDS, check=False).exit_code == 0

    def follow(self, offsets: Mapping[Stream, int]) -> Iterator[Chunk | Ended | None]:
        """What it writes from the given offsets on, as it writes it, and at last how it ended; see ``following``."""
        return follow(self._shell, self.places, offsets)

    def following(self, offsets: Mapping[Stream, int], news: threading.Event, *, follow: bool = True) -> Following:
        """The same for a caller that waits in its own way."""
        return Following(self._shell, self.places, offsets, news, follow=follow)

    def record(self) -> ProcessRecord:
        """What is known of it. Raises NotFound."""
        found = _records(self._shell, [self.places.key])
        if not found:
            raise NotFound(f"The machine has no process with the key '{self.places.key}'")
        return found[0]

    def wait(self, seconds: float) -> ProcessRecord:
        """Its record once it has ended, or after ``seconds``. Raises NotFound."""
        end = time.monotonic() + seconds
        record = self.record()
        if record.state != "running" or seconds <= 0:
            return record
        for piece in self.follow({}):
            if isinstance(piece, Ended) or time.monotonic() >= end:
                break
        return self.record()

    def _deliver(self, words: list[str], data: bytes) -> bytes:
        command = shlex.join([f"{self.places.programs}/deliver", self.places.directory, *words])
        done = self._shell.run(command, input=data, check=False)
        if done.exit_code == INBOX_CLOSED:
            raise SessionClosed(f"The stdin of process '{self.places.key}' takes no more; nothing was delivered")
        if done.exit_code == INBOX_GAP:
            raise Conflict("Bytes before this offset have not come yet; feed those first")
        if done.exit_code != 0:
            raise GuestUnreachable(f"Nothing could be delivered to '{self.places.key}': {_said(done.stderr)}")
        return done.stdout


class DetachedProcesses:
    """All processes of a guest."""

    def __init__(self, shell: GuestShell) -> None:
        self._shell = shell

    def start(self, spec: ProcessSpec) -> ProcessRecord:
        """Start what the spec asks for, once for its key; what is known of it then.

        Raises as ``DetachedProcess.start``, and Conflict for the key of the agent.
        """
        if spec.key == AGENT_KEY:
            raise Conflict(f"The key '{AGENT_KEY}' is that of the run's own agent; choose another")
        if spec.terminal is not None:
            raise InvalidParameter("A process that outlives its caller has no terminal", field="terminal")
        process = self.process(spec.key)
        launch = launch_of(spec)
        if not process.start(launch):
            return process.record()
        return ProcessRecord(key=spec.key, state="running", started_at=launch.began)

    def process(self, key: str) -> DetachedProcess:
        """The process with the key, whether there is one or not."""
        return DetachedProcess(self._shell, key)

    def list(self) -> list[ProcessRecord]:
        """What is known of each that was started, the agent among them, oldest first."""
        return sorted(_records(self._shell), key=lambda each: (each.started_at or _EPOCH, each.key))


def _records(shell: GuestShell, keys: list[str] | None = None) -> list[ProcessRecord]:
    arguments = list_arguments(keys)
    done = shell.run(f"{perl_command('list-processes')} {shlex.join(arguments)}", timeout=_LIST_SECONDS)
    lines = done.stdout.decode(errors="replace").splitlines()[: PROCESSES_MOST + 2]
    return [_record_of(found) for line in lines if (found := _LINE.fullmatch(line))]


def _record_of(found: re.Match[str]) -> ProcessRecord:
    record = ExitRecord()
    record.take(f"{found['ended']}\n{found['codes']}\n".encode())
    began = None if found["began"] == "-" else datetime.fromtimestamp(float(found["began"]), UTC)
    known = ProcessRecord(
        key=found["key"],
        state="running",
        started_at=began,
        stdout_bytes=int(found["out"]),
        stderr_bytes=int(found["err"]),
    )
    if record.sizes is None:
        return known if found["alive"] == "1" else known.model_copy(update={"state": "lost"})
    return known.model_copy(
        update={
            "state": "exited",
            "exit_code": None if record.signal else record.exit_code,
            "signal": record.signal,
            "reason": record.reason,
            "ended_at": record.ended_at,
            "stdout_bytes": record.sizes["stdout"],
            "stderr_bytes": record.sizes["stderr"],
        }
    )


def _signals() -> dict[str, int]:
    return {each.name.removeprefix("SIG"): each.value for each in Signals}


def _said(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip()[-2000:] or "nothing on stderr"
