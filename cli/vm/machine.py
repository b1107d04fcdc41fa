"""The commands `sandbox machine`: list, enter, keep, end and examine the machines of this host, by id or by run."""

from __future__ import annotations

import os
import shlex
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli import completion
from cli.options import OutputFormat, format_of, print_data, writes_data

if TYPE_CHECKING:
    from foundation.settings import Settings
    from machines.host import MachineHost, MachineRecord

app = typer.Typer(help="List, enter, keep and end the machines of this host.", no_args_is_help=True)

# Kept machines hold room of the host.
_LONGEST = timedelta(days=30)

_ID_HELP = "Machine id, such as vm-0123456789abcdef, or the id of its run."
MachineId = Annotated[
    str, typer.Argument(metavar="ID", help=_ID_HELP, show_default=False, autocompletion=completion.machine_ids)
]
MachineIds = Annotated[
    list[str],
    typer.Argument(
        metavar="ID...",
        help="Machine ids, or ids of their runs.",
        show_default=False,
        autocompletion=completion.machine_ids,
    ),
]


@app.command("list")
@writes_data
def list_machines(ctx: typer.Context) -> None:
    """List the machines of this host, oldest first."""
    from cli.terminal import print_rows, print_table, talk
    from foundation.units import format_size

    host = _host()
    records = host.records()
    alive = {record.id: host.is_alive(record.id) for record in records}
    written = format_of(ctx, OutputFormat.TABLE)
    stopped = {record.id: alive[record.id] and host.is_stopped_by_disk(record.id) for record in records}
    data = [
        {**record.model_dump(mode="json"), "alive": alive[record.id], "stopped_by_full_disk": stopped[record.id]}
        for record in records
    ]
    if print_data(data, written):
        return
    if written is OutputFormat.NAME:
        print_rows([record.id] for record in records)
        return
    rows = [
        (
            record.id,
            record.state,
            _process(record, alive=alive[record.id], stopped=stopped[record.id]),
            str(record.cpus),
            format_size(record.memory_bytes),
            _span(datetime.now(UTC) - record.created_at),
            _span(record.deadline - datetime.now(UTC)),
            record.owner_workflow or "-",
        )
        for record in records
    ]
    if written is OutputFormat.TEXT:
        print_rows(rows)
    elif records:
        print_table(("ID", "STATE", "PROCESS", "CPUS", "MEMORY", "AGE", "ENDS IN", "OWNER"), rows)
    else:
        talk().print("No machines on this host.")


@app.command("ssh", context_settings={"ignore_unknown_options": True})
def enter(
    machine_id: MachineId,
    command: Annotated[list[str] | None, typer.Argument(help="Command to run there instead of a shell.")] = None,
    show: Annotated[bool, typer.Option("--print", help="Print the ssh command instead of running it.")] = False,
) -> None:
    """Enter a machine as the user agent, who may use sudo.

    Example: sandbox machine ssh 1ssrg4b-k3f9q git -C /workspace status
    """
    host = _host()
    arguments = [*host.ssh_arguments(_found(host, machine_id).id), *(command or [])]
    if show:
        typer.echo(shlex.join(arguments))
        return
    try:
        os.execvp(arguments[0], arguments)  # noqa: S606 -- ssh takes this process's place, and with it the terminal
    except FileNotFoundError:
        from foundation.errors import HostNotReady

        raise HostNotReady("There is no ssh on this host; install openssh-client.") from None


@app.command("extend")
def extend(
    machine_id: MachineId,
    duration: Annotated[str, typer.Argument(metavar="DURATION", help="How much longer.", show_default=False)],
) -> None:
    """Keep the machine of a failed run for longer; its new deadline is printed.

    Example: sandbox machine extend 1ssrg4b-k3f9q 24h
    """
    from cli.task.reading import pause_seconds
    from cli.task.view import when
    from foundation.errors import UsageError

    seconds = pause_seconds(duration)
    host = _host()
    record = _found(host, machine_id)
    latest = datetime.now(UTC) + _LONGEST
    if seconds > _LONGEST.total_seconds() or record.deadline + timedelta(seconds=seconds) > latest:
        raise UsageError(
            f"A machine is kept for at most {_LONGEST.days} days from now; it ends {when(record.deadline)}."
        )
    until = host.extend(record.id, timedelta(seconds=seconds))
    typer.echo(f"{record.id} is kept until {when(until)}")
    _say(host)


