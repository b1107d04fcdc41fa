"""`sandbox task`: submit, list, watch and end task runs, and speak to them. Data on stdout, talk on stderr."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli import task_reading
from cli.options import (
    AsJson,
    ContextName,
    Format,
    OutputFormat,
    Server,
    TaskId,
    format_of,
    given,
    open_client,
    remember,
)
from cli.task_reading import Timeout, detachable, exit_by_outcome
from foundation.errors import InvalidManifest, InvalidParameter

if TYPE_CHECKING:
    from client import Task, TaskClient

_HELP = "Submit, follow and end task runs, fetch their artifacts."

app = typer.Typer(no_args_is_help=True, help=_HELP)

_LIST_SECONDS = "2s"


@app.callback()
def task(
    ctx: typer.Context,
    server: Server = None,
    context: ContextName = None,
    output_format: Format = None,
    as_json: AsJson = False,
) -> None:
    """Submit, follow and end task runs, fetch their artifacts."""
    remember(ctx, server, context, OutputFormat.JSON if as_json else output_format)


@app.command()
def submit(  # noqa: PLR0917 -- options, all given by name
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Manifest, YAML or JSON; '-' reads stdin.", show_default=False)
    ] = None,
    file_option: Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the run ends.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, silently, until the run ends.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="With --follow: the lines as they are stored.")] = False,
    timeout: Timeout = None,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """Submit a manifest; its run's id is printed.

    With --follow, --watch or --wait the exit code is 0 only when the run completes.
    """
    from cli.task_view import print_json, print_task, talk

    text = _read_manifest(file, file_option)
    seconds = _seconds(timeout, "--follow, --watch or --wait", waiting=follow or watch or wait)
    as_json = format_of(ctx, output_format, OutputFormat.TEXT) is OutputFormat.JSON
    with open_client(ctx, server) as client:
        try:
            reply = client.submit_raw(text)
        except InvalidManifest as error:
            raise _listed(error) from error
        task_id = str(reply["task_id"])
        for warning in reply.get("warnings", ()):
            talk().print(f"Warning: {warning['field']} {warning['message']}.", style="yellow")
        if not (follow or watch or wait):
            _told(reply, task_id, as_json=as_json)
            talk().print(f"Follow it with: sandbox task logs {task_id} --follow")
            return
        talk().print(f"Submitted {task_id}")
        if follow:
            exit_by_outcome(task_reading.follow_log(client, task_id, seconds, as_json=as_json, raw=raw))
        with detachable(task_id, "status", "--watch"):
            if watch and not as_json:
                ended = _watched(client, task_id, seconds)
            else:
                ended = client.wait(task_id, timeout_seconds=seconds)
        if as_json:
            print_json(client.raw(task_id))
        elif wait and not watch:
            print_task(ended)
        exit_by_outcome(ended)


@app.command("list")
def list_tasks(  # noqa: PLR0917 -- options, all given by name
    ctx: typer.Context,
    state: Annotated[str | None, typer.Option("--state", help="Comma-separated states.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows to show; default: 100.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Rows to skip.")] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", help="created_at, started_at, state_changed_at or name.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", help="asc or desc.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the list anew every 2 s, until Ctrl-C.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """List runs, newest first.

    A table that fits the terminal; --format text writes a line for each run, its fields divided by tabs: id, state,
    time of creation, name.
    """
    from cli.task_view import print_found
    from cli.watch import repeat

    wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
    labels = dict(_label(text) for text in label or [])
    written = format_of(ctx, output_format, OutputFormat.TABLE)
    every = given(ctx).watch or (_LIST_SECONDS if watch else None)
    seconds = None if every is None else task_reading.pause_seconds(every)
    with open_client(ctx, server) as client:

        def show() -> None:
            print_found(client.find_raw(wanted, labels), written)

        if seconds is None:
            show()
        else:
            repeat(show, seconds)


@app.command()
def status(
    ctx: typer.Context,
    task_id: TaskId,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    timeout: Timeout = None,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """Show one run. With --watch, until it ends; the exit code is then 0 only when it completes."""
    from cli.task_view import print_json, print_task, print_tasks

    seconds = _seconds(timeout, "--watch", waiting=watch)
    written = format_of(ctx, output_format, OutputFormat.TEXT)
    with open_client(ctx, server) as client:
        if watch:
            with detachable(task_id, "status", "--watch"):
                if written is OutputFormat.JSON:
                    ended = client.wait(task_id, timeout_seconds=seconds)
                    print_json(client.raw(task_id))
                else:
                    ended = _watched(client, task_id, seconds)
            exit_by_outcome(ended)
        elif written is OutputFormat.JSON:
            print_json(client.raw(task_id))
        elif written is OutputFormat.TABLE:
            print_tasks([client.get(task_id)])
        else:
            print_task(client.get(task_id))


app.command("get", help="The same as status.")(status)


@app.command()
def cancel(
    ctx: typer.Context,
    task_id: TaskId,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept with the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Kill the agent without its 30 s of grace.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """End a run: its agent is stopped, its artifacts are collected, its machine is torn down.

    At a terminal it asks first; in a script it does not.
    """
    with open_client(ctx, server) as client:
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            asked = client.get(task_id)
            if not asked.terminal:
                typer.confirm(f"Cancel task {task_id}, which is {asked.state}?", abort=True, err=True)
        reply = client.cancel(task_id, reason, force=force)
    as_json = format_of(ctx, output_format, OutputFormat.TEXT) is OutputFormat.JSON
    _told(reply, str(reply["message"]), as_json=as_json)


@app.command()
def message(
    ctx: typer.Context,
    task_id: TaskId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; '-' reads stdin.", show_default=False)],
    message_id: Annotated[str | None, typer.Option("--id", help="Sending the same id again changes nothing.")] = None,
    server: Server = None,
) -> None:
    """Send the running agent a further message."""
    from cli.task_view import talk

    with open_client(ctx, server) as client:
        client.message(task_id, sys.stdin.read() if text == "-" else text, message_id)
    talk().print("Sent.")


@app.command()
def close(ctx: typer.Context, task_id: TaskId, server: Server = None) -> None:
    """Let a session with 'headless: false' end after its last answer."""
    from cli.task_view import talk

    with open_client(ctx, server) as client:
        client.close_session(task_id)
    talk().print("The session ends after its last answer.")


app.command()(task_reading.logs)
app.command()(task_reading.artifacts)
app.command()(task_reading.download)


def _told(data: object, text: str, *, as_json: bool) -> None:
    from cli.task_view import print_json

    if as_json:
        print_json(data)
    else:
        typer.echo(text)


def _read_manifest(file: Path | None, option: Path | None) -> str:
    if file is not None and option is not None:
        raise InvalidParameter("Name the manifest once: as FILE or with --file.")
    chosen = file or option
    if chosen is None:
        raise InvalidParameter("Name the manifest: sandbox task submit FILE.")
    if str(chosen) == "-":
        return sys.stdin.read()
    try:
        return chosen.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise InvalidParameter(f"The manifest '{chosen}' cannot be read: {reason}.") from error


def _listed(error: InvalidManifest) -> InvalidManifest:
    """The same refusal with each fault on a line of its own."""
    from client import faults

    lines = [f"{fault['field']}: {fault['message']}".removeprefix(": ") for fault in faults(error)]
    text = "\n  ".join(["The manifest was refused.", *(lines or [error.message])])
    return InvalidManifest(text, **error.details)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidParameter(f"'{text}' is not a label; write --label KEY=VALUE.")
    return key, value


def _seconds(timeout: str | None, options: str, *, waiting: bool) -> float | None:
    if timeout is None:
        return None
    if not waiting:
        raise InvalidParameter(f"--timeout goes with {options}.")
    return task_reading.pause_seconds(timeout)


def _watched(client: TaskClient, task_id: str, seconds: float | None) -> Task:
    from cli.watch import watch

    return watch(client, task_id, seconds)
