"""The agent's session in the guest: started once, followed by byte offset, spoken to, closed and stopped.

Everything lives in files of the guest, so that a follower can go away and another can come:

    /var/lib/taskyard/agent   argv, workdir, inbox, stdout, stderr, exit (activities/guest/run-agent tells their form)
    /run/taskyard             tmpfs: the environment, with secrets and the gateway token
"""

from __future__ import annotations

import io
import json
import select
import shlex
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko

from foundation.errors import GuestUnreachable, SessionClosed
from machines.ssh import GuestShell
from storage.segments import GuestStream

AGENT_DIR = "/var/lib/taskyard/agent"
VOLATILE_DIR = "/run/taskyard"
MCP_CONFIG = f"{VOLATILE_DIR}/mcp.json"
UNIT = "taskyard-agent"
GRACE_SECONDS = 30
KILLED = 137

_TICK_SECONDS = 0.2
_CHUNK_BYTES = 128 * 1024
# How long a follower waits for bytes that the exit record promises but the files do not give (a tampered file).
_DRAIN_SECONDS = 20.0
_GUEST_FILES = Path(__file__).parent / "guest"
_CLOSED_EXIT_CODE = 3


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
    """The agent is gone; 137 when it had to be killed."""

    exit_code: int


def message_line(text: str) -> bytes:
    """A user message as one line of Claude Code's stream-json input."""
    message = {"type": "user", "message": {"role": "user", "content": text}}
    return json.dumps(message, ensure_ascii=False).encode() + b"\n"


class AgentSession:
    """One guest's agent, over the guest's shell. Every method may be called again after any failure."""

    def __init__(self, shell: GuestShell) -> None:
        self._shell = shell

    def start(self, launch: Launch) -> None:
        """Start the agent unless it was started before."""
        unit = [
            "systemd-run",
            f"--unit={UNIT}",
            "--description=Coding agent of the task run",
            "--service-type=exec",
            f"--property=TimeoutStopSec={GRACE_SECONDS}",
            "--property=OOMPolicy=continue",
            f"--property=ExecStopPost={AGENT_DIR}/bin/record-exit {AGENT_DIR}",
            f"{AGENT_DIR}/bin/run-agent",
            AGENT_DIR,
            VOLATILE_DIR,
        ]
        # The files are laid only while no agent was started: a second start must not touch a used inbox.
        script = (
            f"mkdir -p {VOLATILE_DIR} {AGENT_DIR} && exec 9>{VOLATILE_DIR}/start.lock && flock 9 && "
            f"if [ -e {AGENT_DIR}/started ] || systemctl is-active --quiet {UNIT}; then cat >/dev/null; "
            f"else tar --extract --no-same-owner --directory=/ --file=- && "
            f"{{ [ ! -e {MCP_CONFIG} ] || chown agent {MCP_CONFIG}; }} && {shlex.join(unit)}; fi"
        )
        self._shell.run(script, input=_launch_files(launch), timeout=60)

    def deliver(self, message_id: str, text: str) -> None:
        """Hand a message over, once for each id. Raises SessionClosed."""
        command = shlex.join([f"{AGENT_DIR}/bin/deliver", AGENT_DIR, message_id])
        done = self._shell.run(command, input=message_line(text), check=False)
        if done.exit_code == _CLOSED_EXIT_CODE:
            raise SessionClosed("The agent's session is closed; the message was not delivered.")
        if done.exit_code != 0:
            raise GuestUnreachable(f"The message could not be delivered: {done.stderr.decode(errors='replace')}")

    def close(self) -> None:
        """End the session after what was delivered so far."""
        self._shell.run(shlex.join([f"{AGENT_DIR}/bin/close", AGENT_DIR]))

    def stop(self, *, force: bool) -> None:
        """TERM to every process of the agent, KILL to those left after the grace period; with ``force`` at once."""
        if force:
            self._shell.run(f"systemctl kill --signal=KILL {UNIT}", check=False)
        self._shell.run(f"systemctl stop {UNIT}", timeout=GRACE_SECONDS + 60, check=False)

    def follow(self, offsets: Mapping[GuestStream, int]) -> Iterator[Chunk | Ended | None]:
        """What the agent writes from the given offsets on, as it writes it, and at last how it ended.

        Gives None on every quiet moment (a fraction of a second), so that the caller can look after other things.
        Raises GuestUnreachable or MachineLost when the connection breaks.
        """
        position: dict[GuestStream, int] = {"stdout": offsets.get("stdout", 0), "stderr": offsets.get("stderr", 0)}
        tails = {
            stream: self._shell.stream(f"exec tail -c +{start + 1} -f {AGENT_DIR}/{stream}")
            for stream, start in position.items()
        }
        exit_tail = self._shell.stream(f"exec tail -c +1 -f {AGENT_DIR}/exit")
        exit_line = b""
        goal: dict[GuestStream, int] | None = None
        last_bytes = time.monotonic()
        try:
            while True:
                ready, _, _ = select.select([*tails.values(), exit_tail], [], [], _TICK_SECONDS)
                if not ready:
                    yield None
                for stream, tail in tails.items():
                    if tail in ready:
                        data = _receive(tail)
                        yield Chunk(stream, position[stream], data)
                        position[stream] += len(data)
                        last_bytes = time.monotonic()
                if exit_tail in ready:
                    exit_line += _receive(exit_tail)
                    last_bytes = time.monotonic()
                if goal is None and exit_line.endswith(b"\n"):
                    exit_code, out_bytes, err_bytes = (int(number) for number in exit_line.split()[:3])
                    goal = {"stdout": out_bytes, "stderr": err_bytes}
                if goal is not None and (
                    all(position[stream] >= goal[stream] for stream in goal)
                    or time.monotonic() - last_bytes > _DRAIN_SECONDS
                ):
                    yield Ended(exit_code)
                    return
        finally:
            for channel in (*tails.values(), exit_tail):
                channel.close()


def _receive(channel: paramiko.Channel) -> bytes:
    data = channel.recv(_CHUNK_BYTES)
    if not data:
        raise GuestUnreachable("The connection to the guest broke while the agent was followed.")
    return data


def _launch_files(launch: Launch) -> bytes:
    """A tar of everything the runner reads."""
    agent, volatile = AGENT_DIR.lstrip("/"), VOLATILE_DIR.lstrip("/")
    environment = "".join(f"{name}={value}\0" for name, value in launch.environment.items())
    files: dict[str, tuple[bytes, int]] = {
        f"{agent}/argv": ("".join(f"{word}\0" for word in launch.command).encode(), 0o644),
        f"{agent}/workdir": (launch.workdir.encode(), 0o644),
        f"{agent}/inbox": (message_line(launch.prompt), 0o600),
        f"{agent}/delivered": (b"", 0o600),
        f"{agent}/stdout": (b"", 0o644),
        f"{agent}/stderr": (b"", 0o644),
        f"{agent}/exit": (b"", 0o644),
        f"{volatile}/session-environment": (environment.encode(), 0o600),
    }
    if launch.mcp_config is not None:
        files[f"{volatile}/mcp.json"] = (json.dumps(launch.mcp_config).encode(), 0o400)
    for script in ("run-agent", "record-exit", "deliver", "close"):
        files[f"{agent}/bin/{script}"] = ((_GUEST_FILES / script).read_bytes(), 0o755)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, (data, mode) in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = mode
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()
