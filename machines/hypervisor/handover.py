"""The program that hands a guest's connection to the worker, as an argument of QEMU, which starts it."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

PERL = "perl"
# The number of the system call, which the program makes by it.
_SENDMSG = {"x86_64": 46, "aarch64": 211}
_SOURCE = Path(__file__).with_name("handover.pl")


def handover_command(machine_id: str, service: str) -> str:
    """A command line for QEMU, which parts it as a shell does. The program is in it: QEMU may read no file of ours.

    ``service`` is the socket that takes the connections, by its name in the socket directory.
    """
    return f"{PERL} -e '{_program()}' {machine_id} {service} {_SENDMSG[platform.machine()]}"


@cache
def _program() -> str:
    lines = (line.partition("#")[0].strip() for line in _SOURCE.read_text().splitlines())
    return " ".join(line for line in lines if line)
