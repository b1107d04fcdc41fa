"""Connections to ports inside a guest: each is a channel of the machine's one SSH connection."""

from __future__ import annotations

from collections.abc import Callable

import paramiko

from foundation.errors import InvalidParameter, MachineError, PortRefused
from guest.contract import GUEST_ADDRESS, REDIRECT_PORT, SSH_PORT
from machines.processes.channel import watch
from machines.ssh import GuestShell

# Where a program of the guest may listen, the likeliest first: for all, for the loopback of either kind, for its
# network's address alone.
_ADDRESSES = ("127.0.0.1", "::1", GUEST_ADDRESS)
# By the first the host enters, and whoever holds its connections keeps the host out; the second is the guest's own way
# to the egress proxy, which takes nobody but programs of the guest.
_OURS = {SSH_PORT: "by which Taskyard itself enters", REDIRECT_PORT: "of the machine's own redirect"}
_LARGEST = 65535
# What the guest may send before it is read, and what of it is more than it was allowed.
_WINDOW_BYTES = 512 * 1024
_FLOOD_BYTES = 2 * _WINDOW_BYTES
_READ_BYTES = 256 * 1024
# No more than that is sent at a time.
_PACKET_BYTES = 32 * 1024


class GuestPort:
    """One connection to a port of a guest: two ways, each of which ends by itself.

    No method waits for the program in the guest, nor for the other way; ``receive``, ``send``, ``end`` and ``close``
    wait for the SSH connection, so they are for threads. They raise MachineLost and GuestUnreachable when that breaks.
    """

    def __init__(self, channel: paramiko.Channel, shell: GuestShell) -> None:
        self._channel = channel
        self._shell = shell

    def notify(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever something has come, there is room again, or the other side has ended.

        It is called in the connection's own thread, which must not wait.
        """
        watch(self._channel, call)

    @property
    def readable(self) -> bool:
        """Whether ``receive`` has something to give, if only the end."""
        return self._channel.recv_ready() or bool(self._channel.eof_received) or self._channel.closed

    @property
    def writable(self) -> bool:
        """Whether ``send`` would take something now."""
        return self._channel.send_ready()

    @property
    def closed(self) -> bool:
        """Whether the other side is gone altogether: it sends nothing more, and takes nothing."""
        return self._channel.closed

    @property
    def unread(self) -> int:
        """How many bytes ``receive`` could give."""
        return len(self._channel.in_buffer)

    @property
    def flooded(self) -> bool:
        """Whether the guest has sent more than it was allowed to, which no SSH server of honest make does."""
        return self.unread > _FLOOD_BYTES

    def receive(self) -> bytes:
        """What has come, or empty at the end of it; only while ``readable``."""
        try:
            data: bytes = self._channel.recv(_READ_BYTES)
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._broken() from error
        if not data and not self._channel.eof_received and not self._channel.get_transport().is_active():
            raise self._broken()
        return data

    def send(self, data: bytes) -> int:
        """Send as much as the guest takes now; how much that was. What a guest that is gone would get is dropped."""
        sent = 0
        try:
            while sent < len(data) and self._channel.send_ready():
                taken = self._channel.send(data[sent : sent + _PACKET_BYTES])
                if not taken:
                    return len(data)
                sent += taken
        except (paramiko.SSHException, OSError, EOFError) as error:
            if not self._channel.get_transport().is_active():
                raise self._broken() from error
            return len(data)
        return sent

    def end(self) -> None:
        """Tell the program in the guest that nothing more comes; what it sends is still received."""
        try:
            self._channel.shutdown_write()
        except (paramiko.SSHException, OSError, EOFError) as error:
            raise self._broken() from error

    def close(self) -> None:
        """End both ways."""
        self._channel.close()

    def _broken(self) -> MachineError:
        return self._shell.broken("The connection to the guest broke")


def open_port(shell: GuestShell, port: int) -> GuestPort:
    """Connect to the port, at whichever of the guest's own addresses a program listens.

    Raises PortRefused when none does, InvalidParameter for a port that is Taskyard's own, MachineLost,
    GuestUnreachable.
    """
    check_port(port)
    for address in _ADDRESSES:
        try:
            return GuestPort(shell.dial(address, port, _WINDOW_BYTES), shell)
        except ConnectionRefusedError:
            continue
    raise PortRefused(f"Nothing listens on port {port} in the machine; start a server there, and try again", port=port)


def check_port(port: int) -> None:
    """Return when the port is one that may be connected to. Raises InvalidParameter."""
    if not 1 <= port <= _LARGEST:
        raise InvalidParameter(f"{port} is no port; one is a number from 1 to {_LARGEST}")
    if port in _OURS:
        raise InvalidParameter(f"Port {port} in a machine is that {_OURS[port]}; connect to another one")
