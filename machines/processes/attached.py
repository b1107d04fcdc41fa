"""Attached processes: each is a command on a channel of its own over the guest's one connection, and ends with it.

In the guest they are started and ended by one program for each connection, their guard (``machines.processes.guard``),
which waits for the connection's end. Each is in a control group of its own. Whoever lets go of a process has the guard
kill its group; when the connection breaks, as it does when this process dies, the guard kills all of them. So nothing
of a process stays behind, whether or not it left its session or ignores signals, and however its client went.

What a process writes waits in the guest while it is not read here: the window of the channel is all that is kept.
"""

from __future__ import annotations

import re
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import paramiko

from foundation.errors import InvalidBody, MachineError, RateLimitExceeded
from foundation.faults import Fault
from foundation.service.processes import Limits, ProcessSpec
from machines.processes.channel import exit_signal, watch
from machines.processes.guard import Begun, begin, guard_of
from machines.ssh import GuestShell

Output = Literal["stdout", "stderr"]

#: In one machine at once: channels are left for those that follow its agent and end it.
MOST = 32

_START_SECONDS = 30.0
_TELL_SECONDS = 5.0
_CHUNK_BYTES = 128 * 1024
_PREAMBLE_BYTES = 8192
_STDERR_BYTES = 1000
_STARTED = re.compile(rb"^\+(\d{1,10})\r?\n")
_REFUSED = re.compile(rb"^-([a-z]{1,16}) ([^\r\n]*)\r?\n")
_END_OF_INPUT = b"\x04"
_UNKNOWN_SIGNAL = "UNKNOWN"
_SIGNAL = re.compile(r"[A-Z][A-Z0-9]{1,9}")
# What cannot be started says why by one of these, which are fields of a spec.
_FIELDS = {"user", "directory", "limits"}


@dataclass(frozen=True)
class Exit:
    """How a process ended: an exit code, or the name of the signal that ended it, without SIG."""

    code: int | None
    signal: str | None


class AttachedProcess:
    """One that was started. Nothing here waits for it: whoever uses it waits to be called."""

    def __init__(self, begun: Begun, spec: ProcessSpec) -> None:
        self._channel = begun.channel
        self._begun = begun
        begun.guard.keys.add(begun.key)
        self._terminal = spec.terminal is not None
        self._first = b""
        self._ended = False
        #: Its id in the guest.
        self.pid = 0

    @property
    def has_output(self) -> bool:
        """Whether ``read`` gives something now."""
        return bool(self._first) or self._channel.recv_ready() or self._channel.recv_stderr_ready()

    @property
    def takes_input(self) -> bool:
        """Whether ``write`` takes something now; also when all that is written is dropped, as nobody reads it."""
        return self._channel.send_ready()

    @property
    def exit(self) -> Exit | None:
        """How it ended, once that is known; what it wrote may be there to be read yet."""
        if self._channel.exit_status >= 0:
            return Exit(self._channel.exit_status, None)
        signal = exit_signal(self._channel)
        if signal is None:
            return None
        return Exit(None, signal if _SIGNAL.fullmatch(signal) else _UNKNOWN_SIGNAL)

    @property
    def is_silent(self) -> bool:
        """Whether no more comes, once what ``has_output`` tells of is read."""
        return bool(self._channel.eof_received or self._channel.closed)

    @property
    def is_cut_off(self) -> bool:
        """Whether its channel has ended, and with it all that can be learned of it."""
        return self._channel.closed

    def read(self) -> Iterator[tuple[Output, bytes]]:
        """What has come since the last time, a part of it at most."""
        if self._first:
            first, self._first = self._first, b""
            yield "stdout", first
        if self._channel.recv_ready():
            yield "stdout", self._channel.recv(_CHUNK_BYTES)
        if self._channel.recv_stderr_ready():
            yield "stderr", self._channel.recv_stderr(_CHUNK_BYTES)

    def write(self, data: bytes) -> int:
        """Write to its stdin as much as it has room for; how many bytes that were. All, when nobody reads them."""
        try:
            return self._channel.send(data) or len(data)
        except TimeoutError:
            return 0
        except (OSError, paramiko.SSHException, EOFError):
            return len(data)

    def close_input(self) -> None:
        """Its stdin ends. To a terminal that is said with the character that means it."""
        with suppress(OSError, paramiko.SSHException, EOFError):
            if self._terminal:
                self._channel.send(_END_OF_INPUT)
            else:
                self._channel.shutdown_write()

    def resize(self, cols: int, rows: int) -> None:
        """Its terminal has another size."""
        with suppress(OSError, paramiko.SSHException, EOFError):
            self._channel.resize_pty(cols, rows)

    def signal(self, name: str) -> None:
        """Send a signal, its name without SIG, to its process group; KILL to everything that it has started."""
        self._begun.signal(name)

    def kill_rest(self) -> None:
        """Kill what is left of it and of all that it has started; again does nothing."""
        if not self._ended:
            self._ended = True
            self._begun.end()

    def close(self) -> None:
        """Let go of it: it is killed unless it has ended. Never raises."""
        self.kill_rest()
        with suppress(OSError, paramiko.SSHException, EOFError):
            self._channel.close()
        self._begun.guard.keys.discard(self._begun.key)

    def await_start(self) -> None:
        """Return when it runs. Raises InvalidBody where it cannot as it was asked for, MachineError otherwise."""
        end = time.monotonic() + _START_SECONDS
        begin = b""
        while b"\n" not in begin and len(begin) < _PREAMBLE_BYTES:
            self._channel.settimeout(max(0.0, end - time.monotonic()))
            piece = self._channel.recv(_PREAMBLE_BYTES)
            if not piece:
                break
            begin += piece
        if started := _STARTED.match(begin):
            self.pid = int(started[1])
            self._first = begin[started.end() :]
            self._channel.settimeout(_TELL_SECONDS)
            return
        if (refused := _REFUSED.match(begin)) and refused[1].decode() in _FIELDS:
            what, why = refused[1].decode(), refused[2].decode(errors="replace")
            raise InvalidBody.of([Fault(what, f"the process cannot be started: {why}", what)])
        said = begin
        with suppress(OSError):
            said += self._channel.recv_stderr(_STDERR_BYTES) if self._channel.recv_stderr_ready() else b""
        told = said.decode(errors="replace").strip() or "it said nothing"
        raise MachineError(f"The guest could not start the process: {told}")


