"""The way into a guest: one SSH connection for each machine and process, opened when needed and renewed when broken."""

from __future__ import annotations

import contextlib
import secrets
import selectors
import shlex
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import paramiko

from foundation.errors import GuestUnreachable, MachineError, MachineLost
from machines.processes.channel import Connection, limit_unread

# Under emulation the handshake costs more than a second of the guest's CPU: the cheapest safe algorithms are named.
_KEY_EXCHANGE = ("curve25519-sha256@libssh.org",)
_HOST_KEYS = ("ecdsa-sha2-nistp256",)
_CIPHERS = ("aes128-ctr",)
# Of SHA-2, the one of 512 bits takes an emulated guest little more than half the time for as many bytes.
_MACS = ("hmac-sha2-512-etm@openssh.com", "hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
_CONNECT_SECONDS = 30.0
_DIAL_SECONDS = 15.0
_KEEPALIVE_SECONDS = 15
_CHUNK = 64 * 1024
_STDERR_SHOWN = 2000
# As SSH numbers why a channel is not opened.
_OPEN_CONNECT_FAILED = 2
# The guest belongs to the agent: nothing it sends may fill the host's memory. No command of ours says as much.
_OUTPUT_MAX = 2**20


@dataclass(frozen=True)
class Completed:
    """How a command in the guest ended. ``exit_code`` is -1 when a signal ended it."""

    exit_code: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class GuestAddress:
    """Where a guest's SSH is. ``known_hosts`` holds its host key under the machine's id."""

    machine_id: str
    port: int
    client_key: Path
    known_hosts: Path


class GuestShell:
    """Runs commands in one guest as root. Thread-safe; commands run beside one another over one connection.

    Every method raises MachineLost when the machine's process has ended, and GuestUnreachable when the guest does
    not answer though it runs.
    """

    def __init__(self, address: Callable[[], GuestAddress], is_alive: Callable[[], bool]) -> None:
        self._address = address
        self._is_alive = is_alive
        self._lock = threading.Lock()
        self._client: paramiko.SSHClient | None = None

    def run(self, command: str, *, input: bytes | None = None, timeout: float = 60, check: bool = True) -> Completed:  # noqa: A002 -- named as subprocess.run names it
        """Run ``command`` in a shell with ``input`` on its stdin, at most ``timeout`` seconds once it has started.

        With ``check``, an exit code other than 0 raises MachineError with the command's stderr.
        """
        end = time.monotonic() + timeout
        channel = self.stream(command)
        try:
            completed = _drain(channel, input, end)
        except TimeoutError:
            raise self.broken(f"A command in the guest did not end within {timeout:g} s") from None
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self.broken(f"The connection to the guest broke ({error or type(error).__name__})") from error
        finally:
            channel.close()
        if check and completed.exit_code != 0:
            reason = completed.stderr.decode(errors="replace").strip()[-_STDERR_SHOWN:]
            raise MachineError(
                f"A command in the guest ended with exit code {completed.exit_code}: {reason or 'nothing on stderr'}",
                exit_code=completed.exit_code,
            )
        return completed

    def stream(self, command: str, prepare: Callable[[paramiko.Channel], None] | None = None) -> paramiko.Channel:
        """Start ``command`` and give its channel: read it with ``recv`` and ``recv_stderr``, end it with ``close``.

        ``prepare`` is called with the channel before the command starts, and may send requests of its own over it.
        """
        return self._opened(lambda transport: execute(transport, command, prepare))

    def dial(self, address: str, port: int, window_bytes: int) -> paramiko.Channel:
        """Connect to a port in the guest, which has ``address``; its channel, for ``window_bytes`` that nobody reads.

        Raises ConnectionRefusedError when nothing listens there.
        """
        return self._opened(lambda transport: _dial(transport, address, port, window_bytes))

    def _opened(self, begin: Callable[[paramiko.Transport], paramiko.Channel]) -> paramiko.Channel:
        """A channel of the open connection, or of a new one."""
        transport = self._connected()
        try:
            return begin(transport)
        except ConnectionRefusedError:
            raise
        except paramiko.ChannelException as error:
            # The guest lives and serves others over this connection: it stays.
            raise GuestUnreachable(f"The guest takes no further command now ({error})") from error
        except (paramiko.SSHException, OSError, EOFError) as error:
            hung = transport.is_active()
            self._discard(transport)
            if hung:
                raise self.broken(f"The guest does not take commands ({error})") from error
        # The connection had broken unnoticed and nothing has run, so a new one may try.
        try:
            return begin(self._connected())
        except ConnectionRefusedError:
            raise
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self.broken(f"The guest does not take commands ({error})") from error

    def write(self, path: str, data: bytes, mode: int = 0o600, owner: str = "root") -> None:
        """Write ``data`` to the absolute ``path``, at once and whole; the data never appears in arguments."""
        target = PurePosixPath(path)
        draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        names = f"parent={_q(target.parent)} target={_q(target)} draft={_q(draft)} owner={_q(owner)}"
        # The size is checked before the file takes its name: a connection that breaks looks like the end of the data.
        self.run(
            f"{names}\n"
            'umask 077 && mkdir -p -- "$parent" && trap \'rm -f -- "$draft"\' 0 && cat > "$draft" && '
            f'test "$(stat -c %s -- "$draft")" = {len(data)} && chown -- "$owner:" "$draft" && '
            f'chmod {mode:o} -- "$draft" && mv -fT -- "$draft" "$target"',
            input=data,
        )

    def open(self) -> None:
        """Open the connection unless it is open."""
        self._connected()

    def answers(self, limit: float) -> bool:
        """True when the guest, known by its host key, lets the host in within ``limit`` seconds."""
        try:
            self._connected(limit)
        except GuestUnreachable:
            return False
        return True

    def take_over(self, other: GuestShell) -> None:
        """Make the other's open connection this one's: the guest behind both is the same."""
        with other._lock:
            client, other._client = other._client, None
        with self._lock:
            self._client = client

    def broken(self, sentence: str) -> MachineError:
        """The error of a connection that broke: MachineLost where the machine's process has ended."""
        if self._is_alive():
            return GuestUnreachable(f"{sentence}; the machine runs, so it may answer later")
        return MachineLost(f"{sentence}; the machine's process has ended")

    def close(self) -> None:
        """Close the connection; the next use opens a new one."""
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _connected(self, limit: float | None = None) -> paramiko.Transport:
        with self._lock:
            transport = self._client.get_transport() if self._client else None
            if transport is None or not transport.is_active():
                if self._client is not None:
                    self._client.close()
                self._client = None
                self._client = self._open(limit or _CONNECT_SECONDS)
                transport = self._client.get_transport()
            if transport is None:
                raise GuestUnreachable("The guest closed the SSH connection; try again")
            return transport

    def _open(self, limit: float) -> paramiko.SSHClient:
        if not self._is_alive():
            raise MachineLost("The machine's process has ended; its serial console tells what happened")
        address = self._address()
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.load_host_keys(str(address.known_hosts))
        try:
            connection = socket.create_connection(("127.0.0.1", address.port), timeout=limit)
            # A message is small, and would wait for up to 40 ms for QEMU's side to acknowledge the one before it.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.connect(
                address.machine_id,
                username="root",
                pkey=paramiko.ECDSAKey.from_private_key_file(str(address.client_key)),
                sock=connection,
                timeout=limit,
                banner_timeout=limit,
                auth_timeout=limit,
                allow_agent=False,
                look_for_keys=False,
                transport_factory=_transport,
            )
        except (paramiko.SSHException, OSError, EOFError) as error:
            client.close()
            raise self.broken(f"The guest does not answer over SSH ({error or type(error).__name__})") from error
        transport = client.get_transport()
        if transport is not None:
            transport.set_keepalive(_KEEPALIVE_SECONDS)
        return client

    def _discard(self, transport: paramiko.Transport) -> None:
        with self._lock:
            if self._client is not None and self._client.get_transport() is transport:
                self._client.close()
                self._client = None


