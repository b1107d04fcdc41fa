"""The network of a machine: what its guest reaches, and the part of QEMU's command line that makes it so.

Each guest is alone on a network of QEMU's user mode, whose addresses are the same for all (``guest.contract`` has
them): it never meets another guest, and no packet of the host's own network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from guest.contract import GUEST_ADDRESS, MODEL_GATEWAY_ADDRESS, MODEL_GATEWAY_PORT, SSH_PORT
from machines.hypervisor.handover import handover_command

Policy = Literal["isolated"]

_LOOPBACK = "127.0.0.1"
# What a guest reaches beside the model gateway. isolated: nothing, for its packets go nowhere.
_POLICIES: Mapping[Policy, tuple[str, ...]] = {"isolated": ("restrict=on", "ipv6=off")}
_FORWARDED = re.compile(
    rf"HOST_FORWARD\]\s+\d+\s+{re.escape(_LOOPBACK)}\s+(\d+)\s+{re.escape(GUEST_ADDRESS)}\s+{SSH_PORT}\b"
)


def backend(machine_id: str, policy: Policy = "isolated") -> tuple[str, ...]:
    """The parts of the argument of QEMU's ``-netdev``, without its id; commas in them are not yet doubled.

    The host enters by SSH over a port of loopback that QEMU chooses. A connection to the model gateway is handed to the
    worker by a program that ends with that: a guest keeps none of them running.
    """
    return (
        *_POLICIES[policy],
        f"hostfwd=tcp:{_LOOPBACK}:0-:{SSH_PORT}",
        f"guestfwd=tcp:{MODEL_GATEWAY_ADDRESS}:{MODEL_GATEWAY_PORT}-cmd:{handover_command(machine_id)}",
    )


def ssh_port(usernet: str) -> int | None:
    """The loopback port that leads to the guest's SSH, out of QEMU's own words (``info usernet``)."""
    match = _FORWARDED.search(usernet)
    return int(match[1]) if match else None