@app.command("release")
def release(machine_ids: MachineIds) -> None:
    """End machines that were kept after a failure, before their time.

    Example: sandbox machine release 1ssrg4b-k3f9q
    """
    from foundation.errors import Conflict

    host = _host()
    records = [_found(host, machine_id) for machine_id in machine_ids]  # all of them are kept ones, or none is touched
    for record in records:
        if not record.preserved:
            raise Conflict(f"Machine {record.id} is in use by a run; end that with: sandbox task cancel {_run(record)}")
    _end(host, records)


@app.command("destroy")
def destroy(
    machine_ids: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[ID]...", help="Machine ids, or ids of their runs.", autocompletion=completion.machine_ids
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Destroy every machine of this host.")] = False,
) -> None:
    """End machines and remove their disks; a run that still uses one fails.

    Example: sandbox machine destroy 1ssrg4b-k3f9q
    """
    from foundation.errors import UsageError

    if bool(machine_ids) == everything:
        raise UsageError("Name the machines to destroy, or give --all.")
    host = _host()
    # All of them exist, or none is touched.
    _end(host, host.records() if everything else [_found(host, machine_id) for machine_id in machine_ids or []])


@app.command("log")
def log(machine_id: MachineId) -> None:
    """Print a machine's serial console: what its kernel and its start-up said.

    Example: sandbox machine log 1ssrg4b-k3f9q
    """
    from cli.streams import clean
    from cli.terminal import talk

    host = _host()
    path = host.console(_found(host, machine_id).id)
    if not path.exists() or path.stat().st_size == 0:
        talk().print("The serial console is empty.")
        return
    with path.open(errors="replace") as console:
        for line in console:
            typer.echo(clean(line.rstrip("\n")))


def _found(host: MachineHost, name: str) -> MachineRecord:
    """The machine of an id, or of the run of an id. Raises MachineNotFound."""
    from foundation.errors import MachineNotFound
    from foundation.machine_ids import MACHINE_ID

    if MACHINE_ID.fullmatch(name):
        return host.record(name)
    owned = [record for record in host.records() if record.owner_workflow and _run(record) == name]
    if owned:
        return owned[-1]
    raise MachineNotFound(
        f"No machine of the run '{name}' is on this host; 'sandbox machine list' shows those that are, and "
        f"'sandbox task status {name}' on which host the run is."
    )


def _run(record: MachineRecord) -> str:
    from workflows.names import RUNS

    return RUNS.resource_id(record.owner_workflow) or record.owner_workflow


def _end(host: MachineHost, records: list[MachineRecord]) -> None:
    for record in records:
        host.destroy(record.id)
        typer.echo(f"{record.id} destroyed")
    if any(record.preserved for record in records):
        _say(host)


def _say(host: MachineHost) -> None:
    """Let the servers know at once; without a bucket, this host's worker tells them when it can."""
    from activities.machine.preservation import say_preserved
    from cli.terminal import talk
    from foundation.errors import TaskyardError
    from storage.bucket import Bucket

    settings = _settings()
    try:
        say_preserved(settings.host_name, host, Bucket(settings))
    except TaskyardError as error:
        talk().print(f"The run's status does not tell it yet: {error.message}")


def _settings() -> Settings:
    from foundation.settings import Settings

    return Settings()


def _host() -> MachineHost:
    from machines.host import MachineHost

    return MachineHost(_settings())


def _process(record: MachineRecord, *, alive: bool, stopped: bool) -> str:
    if not alive:
        return "none yet" if record.state == "reserved" else "ended"
    return f"pid {record.pid}, stopped: the host's disk is full" if stopped else f"pid {record.pid}"


def _span(span: timedelta) -> str:
    from foundation.units import format_seconds

    return format_seconds(span.total_seconds()) if span.total_seconds() > 0 else "now"
