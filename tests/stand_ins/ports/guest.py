"""A guest that is an SSH server of this process: connections to its ports go to those of this host's loopback."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import paramiko

from machines.ssh import GuestAddress, GuestShell

MACHINE = "vm-00000000000000aa"
_CHUNK = 64 * 1024


class SshGuest:
    """The server; ``shell`` leads into it. ``forwards`` is false for a guest that lets nobody connect."""

    def __init__(self, directory: Path) -> None:
        self.forwards = True
        self._host_key = paramiko.ECDSAKey.generate()
        self._client_key = directory / "client-key"
        paramiko.ECDSAKey.generate().write_private_key_file(str(self._client_key))
        self._known_hosts = directory / "known_hosts"
        self._known_hosts.write_text(f"{MACHINE} {self._host_key.get_name()} {self._host_key.get_base64()}\n")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._transports: list[paramiko.Transport] = []
        self.shell = GuestShell(self._address, lambda: True)

    def __enter__(self) -> Self:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shell.close()
        self.cut()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self) -> None:
        """Break every connection off."""
        for transport in self._transports:
            transport.close()
            transport.join()

    def _address(self) -> GuestAddress:
        return GuestAddress(MACHINE, self._listener.getsockname()[1], self._client_key, self._known_hosts)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                transport = paramiko.Transport(connection)
                transport.add_server_key(self._host_key)
                self._transports.append(transport)
                interface = _Interface(self)
                with suppress(EOFError, paramiko.SSHException):
                    transport.start_server(server=interface)
                    threading.Thread(target=self._take, args=(transport, interface), daemon=True).start()

    def _take(self, transport: paramiko.Transport, interface: _Interface) -> None:
        while transport.is_active():
            if (channel := transport.accept(0.1)) is not None:
                remote = interface.sockets.pop(channel.get_id())
                threading.Thread(target=_relay, args=(channel, remote), daemon=True).start()


class _Interface(paramiko.ServerInterface):
    def __init__(self, guest: SshGuest) -> None:
        self._guest = guest
        self.sockets: dict[int, socket.socket] = {}

    def get_allowed_auths(self, username: str) -> str:  # noqa: ARG002 -- the library's signature
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_direct_tcpip_request(self, chanid: int, origin: object, to: tuple[str, int]) -> int:  # noqa: ARG002
        if not self._guest.forwards:
            return paramiko.OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED
        try:
            # Not what listens on this host's other addresses.
            remote = socket.create_connection(to if to[0] == "127.0.0.1" else ("127.0.0.1", 1))
        except OSError:
            return paramiko.OPEN_FAILED_CONNECT_FAILED
        self.sockets[chanid] = remote
        return paramiko.OPEN_SUCCEEDED


def _relay(channel: paramiko.Channel, remote: socket.socket) -> None:
    back = threading.Thread(target=_copy_back, args=(remote, channel), daemon=True)
    back.start()
    with suppress(OSError):
        while data := channel.recv(_CHUNK):
            remote.sendall(data)
        remote.shutdown(socket.SHUT_RDWR if channel.closed else socket.SHUT_WR)
    back.join()
    channel.close()
    remote.close()


def _copy_back(remote: socket.socket, channel: paramiko.Channel) -> None:
    with suppress(OSError):
        while data := remote.recv(_CHUNK):
            channel.sendall(data)
        channel.shutdown_write()
