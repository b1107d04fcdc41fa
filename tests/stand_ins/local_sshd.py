"""An SSH server on loopback that runs commands as processes of this host, as a guest's runs them in the guest.

It is paramiko's own other side: windows, terminals, variables, exit codes and signals go over a real connection. What
it has of a guest is below ``root``: commands have their control groups there, as plain directories.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import signal
import socket
import struct
import subprocess
import termios
import threading
from pathlib import Path
from typing import Any

import paramiko
from paramiko.common import cMSG_CHANNEL_REQUEST
from paramiko.message import Message

from machines.ssh import GuestAddress, GuestShell

_CHUNK = 32768
_KILL = (
    'if ($_[0] =~ m{(.*)/cgroup.kill$}) { kill KILL => map { -$_ } map { lines("$_/cgroup.procs") } $1, glob "$1/*" }'
)


class LocalGuestServer:
    """The server; ``shell`` is a way into it. Killing its ``processes`` is as if a machine had died."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.groups = root / "groups"
        self.places = root / "places"
        self.groups.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.alive = True
        self._key = paramiko.ECDSAKey.generate()
        client = root / "client-key"
        paramiko.ECDSAKey.generate().write_private_key_file(str(client))
        self._listener = socket.create_server(("127.0.0.1", 0))
        port = self._listener.getsockname()[1]
        hosts = root / "known-hosts"
        hosts.write_text(f"guest {self._key.get_name()} {self._key.get_base64()}\n")
        self.shell = GuestShell(lambda: GuestAddress("guest", port, client, hosts), lambda: self.alive)
        self._transports: list[paramiko.Transport] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        """End it, and all that runs in it."""
        self.alive = False
        self.shell.close()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._accepting.join()
        self.cut()
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def cut(self) -> None:
        """Break every connection."""
        for transport in self._transports:
            transport.close()
            transport.join(10)

    def command(self, text: str) -> str:
        """What runs here in the place of a guest's command: a group is the process group of the first process in it."""
        text = text.replace("/run/taskyard-attached", str(self.places))
        text = text.replace("/sys/fs/cgroup/taskyard", str(self.groups)).replace(
            'cgroup.procs", "0")', 'cgroup.procs", $$)'
        )
        return text.replace("sub put {", f"sub put {{ {_KILL}") if "cgroup.kill" in text else text

    def _accept(self) -> None:
        while self.alive:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            transport = paramiko.Transport(connection)
            transport.add_server_key(self._key)
            self._transports.append(transport)
            transport.start_server(server=_Session(self), event=threading.Event())


class _Session(paramiko.ServerInterface):
    def __init__(self, guest: LocalGuestServer) -> None:
        self._guest = guest
        self._environments: dict[int, dict[bytes, bytes]] = {}
        self._terminals: dict[int, tuple[int, int]] = {}

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:  # noqa: ARG002 -- paramiko's signature
        return paramiko.AUTH_SUCCESSFUL

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002 -- as above
        return paramiko.OPEN_SUCCEEDED if kind == "session" else paramiko.OPEN_FAILED_UNKNOWN_CHANNEL_TYPE

    def check_channel_env_request(self, channel: paramiko.Channel, name: bytes, value: bytes) -> bool:
        self._environments.setdefault(channel.get_id(), {})[name] = value
        return True

    def check_channel_pty_request(
        self,
        channel: paramiko.Channel,
        term: bytes,  # noqa: ARG002 -- as above
        width: int,
        height: int,
        *_: Any,
    ) -> bool:
        self._terminals[channel.get_id()] = ends = pty.openpty()
        _resize(ends[0], width, height)
        return True

    def check_channel_window_change_request(self, channel: paramiko.Channel, width: int, height: int, *_: Any) -> bool:
        _resize(self._terminals[channel.get_id()][0], width, height)
        return True

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        run = self._guest.command(command.decode())
        environment = {b"PATH": os.environb[b"PATH"], **self._environments.get(channel.get_id(), {})}
        threading.Thread(target=self._run, args=(channel, run, environment), daemon=True).start()
        return True

    def _run(self, channel: paramiko.Channel, command: str, environment: dict[bytes, bytes]) -> None:
        ends = self._terminals.get(channel.get_id())
        if ends:
            own, its = ends
            process = subprocess.Popen(
                ["sh", "-c", command], stdin=its, stdout=its, stderr=its, env=environment, start_new_session=True,
                preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 -- as sshd does it
            )  # fmt: skip
            os.close(its)
            readers, writer = [(own, channel.sendall)], own
        else:
            process = subprocess.Popen(
                ["sh", "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=environment, start_new_session=True,
            )  # fmt: skip
            assert process.stdin
            assert process.stdout
            assert process.stderr
            writer = process.stdin.fileno()
            readers = [(process.stdout.fileno(), channel.sendall), (process.stderr.fileno(), channel.sendall_stderr)]
        self._guest.processes.append(process)
        threading.Thread(target=_feed, args=(channel, process, writer, bool(ends)), daemon=True).start()
        copying = [threading.Thread(target=_copy, args=reader, daemon=True) for reader in readers]
        for thread in copying:
            thread.start()
        code = process.wait()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if code < 0:
                _say_signal(channel, signal.Signals(-code).name.removeprefix("SIG"))
            else:
                channel.send_exit_status(code)
        for thread in copying:
            thread.join()
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            channel.close()


def _copy(source: int, send: Any) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := os.read(source, _CHUNK):
            send(data)


def _feed(channel: paramiko.Channel, process: subprocess.Popen[bytes], target: int, terminal: bool) -> None:
    with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
        while data := channel.recv(_CHUNK):
            while data:
                data = data[os.write(target, data) :]
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()
    if terminal:
        process.wait()
        os.close(target)


def _resize(terminal: int, width: int, height: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))


def _say_signal(channel: paramiko.Channel, name: str) -> None:
    message = Message()
    message.add_byte(cMSG_CHANNEL_REQUEST)
    message.add_int(channel.remote_chanid)
    message.add_string("exit-signal")
    message.add_boolean(False)
    message.add_string(name)
    message.add_boolean(False)
    message.add_string("")
    message.add_string("")
    channel.get_transport()._send_user_message(message)
