"""The commands `sandbox machine`: list, enter, end and examine the machines of this host."""

from __future__ import annotations

import json
import os
import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli.config import Format

if TYPE_CHECKING:
    from machines.host import MachineHost, MachineRecord

app = typer.Typer(help="List, enter and end the machines of this host.", no_args_is_help=True)

_WIDTH = 200

MachineId = Annotated[str, typer.Argument(metavar="ID", help="Machine id, such as vm-0123456789abcdef.")]


@app.command("list")
def list_machines(
    output: Annotated[Format, typer.Option("--format", help="How to print: text or json.")] = Format.TEXT,
) -> None:
    """List the machines of this host, oldest first."""
    host = _host()
    records = host.records()
    alive = {record.id: host.is_alive(record.id) for record in records}
    if output is Format.JSON:
        rows = [{**record.model_dump(mode="json"), "alive": alive[record.id]} for record in records]
        typer.echo(json.dumps(rows, indent=2))
        return
    if not records:
        typer.echo("No machines on this host.")
        return
    from rich.console import Console
    from rich.table import Table

    from foundation.units import format_size

    table = Table("ID", "STATE", "PROCESS", "CPUS", "MEMORY", "AGE", "ENDS IN", "OWNER", box=None, pad_edge=False)
    for record in records:
        process = f"pid {record.pid}" if alive[record.id] else _without_process(record)
        age, left = _span(datetime.now(UTC) - record.created_at), _span(record.deadline - datetime.now(UTC))
        memory = format_size(record.memory_bytes)
        table.add_row(record.id, record.state, process, str(record.cpus), memory, age, left, record.owner_workflow)
    # Ids and owners are copied from here: no line is cut to the terminal's width.
    Console(highlight=False, width=_WIDTH).print(table)


@app.command("ssh")
def enter(
    machine_id: MachineId,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run there instead of a shell.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the ssh command instead of running it.")] = False,
) -> None:
    """Enter a machine as the user agent, who may use sudo."""
    arguments = [*_host().ssh_arguments(machine_id), *(command or [])]
    if show:
        typer.echo(shlex.join(arguments))
        return
    os.execvp(arguments[0], arguments)  # noqa: S606 -- ssh takes this process's place, and with it the terminal


@app.command("destroy")
def destroy(
    machine_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Machine ids.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Destroy every machine of this host.")] = False,
) -> None:
    """End machines and remove their disks; a run that still uses one fails."""
    from foundation.errors import InvalidParameter

    if bool(machine_ids) == everything:
        raise InvalidParameter("Name the machines to destroy, or give --all")
    host = _host()
    if not everything:
        for machine_id in machine_ids or []:
            host.record(machine_id)  # all of them exist, or none is touched
    for machine_id in machine_ids or [record.id for record in host.records()]:
        host.destroy(machine_id)
        typer.echo(f"{machine_id} destroyed")


@app.command("log")
def log(machine_id: MachineId) -> None:
    """Print a machine's serial console: what its kernel and its start-up said."""
    from cli.render import clean

    path = _host().console(machine_id)
    if not path.exists() or path.stat().st_size == 0:
        typer.echo("The serial console is empty.", err=True)
        return
    with path.open(errors="replace") as console:
        for line in console:
            typer.echo(clean(line.rstrip("\n")))


def _host() -> MachineHost:
    from foundation.settings import Settings
    from machines.host import MachineHost

    return MachineHost(Settings())


def _without_process(record: MachineRecord) -> str:
    return "none yet" if record.state == "reserved" else "ended"


def _span(span: timedelta) -> str:
    from foundation.units import format_seconds

    return format_seconds(span.total_seconds()) if span.total_seconds() > 0 else "now"
