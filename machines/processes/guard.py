"""The guard of a connection to a guest: one program there that starts what runs over the connection, and ends it.

It lives as long as the connection does (guest/commands/attached.pl). What it starts gets the streams of a channel of
its own: those of a shell that does nothing else. One such shell always waits for what comes next, since in an emulated
guest it takes longer to have one than most commands run. Programs of ours are sent to the guard once, and are forks of
it from then on.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from weakref import WeakKeyDictionary

import paramiko

from foundation.errors import MachineError
from guest.contract import ATTACHED_PLACES, READY
from guest.programs import perl_command, perl_program
from machines.ssh import GuestShell, execute

_START_SECONDS = 30.0
_TELL_SECONDS = 5.0
# What is made in the guest beforehand.
_PREPARED = 8
_SAID_BYTES = 1000

Prepare = Callable[[paramiko.Channel], None]
#: Of what is to be started, as guest/commands/attached.pl reads it.
Values = Iterable[tuple[str, bytes]]


class Begun:
    """What a guard was asked to start, and the ``channel`` that has its streams."""

    def __init__(self, guard: Guard, key: str, channel: paramiko.Channel) -> None:
        self.guard = guard
        self.key = key
        self.channel = channel

    def signal(self, name: str) -> None:
        """Send a signal to its process group, or KILL to all of its control group."""
        self.guard.tell(f"signal {self.key} {name}")

    def end(self) -> None:
        """Kill what is left of its control group."""
        self.guard.tell(f"end {self.key}")

    def close(self) -> None:
        """Let go of it. Never raises. A program of ours, which is in no group, ends with its streams."""
        self.end()
        with suppress(OSError, paramiko.SSHException, EOFError):
            self.channel.close()


def begin(guard: Guard, shell: GuestShell, values: Values, prepare: Prepare | None = None) -> Begun | None:
    """Have it started; None when its streams came over another connection than the guard's, and it was let go of.

    With ``prepare``, its channel is a new one. Raises GuestUnreachable, MachineLost. Whoever gets it closes it.
    """
    spare = guard.spare() if prepare is None else None
    key = spare.key if spare else guard.reserve()
    guard.ask(key, values)
    try:
        channel = (spare and spare.channel) or shell.stream(guard.command(key), prepare)
    except BaseException:
        guard.tell(f"end {key}")
        raise
    begun = Begun(guard, key, channel)
    if channel.get_transport() is not guard.transport:
        begun.close()
        return None
    guard.have_spare()
    return begun


class GuestPrograms:
    """Starts programs of ours in one guest, as root."""

    def __init__(self, shell: GuestShell) -> None:
        self._shell = shell

    def begin(self, *parts: str) -> Begun:
        """A program of ``guest/commands`` that is made of these parts, running.

        Raises GuestUnreachable, MachineLost, MachineError.
        """
        name = "_".join(parts).replace("-", "_")
        for _ in range(2):
            guard = guard_of(self._shell)
            guard.teach(name, perl_program(*parts))
            if begun := begin(guard, self._shell, (("p", name.encode()), ("i", b""))):
                return begun
        raise self._shell.broken("The connection to the guest broke again and again")


class Guard:
    """What starts and ends the processes of one connection. Thread-safe."""

    def __init__(self, shell: GuestShell) -> None:
        self._name = secrets.token_hex(8)
        self._place = f"{ATTACHED_PLACES}/{self._name}"
        #: Of attached processes that were not closed yet.
        self.keys: set[str] = set()
        self._prepared: deque[str] = deque()
        self._taught: set[str] = set()
        self._spare: _Spare | None = None
        self._lock = threading.Lock()
        self._channel = shell.stream(f"{perl_command('attached')} {self._name}")
        self.transport = self._channel.get_transport()
        self._channel.settimeout(_START_SECONDS)
        said = b""
        try:
            with self._lock:
                self._channel.sendall(b"".join(self._prepare() for _ in range(_PREPARED)))
            while not said.endswith(b"\n") and (piece := self._channel.recv(_SAID_BYTES)):
                said += piece
        except (OSError, paramiko.SSHException, EOFError) as error:
            self._channel.close()
            raise shell.broken(f"The guest does not start processes ({error or type(error).__name__})") from error
        if said.decode(errors="replace") != f"{READY}\n":
            why = self._channel.recv_stderr(_SAID_BYTES).decode(errors="replace").strip()
            self._channel.close()
            raise MachineError(f"The guest cannot start processes: {why or 'it said nothing'}")
        self._channel.settimeout(_TELL_SECONDS)

    @property
    def is_there(self) -> bool:
        return self.transport.is_active() and not self._channel.closed and not self._channel.eof_received

    def reserve(self) -> str:
        """The key of something that is to be started. In the guest, what it needs is made while others run."""
        with self._lock:
            return self._reserve()

    def ask(self, key: str, values: Values) -> None:
        """Say what is to be started by the shell that asks for it."""
        encoded = b"".join(b"%s%d:%s" % (kind.encode(), len(value), value) for kind, value in values)
        with self._lock:
            self._send(b"spec %s %d\n%s" % (key.encode(), len(encoded), encoded))

    def teach(self, name: str, text: str) -> None:
        """Have it know a program."""
        encoded = text.encode()
        with self._lock:
            if name not in self._taught:
                self._taught.add(name)
                self._send(b"program %s %d\n%s" % (name.encode(), len(encoded), encoded))

    def tell(self, line: str) -> None:
        """Say one line to it."""
        with self._lock:
            self._send(f"{line}\n".encode())

    def command(self, key: str) -> str:
        """What the shell of a channel does whose streams become those of what is started: it ends as that does.

        They are had under other numbers, since the shell's own are something else for a moment while it writes.
        """
        return (
            f"exec 3<&0 4>&1 5>&2;d={self._place};echo {key} $$ >$d/requests;"
            f"until [ -p $d/{key} ];do [ -d $d ]||exit;sleep 1;done;read -r c s <$d/{key};"
            'case $s in ""|0);;*)kill -$s $$;;esac;exit ${c:-255}'
        )

    def spare(self) -> _Spare | None:
        """The shell that waits, if there is one that still does. Whoever gets it is alone with it."""
        with self._lock:
            spare, self._spare = self._spare, None
        if spare is None or spare.channel:
            return spare
        self.tell(f"end {spare.key}")
        return None

    def have_spare(self) -> None:
        """Have a shell wait for what comes next."""
        with self._lock:
            if self._spare is None:
                key = self._reserve()
                self._spare = _Spare(self.transport, key, self.command(key))
                self._spare.start()

    def _reserve(self) -> str:
        key = self._prepared.popleft()
        self._send(self._prepare())
        return key

    def _prepare(self) -> bytes:
        key = secrets.token_hex(6)
        self._prepared.append(key)
        return f"prepare {key}\n".encode()

    def _send(self, data: bytes) -> None:
        """Where the guard is gone, so are its processes, or they are beyond reach."""
        with suppress(OSError, paramiko.SSHException, EOFError):
            self._channel.sendall(data)


class _Spare(threading.Thread):
    """A shell over this connection that waits to hear what it is for."""

    def __init__(self, transport: paramiko.Transport, key: str, command: str) -> None:
        super().__init__(daemon=True)
        self.key = key
        self._transport = transport
        self._command = command
        self._channel: paramiko.Channel | None = None

    def run(self) -> None:
        with suppress(OSError, paramiko.SSHException, EOFError):
            self._channel = execute(self._transport, self._command)

    @property
    def channel(self) -> paramiko.Channel | None:
        """Its channel, which it may be about to get; None when it did not, or has lost it."""
        # On a connection that dies in just this moment, opening it may wait for ever.
        self.join(_START_SECONDS)
        return None if self._channel is None or self._channel.closed or self._channel.eof_received else self._channel


class _Guarding:
    """The guard of one machine, as this process has entered it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._guard: Guard | None = None

    def guard(self, shell: GuestShell) -> Guard:
        with self._lock:
            if self._guard is None or not self._guard.is_there:
                self._guard = Guard(shell)
            return self._guard


_GUARDINGS: WeakKeyDictionary[GuestShell, _Guarding] = WeakKeyDictionary()
_GUARDINGS_LOCK = threading.Lock()


def guard_of(shell: GuestShell) -> Guard:
    """The guard of the open connection, started if need be. Raises GuestUnreachable, MachineLost, MachineError."""
    with _GUARDINGS_LOCK:
        guarding = _GUARDINGS.setdefault(shell, _Guarding())
    return guarding.guard(shell)
