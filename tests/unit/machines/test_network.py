"""The network of a machine: its guest reaches two services and nothing else, and its host enters from loopback."""

from __future__ import annotations

from guest.contract import EGRESS_ADDRESS, GUEST_ADDRESS, MODEL_GATEWAY_ADDRESS
from machines.network import backend, ssh_port

ID = "vm-0123456789abcdef"


def test_a_guest_has_two_services_and_its_host_a_way_in_and_there_is_no_other_way() -> None:
    closed, no_ipv6, inwards, gateway, egress = backend(ID)
    assert (closed, no_ipv6) == ("restrict=on", "ipv6=off")
    assert inwards == "hostfwd=tcp:127.0.0.1:0-:22"
    assert gateway.startswith(f"guestfwd=tcp:{MODEL_GATEWAY_ADDRESS}:80-cmd:perl -e '")
    assert gateway.endswith(f"' {ID} guests.sock 46")
    assert egress.startswith(f"guestfwd=tcp:{EGRESS_ADDRESS}:3128-cmd:perl -e '")
    assert egress.endswith(f"' {ID} egress.sock 46")


def test_the_port_of_ssh_is_found_in_qemus_words() -> None:
    lines = [
        "Hub -1 (network):",
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ",
        "  TCP[HOST_FORWARD]  15       127.0.0.1 41953       10.0.2.15    80     0     0",
        f"  TCP[HOST_FORWARD]  14       127.0.0.1 36577       {GUEST_ADDRESS}    22     0     0",
        "  TCP[ESTABLISHED]   16       127.0.0.1 36578       10.0.2.15    22     0     0",
    ]
    assert ssh_port("\r\n".join(lines)) == 36577
    assert ssh_port("\r\n".join(lines[:3])) is None
