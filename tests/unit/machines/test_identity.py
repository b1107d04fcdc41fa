"""A guest's identity: made once on the host, sent when the guest listens, answered by the guest."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from foundation.errors import MachineError
from machines.identity import (
    CLIENT_KEY,
    HOST_KEY,
    KNOWN_HOSTS,
    Introduction,
    clock_message,
    identity_message,
    make_keys,
)

ID = "vm-0123456789abcdef"


def test_keys_are_made_once_private_and_usable_by_openssh(tmp_path: Path) -> None:
    make_keys(tmp_path, ID)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    make_keys(tmp_path, ID)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o600}
    for name in (CLIENT_KEY, HOST_KEY):
        derived = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / name], capture_output=True, check=True).stdout
        assert derived.split()[:2] == first[f"{name}.pub"].split()[:2]
    known = subprocess.run(["ssh-keygen", "-F", ID, "-f", tmp_path / KNOWN_HOSTS], capture_output=True, check=True)
    assert first[f"{HOST_KEY}.pub"].split()[1] in known.stdout


def test_a_pair_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / CLIENT_KEY).write_text("half a key")
    make_keys(tmp_path, ID)
    assert (tmp_path / CLIENT_KEY).read_text().startswith("-----BEGIN OPENSSH PRIVATE KEY-----")


def fields_of(message: bytes) -> dict[str, str]:
    assert message.endswith(b"\0")
    assert message.count(b"\0") == 1
    return dict(part.split("=", 1) for part in message[:-1].decode().split("\t"))


def test_the_message_holds_what_makes_the_guest_itself(tmp_path: Path) -> None:
    make_keys(tmp_path, ID)
    fields = fields_of(identity_message(tmp_path, ID, 8 * 2**30))
    assert fields["hostname"] == ID
    assert len(fields["machine-id"]) == 32
    assert fields["host-key"] == (tmp_path / HOST_KEY).read_text()
    assert fields["authorized-keys"] == (tmp_path / f"{CLIENT_KEY}.pub").read_text()
    assert abs(float(fields["time"]) - time.time()) < 60
    assert len(bytes.fromhex(fields["seed"])) >= 64
    assert fields["grow"] == str(8 * 2**30)
    assert (tmp_path / CLIENT_KEY).read_text() not in fields.values()
    again = fields_of(identity_message(tmp_path, ID, 8 * 2**30))
    assert {name for name in fields if fields[name] != again[name]} == {"time", "seed", "boot-id"}


def test_a_guest_that_has_slept_is_given_the_time_and_a_seed_of_its_own() -> None:
    first, second = fields_of(clock_message()), fields_of(clock_message())
    assert first.keys() == {"time", "seed"}
    assert first["seed"] != second["seed"]


@contextmanager
def guest(path: Path, behave: Callable[[socket.socket], None]) -> Iterator[None]:
    """The guest's end of the port, which behaves so to whoever connects."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(10)


def answering(reply: bytes) -> Callable[[socket.socket], None]:
    def behave(connection: socket.socket) -> None:
        assert connection.recv(100) == b"message\0"
        connection.sendall(reply)

    return behave


def test_the_message_waits_until_the_guest_listens(tmp_path: Path) -> None:
    looks = iter([False, False, True])
    waited: list[bool] = []

    def already_known() -> bool:
        waited.append(True)
        return False

    with guest(tmp_path / "port", answering(b"ready\n")), Introduction(tmp_path / "port") as introduction:
        introduction.introduce(lambda: b"message\0", lambda: next(looks), already_known)
    assert len(waited) >= 2


@pytest.mark.parametrize(
    ("behave", "sentence"),
    [
        (answering(b"error set_keys: no space\n"), "error set_keys: no space"),
        (answering(b"\n"), "no reason given"),
        (lambda _: None, "closed the guest's identity port|connection to the guest's identity port failed"),
    ],
)
def test_what_goes_wrong_is_told(tmp_path: Path, behave: Callable[[socket.socket], None], sentence: str) -> None:
    with (
        guest(tmp_path / "port", behave),
        pytest.raises(MachineError, match=sentence),
        Introduction(tmp_path / "port") as introduction,
    ):
        introduction.introduce(lambda: b"message\0", lambda: True, lambda: False)


def test_a_guest_introduced_by_an_earlier_caller_is_enough(tmp_path: Path) -> None:
    over = threading.Event()
    with guest(tmp_path / "port", lambda _: over.wait(10) and None):
        with Introduction(tmp_path / "port") as introduction:
            introduction.introduce(lambda: b"message\0", lambda: False, lambda: True)
        over.set()


def test_a_port_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="identity port failed"):
        Introduction(tmp_path / "none")
