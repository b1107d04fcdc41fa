"""What makes a guest itself: its key pairs, made on the host, and the line that gives it its identity at boot.

The image holds no host key and no machine id. The guest waits for one line on a virtio serial port before it opens
SSH, so the host knows the guest's host key in advance, and machines of one image (or of one snapshot of it) share
nothing.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import os
import secrets
import socket
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from foundation.errors import MachineError

CLIENT_KEY = "client_ed25519"
HOST_KEY = "host_ed25519"
KNOWN_HOSTS = "known_hosts"
PORT_NAME = "org.taskyard.identity"
_SEED_BYTES = 128
_ANSWER_MAX = 4096
_POLL_SECONDS = 0.25


def make_keys(directory: Path, machine_id: str) -> None:
    """Make the machine's client and host key pairs and its known_hosts file in ``directory``; keeps what is there."""
    for name in (CLIENT_KEY, HOST_KEY):
        if (directory / f"{name}.pub").exists():
            continue
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        _write(directory / name, private)
        _write(directory / f"{name}.pub", public + f" {machine_id}\n".encode())  # last: it says that both are whole
    host_key = (directory / f"{HOST_KEY}.pub").read_text().split()
    # Under the machine's id, not its address: the forwarded port is QEMU's choice at each start.
    _write(directory / KNOWN_HOSTS, f"{machine_id} {host_key[0]} {host_key[1]}\n".encode())


def identity_line(directory: Path, machine_id: str) -> bytes:
    """The line that the guest waits for: base64 of a gzip tar of its name, keys, the time and a random seed."""
    host_public = (directory / f"{HOST_KEY}.pub").read_bytes()
    authorized = (directory / f"{CLIENT_KEY}.pub").read_bytes()
    files = {
        "hostname": f"{machine_id}\n".encode(),
        "machine-id": f"{hashlib.sha256(host_public).hexdigest()[:32]}\n".encode(),
        "ssh_host_ed25519_key": (directory / HOST_KEY).read_bytes(),
        "ssh_host_ed25519_key.pub": host_public,
        "authorized_keys": authorized,
        "authorized_keys.agent": authorized,
        "time": f"{time.time():.6f}\n".encode(),
        "seed": secrets.token_bytes(_SEED_BYTES),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o600
            archive.addfile(member, io.BytesIO(data))
    return base64.b64encode(gzip.compress(buffer.getvalue(), mtime=0)) + b"\n"


def introduce(
    port: Path, line: Callable[[], bytes], listening: Callable[[], bool], already_known: Callable[[], bool]
) -> None:
    """Give the guest its identity over the unix socket ``port`` and return when it has answered ``ready``.

    ``listening`` says whether the guest has the port open: ``line`` is made and sent only then, so that its time is
    fresh. ``already_known`` is called several times a second: it raises to give up, and gives True when the guest is
    seen to have its identity from an earlier caller. Raises MachineError when the guest answers with an error or
    QEMU closes the connection.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(str(port))
            answer = _converse(connection, line, listening, already_known)
        except OSError as error:
            raise MachineError(f"The connection to the guest's identity port failed ({error})") from error
    if answer not in {"ready", None}:
        raise MachineError(f"The guest could not take on its identity: {answer or 'no reason given'}")


def _converse(
    connection: socket.socket,
    line: Callable[[], bytes],
    listening: Callable[[], bool],
    already_known: Callable[[], bool],
) -> str | None:
    sent = False
    answer = b""
    while b"\n" not in answer and len(answer) < _ANSWER_MAX:
        if not sent and listening():
            connection.settimeout(None)
            connection.sendall(line())
            sent = True
        connection.settimeout(_POLL_SECONDS)
        try:
            received = connection.recv(_ANSWER_MAX)
        except TimeoutError:
            if already_known():
                return None
            continue
        if not received:
            raise MachineError("QEMU closed the guest's identity port; it has ended")
        answer += received
    return answer.partition(b"\n")[0].decode(errors="replace").strip()


def _write(path: Path, data: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    draft.replace(path)
