"""`sandbox task network`: what a run's machine may reach and has asked for, and how that is changed."""

from __future__ import annotations

from typing import Annotated

import typer

from cli import completion
from cli.options import OutputFormat, TaskId, asks_server, format_of, open_client, print_data, writes_data

_MODES = ("isolated", "outbound", "full")


@asks_server
@writes_data
def network(
    ctx: typer.Context,
    task_id: TaskId,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="HOST", help="Rule to add: name, *.name, name:port. May be repeated."),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="HOST", help="Rule to remove, as it stands. May be repeated."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="isolated, outbound or full.", autocompletion=completion.words(*_MODES)),
    ] = None,
) -> None:
    """Show what a run's machine may reach and has asked for; with options, change it first.

    A change is in force when the command ends, and cuts open connections to what is no longer allowed. Before there
    is a machine, it is what the machine starts with.

    Example: sandbox task network 1ssrg4b-k3f9q --allow api.example.org --remove old.example.org
    """
    from cli.task.view import print_network
    from client import RunNetwork

    with open_client(ctx) as client:
        if allow or remove or mode:
            reply = client.change_network_raw(task_id, allow=allow or (), remove=remove or (), mode=mode)
        else:
            reply = client.network_raw(task_id)
    written = format_of(ctx, OutputFormat.TEXT)
    if not print_data(reply, written):
        print_network(RunNetwork.model_validate(reply), written)
