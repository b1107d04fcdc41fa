"""`sandbox task port`: ports of a run's machine as ports of this computer."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import TaskId, asks_server, open_client
from foundation.errors import MachineUnavailable, UsageError

if TYPE_CHECKING:
    from cli.task.forwarding import Forward

_PORTS = re.compile(r"(?:(\d{0,5}):)?(\d{1,5})")
_LARGEST = 65535
_KEPT = "failed_preserved"


@asks_server
def port(
    ctx: typer.Context,
    task_id: TaskId,
    ports: Annotated[
        list[str],
        typer.Argument(
            metavar="[LOCAL:]PORT...",
            help="A port of the machine, with the local one before it; ':PORT' takes one that is free.",
            show_default=False,
        ),
    ],
    address: Annotated[
        str, typer.Option("--address", metavar="ADDRESS", help="Addresses to listen on, divided by commas.")
    ] = "127.0.0.1",
) -> None:
    """Reach ports in the machine of a run as ports of this computer, until Ctrl-C.

    A connection that fails is told, and the others go on.

    Example: sandbox task port 1ssrg4b-k3f9q 8080:80 5432
    """
    from cli.task.forwarding import forward
    from cli.task.inside import server_of

    forwards = [_forward(text) for text in ports]
    addresses = [each.strip() for each in address.split(",")]
    if not all(addresses):
        raise UsageError(f"'{address}' has no address between its commas.")
    with open_client(ctx) as client:
        task = client.get(task_id)
    if task.terminal and task.state != _KEPT:
        raise MachineUnavailable(f"Task '{task_id}' has ended ({task.state}); its machine is gone.")
    forward(server_of(ctx), task_id, forwards, addresses)


def _forward(text: str) -> Forward:
    from cli.task.forwarding import Forward

    found = _PORTS.fullmatch(text)
    if found is None:
        raise UsageError(f"'{text}' is not a port; write PORT, LOCAL:PORT or :PORT.")
    remote = int(found[2])
    local = remote if found[1] is None else int(found[1] or 0)
    if not 1 <= remote <= _LARGEST or local > _LARGEST:
        raise UsageError(f"'{text}' is not a port; ports are numbers from 1 to {_LARGEST}.")
    return Forward(local, remote)
