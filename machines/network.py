"""The network of a machine: what its guest reaches, and the part of QEMU's command line that makes it so.

Each guest is alone on a network of QEMU's user mode, whose addresses are the same for all (``guest.contract`` has
them): it never meets another guest, and no packet of the host's own network.
"""

from __future__ import annotations

import re

from guest.contract import (
    EGRESS_ADDRESS,
    EGRESS_PORT,
    GUEST_ADDRESS,
    MODEL_GATEWAY_ADDRESS,
    MODEL_GATEWAY_PORT,
    SSH_PORT,
)
from machines.hypervisor.handover import handover_command

#: The sockets in the socket directory at which a worker takes connections: to the model gateway, and to the way out.
GATEWAY_SOCKET = "guests.sock"
EGRESS_SOCKET = "egress.sock"

_LOOPBACK = "127.0.0.1"
_SERVICES = (
    (MODEL_GATEWAY_ADDRESS, MODEL_GATEWAY_PORT, GATEWAY_SOCKET),
    (EGRESS_ADDRESS, EGRESS_PORT, EGRESS_SOCKET),
)
_FORWARDED = re.compile(
    rf"HOST_FORWARD\]\s+\d+\s+{re.escape(_LOOPBACK)}\s+(\d+)\s+{re.escape(GUEST_ADDRESS)}\s+{SSH_PORT}\b"
)


def backend(machine_id: str) -> tuple[str, ...]:
    """The parts of the argument of QEMU's ``-netdev``, without its id; commas in them are not yet doubled.

    The same for every machine, whatever its task may reach: its packets go nowhere, and of the two services that it can
    connect to, the worker decides what each gives to whom. The host enters by SSH over a port of loopback that QEMU
    chooses. A connection to a service is handed to the worker by a program that ends with that: a guest keeps none of
    them running.
    """
    return (
        *("restrict=on", "ipv6=off"),
        f"hostfwd=tcp:{_LOOPBACK}:0-:{SSH_PORT}",
        *(
            f"guestfwd=tcp:{address}:{port}-cmd:{handover_command(machine_id, socket)}"
            for address, port, socket in _SERVICES
        ),
    )


def ssh_port(usernet: str) -> int | None:
    """The loopback port that leads to the guest's SSH, out of QEMU's own words (``info usernet``)."""
    match = _FORWARDED.search(usernet)
    return int(match[1]) if match else None
