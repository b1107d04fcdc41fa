"""Authorities that a guest is to trust: from the operator's file into the guest's store, once each."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from activities.machine.trust import host_authorities, trust
from foundation.errors import HostNotReady
from machines.ssh import Completed


def pem(word: str) -> str:
    return f"-----BEGIN CERTIFICATE-----\n{word}==\n-----END CERTIFICATE-----\n"


class Directory:
    """A guest's shell whose files lie below a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("etc/ssl/certs", "usr/local/share"):
            (root / name).mkdir(parents=True)
        (root / "etc/ssl/certs/ca-certificates.crt").write_text(pem("Known"))
        (root / "etc/environment").write_text("HTTP_PROXY=http://proxy.example.org\n")

    def run(self, command: str, *, input: bytes) -> Completed:  # noqa: A002 -- as the guest's shell has it
        for place in ("/etc/", "/usr/"):
            command = command.replace(f'"{place}', f'"{self.root}{place}')
        done = subprocess.run(["sh", "-c", command], input=input, capture_output=True, check=True)
        return Completed(done.returncode, done.stdout, done.stderr)

    def text(self, name: str) -> str:
        return (self.root / name).read_text()


def test_what_the_guest_does_not_know_is_added_once(tmp_path: Path) -> None:
    guest = Directory(tmp_path)
    for _ in range(2):
        trust(guest, ("# a comment\n" + pem("Known") + pem("One") + pem("Two")).encode())  # type: ignore[arg-type]
    trust(guest, pem("Three").encode())  # type: ignore[arg-type]
    added = pem("One") + pem("Two") + pem("Three")
    assert guest.text("etc/ssl/certs/ca-certificates.crt") == pem("Known") + added
    assert guest.text("etc/ssl/taskyard.pem") == added
    # Where update-ca-certificates takes its own from, and Java's keystore is made of.
    sources = tmp_path / "usr/local/share/ca-certificates"
    assert {path.name: path.read_text() for path in sources.iterdir()} == {
        "taskyard-1.crt": pem("One"),
        "taskyard-2.crt": pem("Two"),
        "taskyard-3.crt": pem("Three"),
    }
    assert (tmp_path / "etc/ssl/certs/taskyard-3.pem").read_text() == pem("Three")
    names = [line.partition("=")[0] for line in guest.text("etc/environment").splitlines()]
    assert names == ["HTTP_PROXY", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT"]


def test_a_guest_that_knows_them_all_is_left_as_it_is(tmp_path: Path) -> None:
    guest = Directory(tmp_path)
    trust(guest, pem("Known").encode())  # type: ignore[arg-type]
    assert guest.text("etc/environment").count("\n") == 1
    assert not (tmp_path / "etc/ssl/taskyard.pem").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read"), ("no certificate", "no PEM file"), (pem("A" * 2**20), "at most 1 MiB")],
    ids=["missing", "something else", "too large"],
)
def test_a_file_that_is_none_of_certificates_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    path = tmp_path / "extra.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(HostNotReady, match=problem) as error:
        host_authorities(path)
    assert str(path) in str(error.value)


def test_the_operators_file_is_taken_whole(tmp_path: Path) -> None:
    path = tmp_path / "extra.pem"
    path.write_text(pem("One"))
    assert (host_authorities(path), host_authorities(None)) == (pem("One").encode(), None)
