"""The agent's session in the guest: started once, followed by byte offset, spoken to, closed and stopped.

Everything lives in files of the guest, so that a follower can go away and another can come:

    SESSION_DIR    argv, workdir, inbox, stdout, stderr (their form is in guest/agent/run-agent)
    VOLATILE_DIR   tmpfs: the environment, with secrets and the gateway token; the exit record, where a full disk cannot
                   keep it from being written

The agent may be root in its guest: any of them may be forged, filled, frozen or gone. There is an end all the same:
what cannot be read is no record, a unit that is gone has ended, and a stop that does not succeed is an error.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from foundation.errors import GuestUnreachable, SessionClosed
from guest.contract import (
    AGENT_CGROUP,
    AGENT_UNIT,
    AGENT_USER,
    EXIT_RECORD,
    GUEST_ENVIRONMENT,
    KILLED,
    MCP_CONFIG,
    SESSION_CLOSED,
    SESSION_DIR,
    SESSION_ENVIRONMENT,
    SESSION_PROGRAMS,
    START_LOCK,
    STOPPED,
    UNIT_GONE,
    VOLATILE_DIR,
)
from guest.programs import session_program, shell_command
from machines.ssh import GuestShell, wake
from storage.segments import GUEST_STREAMS, GuestStream

GRACE_SECONDS = 30

# Long enough to cost little with hundreds of followers; shorter while bytes come, which are stored as they come.
_QUIET_TICK_SECONDS = 1.0
_BUSY_TICK_SECONDS = 0.2
_CHUNK_BYTES = 128 * 1024
# How long a follower waits for bytes that the exit record promises but the files do not give (a tampered file), and
# how long it reads on after the end in all.
_DRAIN_SECONDS = 20.0
_DRAIN_SECONDS_MOST = 600.0
_OPEN_AGAIN_SECONDS = 2.0
# What comes after a unit has gone without a record was written before.
_GONE_SECONDS = 5.0
_STOP_SECONDS = GRACE_SECONDS + 15

_RECORD = re.compile(rb"^([0-9]{1,3}) ([0-9]{1,18}) ([0-9]{1,18})$", re.MULTILINE)
_GONE = re.compile(rf"^{UNIT_GONE}$".encode(), re.MULTILINE)
_RECORD_BYTES_MOST = 4096
# More than a week of looks at the unit.
_OUTPUT_BYTES_MOST = 2**20
_BIN = f"{SESSION_DIR}/bin"


@dataclass(frozen=True)
class Launch:
    """What the agent is started with. ``prompt`` is its first message."""

    command: Sequence[str]
    workdir: str
    prompt: str
    environment: Mapping[str, str]
    mcp_config: Mapping[str, object] | None = None


@dataclass(frozen=True)
class Chunk:
    """Bytes that the agent wrote, from byte ``offset`` of the stream's file on."""

    stream: GuestStream
    offset: int
    data: bytes


@dataclass(frozen=True)
class Ended:
    """The agent is gone; 137 when it had to be killed, None when it left no exit code that can be read."""

    exit_code: int | None


def message_line(text: str) -> bytes:
    """A user message as one line of Claude Code's stream-json input, which reaches the model as it was written.

    Claude Code takes a message whose last block begins with a slash for a command of its own, and attaches the files
    that it names with ``@``. So the last block is an empty one, which Claude Code leaves out of what it sends.
    """
    blocks = [{"type": "text", "text": text}, {"type": "text", "text": ""}]
    message = {"type": "user", "message": {"role": "user", "content": blocks}}
    return json.dumps(message).encode() + b"\n"