def start(shell: GuestShell, spec: ProcessSpec, call: Callable[[], None]) -> AttachedProcess:
    """Start a process. ``call`` is called whenever there is news of it, by another thread, which must not wait.

    Raises InvalidBody for a user, a directory or limits that cannot be, RateLimitExceeded beyond MOST, GuestUnreachable
    and MachineLost. Whoever gets the process closes it.
    """
    for _ in range(2):
        guard = guard_of(shell)
        if len(guard.keys) >= MOST:
            raise RateLimitExceeded(f"{MOST} commands run in this machine already; try again when one has ended")
        if begun := begin(guard, shell, _values(spec), _terminal(spec)):
            return _started(shell, begun, spec, call)
    raise shell.broken("The connection to the guest broke again and again")


def _started(shell: GuestShell, begun: Begun, spec: ProcessSpec, call: Callable[[], None]) -> AttachedProcess:
    process = AttachedProcess(begun, spec)
    watch(begun.channel, call)
    try:
        process.await_start()
    except (OSError, paramiko.SSHException, EOFError) as error:
        process.close()
        raise shell.broken(f"The guest does not start a process ({error or type(error).__name__})") from error
    except BaseException:
        process.close()
        raise
    return process


def _terminal(spec: ProcessSpec) -> Callable[[paramiko.Channel], None] | None:
    """What its channel needs beforehand."""
    if (terminal := spec.terminal) is None:
        return None
    return lambda channel: channel.get_pty(terminal.term, terminal.cols, terminal.rows)


def _values(spec: ProcessSpec) -> Iterator[tuple[str, bytes]]:
    """The spec as guest/commands/attached.pl reads it."""
    yield "u", spec.user.encode()
    if spec.directory is not None:
        yield "d", spec.directory.encode()
    for name, value in spec.environment.items():
        yield "e", f"{name}={value}".encode()
    if spec.stdin:
        yield "i", b""
    if spec.terminal is not None:
        yield "t", spec.terminal.term.encode()
    yield from _limits(spec.limits)
    for word in spec.argv or ():
        yield "a", word.encode()
    if spec.shell is not None:
        yield "s", spec.shell.encode()


def _limits(limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Those of the kernel for each process, and those of the control group for all of them together."""
    of_kernel = {resource.RLIMIT_CPU: limits.cpu_seconds, resource.RLIMIT_NOFILE: limits.open_files}
    of_group = {"memory.max": limits.memory_bytes, "pids.max": limits.processes}
    yield from (("r", f"{number}={most}".encode()) for number, most in of_kernel.items() if most is not None)
    yield from (("m", f"{name}={most}".encode()) for name, most in of_group.items() if most is not None)
