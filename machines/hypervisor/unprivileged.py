"""What a machine's QEMU may do on its host: nothing that needs a privilege, as a user of its own if started by root."""

from __future__ import annotations

import hashlib
import os
import resource
from contextlib import suppress
from pathlib import Path

# Beyond the ids of people, of packages, of systemd's services and of containers; no account has to be made for one.
_FIRST, _COUNT = 0x70000000, 2**24
_NOBODY = 65534
# Threads count: those of QEMU's processors, its block I/O (64 at most) and the programs that it starts.
_PROCESSES = 512


def machine_user(machine_id: str) -> int | None:
    """User and group id for a machine's process; None when this process is not root, and has nothing to give up."""
    if os.geteuid() != 0:
        return None
    digest = hashlib.sha256(machine_id.encode()).digest()
    user = _FIRST + int.from_bytes(digest[:4]) % _COUNT
    # In a container that has a few ids only, all machines share one.
    return user if _exists(user) else _NOBODY


def is_machine_user(user: int) -> bool:
    """True for an id that machines of root run as."""
    return os.geteuid() == 0 and (user == _NOBODY or _FIRST <= user < _FIRST + _COUNT)


def without_privileges(*also: str) -> list[str]:
    """The start of a command line whose program has no capability but those that it needs until it changes its user."""
    if os.geteuid() != 0:
        return ["setpriv", "--no-new-privs", "--inh-caps", "-all", *also, "--"]
    kept = "-all,+setuid,+setgid,+dac_override"
    return ["setpriv", "--no-new-privs", "--inh-caps", "-all", "--bounding-set", kept, *also, "--"]


def limit_processes(process: int, machine_id: str) -> None:
    """Limit what a machine's process may start, if it has a user of its own: by that user they are counted."""
    if machine_user(machine_id) not in {None, _NOBODY}:
        with suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_NPROC, (_PROCESSES, _PROCESSES))


def _exists(user: int) -> bool:
    """Whether the kernel has the id in this process's user namespace."""
    spans = (line.split() for line in Path("/proc/self/uid_map").read_text().splitlines())
    return any(int(first) <= user < int(first) + int(count) for first, _, count in spans)