class AgentSession:
    """One guest's agent, over the guest's shell. Every method may be called again after any failure."""

    def __init__(self, shell: GuestShell) -> None:
        self._shell = shell

    def start(self, launch: Launch) -> None:
        """Start the agent unless it was started or stopped before."""
        unit = [
            "systemd-run",
            f"--unit={AGENT_UNIT}",
            "--description=Coding agent of the task run",
            "--service-type=exec",
            f"--property=TimeoutStopSec={GRACE_SECONDS}",
            "--property=OOMPolicy=continue",
            # What holds for every program of the guest. What the run itself sets comes later, and so wins.
            f"--property=EnvironmentFile=-{GUEST_ENVIRONMENT}",
            f"--property=ExecStopPost={_BIN}/record-exit {SESSION_DIR} {VOLATILE_DIR}",
            f"{_BIN}/run-agent",
            SESSION_DIR,
            VOLATILE_DIR,
        ]
        # The files are laid only while no agent was started: a second start must not touch a used inbox.
        script = (
            f"mkdir -p {VOLATILE_DIR} {SESSION_DIR} && exec 9>{START_LOCK} && flock 9 && "
            f"if [ -e {SESSION_DIR}/started ] || systemctl is-active --quiet {AGENT_UNIT}; then cat >/dev/null; "
            f"else tar --extract --no-same-owner --directory=/ --file=- && "
            f"{{ [ ! -e {MCP_CONFIG} ] || chown {AGENT_USER} {MCP_CONFIG}; }} && "
            f"if [ -e {STOPPED} ]; then mkdir -p {SESSION_DIR}/started && echo {KILLED} 0 0 >>{EXIT_RECORD}; "
            f"else {shlex.join(unit)}; fi; fi"
        )
        self._shell.run(script, input=_launch_files(launch), timeout=60)

    def deliver(self, message_id: str, text: str) -> None:
        """Hand a message over, once for each id. Raises SessionClosed."""
        line = message_line(text)
        command = shlex.join([f"{_BIN}/deliver", SESSION_DIR, message_id, VOLATILE_DIR, str(len(line))])
        done = self._shell.run(command, input=line, check=False)
        if done.exit_code == SESSION_CLOSED:
            raise SessionClosed("The agent's session is closed; the message was not delivered.")
        if done.exit_code != 0:
            raise GuestUnreachable(f"The message could not be delivered: {done.stderr.decode(errors='replace')}")

    def close(self) -> None:
        """End the session after what was delivered so far."""
        self._shell.run(shlex.join([f"{_BIN}/close", SESSION_DIR]))

    def stop(self, *, force: bool) -> bool:
        """TERM to every process of the agent, KILL to those left after the grace period; with ``force`` at once.

        False when some are left all the same; what they wrote is on the disks then. Takes a minute at most.
        """
        kill = f"systemctl kill --signal=KILL {AGENT_UNIT}\n" if force else ""
        # A frozen group takes no TERM, but every group takes the kernel's own kill. The lock is that of ``start``.
        script = (
            f"mkdir -p {VOLATILE_DIR}; ( flock -w 5 9; : >{STOPPED} ) 9>{START_LOCK}\n"
            f"{kill}timeout {GRACE_SECONDS + 5} systemctl stop {AGENT_UNIT}\n"
            f"[ -d {AGENT_CGROUP} ] || exit 0\n"
            f"echo 1 >{AGENT_CGROUP}/cgroup.kill; sleep 2\n"
            f"[ -d {AGENT_CGROUP} ] || exit 0\n"
            "timeout 5 sync; exit 9\n"
        )
        return self._shell.run(script, timeout=_STOP_SECONDS, check=False).exit_code == 0

    def follow(self, offsets: Mapping[GuestStream, int]) -> Iterator[Chunk | Ended | None]:
        """What the agent writes from the given offsets on, as it writes it, and at last how it ended.

        Gives None on every quiet moment (a second at most), so that the caller can look after other things.
        Raises GuestUnreachable or MachineLost when the connection breaks.
        """
        news = threading.Event()
        position: dict[GuestStream, int] = {stream: offsets.get(stream, 0) for stream in GUEST_STREAMS}
        tails = {stream: Tail(self._shell, stream, start, news) for stream, start in position.items()}
        record = ExitRecord(self._shell, news)
        end = DrainEnd(time.monotonic)
        try:
            while True:
                # Before the look: what comes after it wakes the wait below.
                news.clear()
                busy = record.read()
                for stream, tail in tails.items():
                    if data := tail.read():
                        busy = True
                        yield Chunk(stream, position[stream], data)
                        position[stream] += len(data)
                if end.reached(record, position, busy=busy):
                    yield Ended(record.exit_code)
                    return
                if not busy:
                    yield None
                    news.wait(end.tick())
        finally:
            record.close()
            for tail in tails.values():
                tail.close()


class Tail:
    """The bytes of one of the agent's files from an offset on, as they are written."""

    def __init__(self, shell: GuestShell, stream: GuestStream, offset: int, news: threading.Event) -> None:
        self._shell = shell
        self._file = f"{SESSION_DIR}/{stream}"
        self._offset = offset
        self._news = news
        self._open_at: float | None = None
        self._open()

    def read(self) -> bytes:
        """What has come; nothing when nothing has. Raises GuestUnreachable when the connection has broken.

        A command that has ended in a guest that is there, as the agent killed it or removed its file, is begun anew.
        """
        # Asked first: what came before the end is read below.
        over = self._channel.eof_received or self._channel.closed
        if self._channel.recv_ready():
            data = self._channel.recv(_CHUNK_BYTES)
            self._offset += len(data)
            return data
        if over:
            now = time.monotonic()
            self._open_at = self._open_at or now + _OPEN_AGAIN_SECONDS
            if not self._channel.get_transport().is_active():
                raise GuestUnreachable("The connection to the guest broke while the agent was followed.")
            if now >= self._open_at:
                self.close()
                self._open()
        return b""

    def close(self) -> None:
        """Read no more."""
        self._channel.close()

    def _open(self) -> None:
        self._open_at = None
        self._channel = self._shell.stream(f"exec tail -c +{self._offset + 1} -f {self._file}")
        wake(self._channel, self._news)


