"""Runs a host program on data a guest may have forged, confined by bubblewrap: no network, only the files named."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from foundation.child_environment import child_environment
from foundation.errors import HostNotReady, MachineError
from guest.contract import AGENT_UID

_POLL_SECONDS = 0.5
_GIB = 2**30
_ERROR_BYTES = 4 * 2**20
_LAST_BYTES = 64 * 1024


class ConfinedTimeout(MachineError):
    """The confined program did not end within its time limit."""

    code = "machine_error"
    retryable = False


@dataclass(frozen=True)
class Confinement:
    """What a confined program may see and use.

    ``readable`` and ``writable`` map paths inside to paths of the host. ``seconds`` limits its run, ``file_bytes`` each
    file that it writes, ``memory_bytes`` its address space, ``output_bytes`` what it may print.
    """

    readable: Mapping[str, Path] = field(default_factory=dict)
    writable: Mapping[str, Path] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 600
    file_bytes: int = 64 * _GIB
    memory_bytes: int = 4 * _GIB
    output_bytes: int = _GIB // 4

    def run(
        self,
        command: Sequence[str],
        *,
        input: bytes = b"",  # noqa: A002 -- the name subprocess gives it
        stdout: IO[bytes] | None = None,
        check: bool = True,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the command to its end. Output is captured, or goes to ``stdout`` when given.

        Raises ConfinedTimeout; MachineError with the program's last words when ``check`` and the exit code is not 0, or
        when it prints too much; HostNotReady when bubblewrap is missing or may not make its namespaces.
        """
        with (
            tempfile.TemporaryFile() as in_file,
            tempfile.TemporaryFile() as out_file,
            tempfile.TemporaryFile() as err_file,
        ):
            in_file.write(input)
            in_file.seek(0)
            process = self._start(command, in_file, stdout or out_file, err_file)
            try:
                self._wait(process, command[0], {out_file.fileno(): self.output_bytes, err_file.fileno(): _ERROR_BYTES})
            finally:
                _end_group(process)
            out_file.seek(0)
            output = out_file.read(self.output_bytes)
            err_file.seek(max(0, os.fstat(err_file.fileno()).st_size - _LAST_BYTES))
            errors = err_file.read(_LAST_BYTES)
        if process.returncode and errors.startswith(b"bwrap:"):
            raise HostNotReady(
                f"bubblewrap cannot confine {command[0]} on this host: {_last_line(errors)}. "
                "Allow unprivileged user namespaces, and let the user of the worker own the directory of its state."
            )
        if check and process.returncode:
            raise MachineError(
                f"{command[0]} failed with exit code {process.returncode}: {_last_line(errors) or _last_line(output)}"
            )
        return subprocess.CompletedProcess(list(command), process.returncode, output, errors)

    def _start(
        self, command: Sequence[str], stdin: IO[bytes], stdout: IO[bytes], stderr: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                [*self._prefix(), *command],
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                env=child_environment(),
                start_new_session=True,
            )
        except FileNotFoundError:
            raise HostNotReady(
                "bubblewrap (bwrap) is not installed; install it, 'sandbox doctor' names the package."
            ) from None

    def _wait(self, process: subprocess.Popen[bytes], name: str, most: Mapping[int, int]) -> None:
        """Wait until the process ends. ``most`` limits files that it writes, in bytes by descriptor.

        Waits in short turns, so that a cancellation raised in this thread is not held up.
        """
        deadline = time.monotonic() + self.seconds
        ended = os.pidfd_open(process.pid)
        try:
            while not _ready(ended, min(_POLL_SECONDS, max(0.0, deadline - time.monotonic()))):
                if time.monotonic() >= deadline:
                    raise ConfinedTimeout(f"{name} did not end within {self.seconds:.0f} s and was stopped.")
                if any(os.fstat(descriptor).st_size > size for descriptor, size in most.items()):
                    raise MachineError(f"{name} printed too much and was stopped.")
        finally:
            os.close(ended)
        process.wait()

    def _prefix(self) -> list[str]:
        arguments = ["bwrap", "--unshare-all", "--unshare-user", "--die-with-parent", "--new-session", "--clearenv"]
        # Every file of ours seems to be the agent's, as those in a workspace disk are.
        arguments += ["--uid", str(AGENT_UID), "--gid", str(AGENT_UID), "--hostname", "confined"]
        arguments += ["--setenv", "PATH", "/usr/sbin:/usr/bin", "--setenv", "LC_ALL", "C"]
        for name, value in self.environment.items():
            arguments += ["--setenv", name, value]
        arguments += _system_binds()
        for inside, outside in self.readable.items():
            arguments += ["--ro-bind", str(outside), inside]
        for inside, outside in self.writable.items():
            arguments += ["--bind", str(outside), inside]
        limits = [f"--fsize={self.file_bytes}", f"--as={self.memory_bytes}", "--core=0", "--nofile=1024"]
        return [*arguments, "--chdir", "/", "--", "prlimit", *limits, "--"]


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a process and its group (it leads a session of its own), and reap it."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ready(descriptor: int, seconds: float) -> bool:
    """Whether there is something to read within the time; for any descriptor, also above 1023."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _system_binds() -> list[str]:
    arguments = ["--ro-bind", "/usr", "/usr", "--dev", "/dev", "--tmpfs", "/tmp"]  # noqa: S108 -- a path inside
    for name in ("bin", "sbin", "lib", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), str(path)]
        elif path.exists():
            arguments += ["--ro-bind", str(path), str(path)]
    return arguments


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").strip().splitlines()
    return lines[-1] if lines else ""
