"""A guest that is a directory of this host: the session's commands run in real shells, with stand-ins for systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import threading
from contextlib import suppress
from pathlib import Path

import psutil
from paramiko.buffered_pipe import BufferedPipe

from guest.contract import AGENT_KEY, AGENT_USER
from machines.processes.places import places_of
from machines.ssh import Completed

# A unit is a session of processes, and a directory that is there as long as it lives. A file ``systemctl`` in the root
# takes the place of that command.
_STAND_INS = {
    "sync": "exit 0",
    "systemd-run": """
        for word in "$@"; do case $word in --property=ExecStopPost=*) post=${word#--property=ExecStopPost=};; esac; done
        while [ "${1#--}" != "$1" ]; do shift; done
        mkdir "$UNIT"
        POST=$post setsid bash -c '
            echo $$ >"$ROOT/pid"
            "$@" & child=$!
            trap : TERM
            while kill -0 $child 2>/dev/null; do wait $child; done
            $POST; rm -r "$UNIT"' unit "$@" >/dev/null 2>&1 </dev/null 3>&- 4>&- 5>&- 9>&- &
        while [ ! -s "$ROOT/pid" ]; do sleep 0.02; done""",
    "systemctl": """
        [ -e "$ROOT/systemctl" ] && exec bash "$ROOT/systemctl" "$@"
        [ -d "$UNIT" ] || exit 5
        case $1 in
        kill) pkill -KILL -s "$(cat "$ROOT/pid")" -x agent;;
        stop) pkill -TERM -s "$(cat "$ROOT/pid")"
              for _ in $(seq 60); do [ -d "$UNIT" ] || exit 0; sleep 0.05; done
              pkill -KILL -s "$(cat "$ROOT/pid")" -x agent
              for _ in $(seq 60); do [ -d "$UNIT" ] || exit 0; sleep 0.05; done; exit 1;;
        esac""",
}


class LocalGuest:
    """The shell of the guest below ``root``: takes the place of ``GuestShell``."""

    def __init__(self, root: Path, key: str = AGENT_KEY) -> None:
        """One with room for the one process with the key."""
        places = places_of(key)
        self.root = root
        self.agent = root / "agent"
        self.directory, self.volatile, self.unit = (
            root / place.lstrip("/") for place in (places.directory, places.volatile, places.cgroup)
        )
        (root / "bin").mkdir(parents=True)
        self.unit.parent.mkdir(parents=True)
        for name, text in _STAND_INS.items():
            program = root / "bin" / name
            program.write_text(f"#!/bin/bash\n{text}\n")
            program.chmod(0o755)
        self._environment = {"PATH": f"{root / 'bin'}:{os.environ['PATH']}", "ROOT": str(root), "UNIT": str(self.unit)}
        self._channels: list[LocalChannel] = []

    def program(self, text: str) -> list[str]:
        """The command line of an agent that does this."""
        self.agent.write_text(f"#!/bin/bash\n{text}\n")
        self.agent.chmod(0o755)
        return [str(self.agent)]

    def run(self, command: str, *, input: bytes | None = None, timeout: float = 60, check: bool = True) -> Completed:  # noqa: A002 -- as the guest's
        if "systemd-run" in command:
            # The places of the files that are laid.
            input = re.sub(rb"(\d+ \w+ \d+ )(?=/\w+/)", rb"\1" + bytes(self.root), input or b"")  # noqa: A001 -- as above
        done = subprocess.run(
            ["bash", "-c", self._here(command)], input=input or b"", capture_output=True, timeout=timeout,
            check=check, env=self._environment,
        )  # fmt: skip
        return Completed(done.returncode, done.stdout, done.stderr)

    def stream(self, command: str) -> LocalChannel:
        channel = LocalChannel(self._here(command), self._environment)
        self._channels.append(channel)
        return channel

    def close(self) -> None:
        """End every process of the guest's."""
        for channel in self._channels:
            channel.close()
        with suppress(OSError, ValueError):
            session = int((self.root / "pid").read_text())
            for process in psutil.process_iter():
                if os.getsid(process.pid) == session:
                    process.kill()
        shutil.rmtree(self.unit, ignore_errors=True)

    def _here(self, command: str) -> str:
        for place in ("/var/lib/taskyard", "/run/taskyard", "/sys/fs/cgroup"):
            command = command.replace(place, f"{self.root}{place}")
        # Whoever runs the tests is the agent. The pauses between looks are of no interest.
        return command.replace(f" {AGENT_USER} ", f" {os.getuid()}:{os.getgid()} ").replace(
            "$LOOK_SECONDS, $RECORD_BYTES_MOST) = (2,", "$LOOK_SECONDS, $RECORD_BYTES_MOST) = (0.1,"
        )


class LocalChannel:
    """What a command writes, as paramiko's channel gives it."""

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self.in_buffer = BufferedPipe()
        self.eof_received = False
        self.closed = False
        self._process = subprocess.Popen(
            ["bash", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=environment, start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def get_transport(self) -> LocalChannel:
        return self

    def is_active(self) -> bool:
        return True

    def recv_ready(self) -> bool:
        return self.in_buffer.read_ready()

    def recv(self, most: int) -> bytes:
        return self.in_buffer.read(most)

    def close(self) -> None:
        self.closed = True
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout
        while data := os.read(self._process.stdout.fileno(), 65536):
            # As a window would, so that what never ends does not fill the memory.
            while len(self.in_buffer) > 2**20 and not self.closed:
                threading.Event().wait(0.01)
            self.in_buffer.feed(data)
        self.eof_received = True
        self.in_buffer.close()