def wake(channel: paramiko.Channel, event: threading.Event) -> None:
    """Set the event whenever something comes over the channel, and at its end. Takes no file descriptor."""
    channel.in_buffer.set_event(event)


def _transport(
    sock: Any,
    /,
    *,
    disabled_algorithms: Mapping[str, Iterable[str]] | None = None,
    **_: object,
) -> paramiko.Transport:
    transport = Connection(sock, disabled_algorithms=disabled_algorithms)
    options = transport.get_security_options()
    options.kex = _KEY_EXCHANGE
    options.key_types = _HOST_KEYS
    options.ciphers = _CIPHERS
    options.digests = _MACS
    return transport


def execute(
    transport: paramiko.Transport, command: str, prepare: Callable[[paramiko.Channel], None] | None = None
) -> paramiko.Channel:
    """Start the command as ``GuestShell.stream`` does, within ``_CONNECT_SECONDS`` in all, over this connection alone.

    Raises SSHException, OSError, EOFError.
    """
    end = time.monotonic() + _CONNECT_SECONDS
    channel = transport.open_session(timeout=_CONNECT_SECONDS)
    limit_unread(channel)
    if prepare is not None:
        prepare(channel)
    # paramiko waits without limit for the guest to confirm the command; closing the channel ends that wait.
    watchdog = threading.Timer(_left(end), channel.close)
    watchdog.daemon = True
    watchdog.start()
    try:
        channel.exec_command(command)
    finally:
        watchdog.cancel()
    return channel