class ExitRecord:
    """What the guest says of the agent's end: the exit record, or that the unit is gone."""

    def __init__(self, shell: GuestShell, news: threading.Event) -> None:
        self.exit_code: int | None = None
        #: What the record promises to be in the files.
        self.sizes: dict[GuestStream, int] | None = None
        self.gone = False
        self._shell = shell
        self._news = news
        self._output = bytearray()
        self._output_bytes = 0
        self._watch(f"{shell_command('watch-unit')} & {shell_command('watch-exit')}")

    def read(self) -> bool:
        """Read what has come. True when the record, or the end of the unit, is in it."""
        known = self.sizes is not None or self.gone
        # All of it, since only what comes later wakes whoever waits for more.
        while self.sizes is None and not self.gone and self._channel.recv_ready():
            self._take(self._channel.recv(_RECORD_BYTES_MOST))
        return not known and (self.sizes is not None or self.gone)

    def _take(self, data: bytes) -> None:
        self._output += data
        self._output_bytes += len(data)
        # Up to the last newline: the rest is not complete yet.
        lines = bytes(self._output[: self._output.rfind(b"\n") + 1])
        if found := _RECORD.search(lines):
            code, out_bytes, err_bytes = (int(number) for number in found.groups())
            self.exit_code, self.sizes = code, {"stdout": out_bytes, "stderr": err_bytes}
        elif _GONE.search(lines):
            self.gone = True
        elif self._output_bytes > _OUTPUT_BYTES_MOST:
            # A file that never ends is no record; the unit is looked at without it.
            self.close()
            self._output_bytes = 0
            self._watch(shell_command("watch-unit"))
        # Lines that are neither are forgotten, and the beginning of one that is too long.
        del self._output[: max(len(lines), len(self._output) - _RECORD_BYTES_MOST)]

    def close(self) -> None:
        """End the watch."""
        self._channel.close()

    def _watch(self, command: str) -> None:
        self._channel = self._shell.stream(command)
        wake(self._channel, self._news)


class DrainEnd:
    """When a follower has read what the agent wrote before its end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_bytes = clock()
        self._since: float | None = None

    def reached(self, record: ExitRecord, position: Mapping[GuestStream, int], *, busy: bool) -> bool:
        """Whether the agent has ended and all of its output is read; ``busy``: some of it came just now."""
        now = self._clock()
        if busy:
            self._last_bytes = now
        if record.sizes is None and not record.gone:
            return False
        self._since = self._since or now
        if record.sizes is not None and all(position[stream] >= size for stream, size in record.sizes.items()):
            return True
        patience = _GONE_SECONDS if record.sizes is None else _DRAIN_SECONDS
        return now - self._last_bytes > patience or now - self._since > _DRAIN_SECONDS_MOST

    def tick(self) -> float:
        """Seconds to wait for more."""
        quiet = self._clock() - self._last_bytes > _QUIET_TICK_SECONDS
        return _QUIET_TICK_SECONDS if quiet else _BUSY_TICK_SECONDS


def _launch_files(launch: Launch) -> bytes:
    """A tar of everything the runner reads."""
    environment = "".join(f"{name}={value}\0" for name, value in launch.environment.items())
    files: dict[str, tuple[bytes, int]] = {
        f"{SESSION_DIR}/argv": ("".join(f"{word}\0" for word in launch.command).encode(), 0o644),
        f"{SESSION_DIR}/workdir": (launch.workdir.encode(), 0o644),
        f"{SESSION_DIR}/inbox": (message_line(launch.prompt), 0o600),
        f"{SESSION_DIR}/delivered": (b"", 0o600),
        f"{SESSION_DIR}/stdout": (b"", 0o644),
        f"{SESSION_DIR}/stderr": (b"", 0o644),
        # Not empty, so that a full tmpfs has room for the record.
        EXIT_RECORD: (b"\n", 0o644),
        SESSION_ENVIRONMENT: (environment.encode(), 0o600),
    }
    if launch.mcp_config is not None:
        files[MCP_CONFIG] = (json.dumps(launch.mcp_config).encode(), 0o400)
    for program in SESSION_PROGRAMS:
        files[f"{_BIN}/{program}"] = (session_program(program), 0o755)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name.lstrip("/"))
            entry.size = len(data)
            entry.mode = mode
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
