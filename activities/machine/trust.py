"""The authorities that a guest trusts beside those of its image: its host's, and its machine's own."""

from __future__ import annotations

from pathlib import Path

from foundation.errors import HostNotReady
from guest.programs import perl_command
from machines.ssh import GuestShell

_MAX_BYTES = 2**20
_BEGIN = b"-----BEGIN CERTIFICATE-----"


def trust(shell: GuestShell, pem: bytes) -> None:
    """Make the guest trust the authorities of ``pem`` (PEM certificates, one or many); twice is once.

    They are in the system's store, and in variables for programs that have one of their own, of which an agent that is
    started later and every later login know. May raise MachineError, GuestUnreachable, MachineLost.
    """
    shell.run(perl_command("trust"), input=pem)


def host_authorities(path: Path | None) -> bytes | None:
    """The PEM certificates of the setting ``guest_certificates``; None when it is not set. Raises HostNotReady."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise HostNotReady(
            f"The certificates of TASKYARD_GUEST_CERTIFICATES cannot be read ({path}: {error.strerror}); "
            "name another file, or unset it"
        ) from error
    if len(pem) > _MAX_BYTES or _BEGIN not in pem:
        raise HostNotReady(
            f"TASKYARD_GUEST_CERTIFICATES names {path}, which is no PEM file of certificates of at most 1 MiB; "
            "name another one, or unset it"
        )
    return pem
