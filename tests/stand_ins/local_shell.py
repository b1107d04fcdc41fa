"""The shell of a guest that is this host: what is sent into guests runs here, over pipes as over a channel."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from contextlib import suppress


class LocalShell:
    """Takes the place of ``GuestShell.stream``. ``environment`` holds for every program."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        self.environment = {"PATH": os.environ["PATH"]} | (environment or {})
        self.channels: list[LocalPipes] = []

    def stream(self, command: str) -> LocalPipes:
        channel = LocalPipes(command, self.environment)
        self.channels.append(channel)
        return channel

    def close(self) -> None:
        """End what runs."""
        for channel in self.channels:
            channel.close()


class LocalPipes:
    """What a command writes and reads, as paramiko's channel gives it."""

    def __init__(self, command: str, environment: dict[str, str]) -> None:
        self.closed = self.eof_received = False
        self._seconds: float | None = None
        self.process = subprocess.Popen(
            ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def settimeout(self, seconds: float | None) -> None:
        self._seconds = seconds

    def recv_ready(self) -> bool:
        assert self.process.stdout
        return bool(select.select([self.process.stdout], [], [], 0)[0])

    def recv(self, most: int) -> bytes:
        assert self.process.stdout
        if not select.select([self.process.stdout], [], [], self._seconds)[0]:
            raise TimeoutError
        data = os.read(self.process.stdout.fileno(), most)
        self.eof_received = not data
        return data

    def send(self, data: bytes) -> int:
        assert self.process.stdin
        if not select.select([], [self.process.stdin], [], self._seconds)[1]:
            raise TimeoutError
        return os.write(self.process.stdin.fileno(), data[: select.PIPE_BUF])

    def close(self) -> None:
        """As sshd does: the input ends, and whoever writes on is told so."""
        if self.closed:
            return
        self.closed = True
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
