"""What makes a guest itself: its key pairs, made on the host, and the message that gives it its identity at boot.

The image holds no host key and no machine id. The guest waits for one message on a virtio serial port before it opens
SSH, so the host knows the guest's host key in advance, and machines of one image (or of one snapshot of it) share
nothing.
"""

from __future__ import annotations

import hashlib
import math
import secrets
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foundation.durable import write_whole
from foundation.errors import MachineError
from guest.contract import FIELD_SEPARATOR, MESSAGE_END, READY

CLIENT_KEY = "client_key"
HOST_KEY = "host_key"
KNOWN_HOSTS = "known_hosts"
_SEED_BYTES = 128
_ANSWER_MAX = 4096
_POLL_SECONDS = 0.25
_SEND_SECONDS = 10.0


def make_keys(directory: Path, machine_id: str) -> None:
    """Make the machine's client and host key pairs and its known_hosts file in ``directory``; keeps what is there."""
    for name in (CLIENT_KEY, HOST_KEY):
        if (directory / f"{name}.pub").exists():
            continue
        # OpenSSL is quick with these; sshd's own Ed25519 is portable code: a tenth of a second more when emulated.
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        write_whole(directory / name, private)
        # Last: it says that both are whole.
        write_whole(directory / f"{name}.pub", public + f" {machine_id}\n".encode())
    host_key = (directory / f"{HOST_KEY}.pub").read_text().split()
    # Under the machine's id, not its address: the forwarded port is QEMU's choice at each start.
    write_whole(directory / KNOWN_HOSTS, f"{machine_id} {host_key[0]} {host_key[1]}\n".encode())


def identity_message(directory: Path, machine_id: str, disk_bytes: int) -> bytes:
    """What makes a guest a machine: its name, its keys, who may enter, the time and a random seed.

    Some time after its answer the guest grows its root file system to ``disk_bytes``, once the disk is so large.
    """
    host_public = (directory / f"{HOST_KEY}.pub").read_bytes()
    return _message(
        {
            "hostname": machine_id,
            "machine-id": hashlib.sha256(host_public).hexdigest()[:32],
            "boot-id": str(uuid.uuid4()),
            "authorized-keys": (directory / f"{CLIENT_KEY}.pub").read_text(),
            "host-key": (directory / HOST_KEY).read_text(),
            "grow": str(disk_bytes),
        }
    )


def name_message(machine_id: str, disk_bytes: int) -> bytes:
    """Gives a guest another name, the time, a random seed and the size that its root file system is to have."""
    return _message({"hostname": machine_id, "grow": str(disk_bytes)})


def clock_message() -> bytes:
    """Gives a guest that has slept the time and a random seed."""
    return _message({})


def _message(fields: Mapping[str, str]) -> bytes:
    """Fields, name=value, parted by tabs and ended by a zero byte: no value has either."""
    whole = {"time": f"{time.time():.6f}", "seed": secrets.token_hex(_SEED_BYTES), **fields}
    return (FIELD_SEPARATOR.join(f"{name}={value}" for name, value in whole.items()) + MESSAGE_END).encode()


class Introduction:
    """One conversation with the guest's identity service over the unix socket ``port``; a context manager.

    Every method raises MachineError when the guest answers with an error or QEMU closes the connection.
    """

    def __init__(self, port: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._answer = b""
        try:
            self._socket.connect(str(port))
        except OSError as error:
            self._socket.close()
            raise _failed(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def introduce(
        self, message: Callable[[], bytes], listening: Callable[[], bool], already_known: Callable[[], object]
    ) -> None:
        """Send ``message`` and return when the guest is ready.

        ``listening`` says whether the guest has the port open: ``message`` is made and sent only then, so that its time
        is fresh. ``already_known`` is called several times a second: it raises to give up, and gives True when the
        guest is seen to have its identity from an earlier caller.
        """
        while not listening():
            if self._answered(already_known):
                return
        self.send(message())
        self.wait(already_known)

    def send(self, message: bytes) -> None:
        """Send one message. QEMU takes as much of it as the guest reads."""
        self._socket.settimeout(_SEND_SECONDS)
        try:
            self._socket.sendall(message)
        except OSError as error:
            raise _failed(error) from error

    def wait(self, meanwhile: Callable[[], object], limit: float = math.inf) -> None:
        """Return when the guest is ready, or after ``limit`` seconds; ``meanwhile`` as ``already_known`` above."""
        end = time.monotonic() + limit
        while not self._answered(meanwhile) and time.monotonic() < end:
            pass

    def _answered(self, meanwhile: Callable[[], object]) -> bool:
        """Wait a moment for the answer to a message; True when the guest is ready or ``meanwhile`` says that it is."""
        self._socket.settimeout(_POLL_SECONDS)
        try:
            received = self._socket.recv(_ANSWER_MAX)
        except TimeoutError:
            return bool(meanwhile())
        except OSError as error:
            raise _failed(error) from error
        if not received:
            raise MachineError("QEMU closed the guest's identity port; it has ended")
        self._answer += received
        if b"\n" not in self._answer and len(self._answer) < _ANSWER_MAX:
            return False
        line, _, self._answer = self._answer.partition(b"\n")
        answer = line.decode(errors="replace").strip()
        if answer != READY:
            raise MachineError(f"The guest could not take on its identity: {answer or 'no reason given'}")
        return True


def _failed(error: OSError) -> MachineError:
    return MachineError(f"The connection to the guest's identity port failed ({error})")