def _dial(transport: paramiko.Transport, address: str, port: int, window_bytes: int) -> paramiko.Channel:
    """Open the channel, within ``_DIAL_SECONDS``. Raises ConnectionRefusedError, GuestUnreachable."""
    end = time.monotonic() + _DIAL_SECONDS
    try:
        return transport.open_channel(
            "direct-tcpip",
            (address, port),
            ("127.0.0.1", 0),
            window_size=window_bytes,
            timeout=_DIAL_SECONDS,
        )
    except paramiko.ChannelException as error:
        if error.code == _OPEN_CONNECT_FAILED:
            raise ConnectionRefusedError(error.text) from error
        raise
    except paramiko.SSHException as error:
        if not transport.is_active():
            raise
        if not _left(end):
            # That is the port's doing, or a filter's before it: the guest serves others over this connection.
            raise GuestUnreachable(f"Port {port} in the machine took no connection in {_DIAL_SECONDS:g} s") from error
        # Of two refusals at once, paramiko remembers the reason of one alone.
        raise ConnectionRefusedError(str(error)) from error


def _drain(channel: paramiko.Channel, data: bytes | None, end: float) -> Completed:
    """Feed ``data`` and read both outputs until the command ends. Raises TimeoutError at ``end``."""
    if data:
        threading.Thread(target=_feed, args=(channel, data), daemon=True).start()
    else:
        # Here and now: one that is sent late would end the input of a later command, whose channel has this number.
        _feed(channel, b"")
    stdout, stderr = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        while True:
            over = channel.eof_received or channel.closed  # asked first: what came before the end is read below
            received = _receive(channel, stdout, stderr)
            if over and not received:
                break
            if not received and not selector.select(_left(end)):
                raise TimeoutError
    if not channel.status_event.wait(_left(end)):
        raise TimeoutError
    transport = channel.get_transport()
    if channel.exit_status == -1 and not transport.is_active():
        raise EOFError("the connection ended before the command")
    return Completed(channel.exit_status, bytes(stdout), bytes(stderr))


def _receive(channel: paramiko.Channel, stdout: bytearray, stderr: bytearray) -> bool:
    received = False
    if channel.recv_ready():
        stdout += channel.recv(_CHUNK)
        received = True
    if channel.recv_stderr_ready():
        stderr += channel.recv_stderr(_CHUNK)
        received = True
    if len(stdout) + len(stderr) > _OUTPUT_MAX:
        raise OSError("a command's output is larger than the host takes")
    return received


def _feed(channel: paramiko.Channel, data: bytes) -> None:
    # A command that does not read all of its input closes its side; its exit code says the rest.
    with contextlib.suppress(OSError, paramiko.SSHException, EOFError):
        channel.sendall(data)
        channel.shutdown_write()


def _q(value: object) -> str:
    return shlex.quote(str(value))


def _left(end: float) -> float:
    return max(0.0, end - time.monotonic())
