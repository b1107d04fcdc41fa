"""`sandbox task`: submit, list, watch and end task runs, and speak to them. Data on stdout, talk on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completion
from cli.options import (
    OutputFormat,
    TaskId,
    TaskIds,
    asks_server,
    format_of,
    open_client,
    print_data,
    shared_options,
    writes_data,
)
from cli.task import reading
from cli.task.reading import Timeout, detachable, exit_by_outcome
from foundation.errors import InvalidManifest, TaskyardError, UsageError

if TYPE_CHECKING:
    from client import Task, TaskClient

_HELP = "Submit, follow and end task runs, fetch their artifacts."

app = typer.Typer(no_args_is_help=True, help=_HELP)

_LIST_SECONDS = "2s"
_MANIFEST_BYTES = 16 * 2**20

ManifestFile = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Manifest, YAML or JSON; '-' reads stdin.", show_default=False)
]
ManifestOption = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same.")]


@app.callback()
@asks_server
@writes_data
def task(ctx: typer.Context) -> None:
    """Submit, follow and end task runs, fetch their artifacts."""


@app.command()
@asks_server
@writes_data
def submit(  # noqa: PLR0917 -- options, all given by name
    ctx: typer.Context,
    file: ManifestFile = None,
    file_option: ManifestOption = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the run ends.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, silently, until the run ends.")] = False,
    raw: Annotated[bool, typer.Option("--raw", help="With --follow: the lines as they are stored.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only check the manifest, as validate does.")] = False,
    timeout: Timeout = None,
) -> None:
    """Submit a manifest; its run's id is printed.

    With --follow, --watch or --wait the exit code is 0 only when the run completes.

    Example: sandbox task submit task.yaml --follow
    """
    from cli.task.view import print_task
    from cli.terminal import talk

    text = _read_manifest(file, file_option, "submit")
    if dry_run and (follow or watch or wait):
        raise UsageError("--dry-run starts nothing that could be waited for.")
    seconds = _seconds(timeout, "--follow, --watch or --wait", waiting=follow or watch or wait)
    if dry_run:
        _validate(ctx, text)
        return
    written = format_of(ctx, OutputFormat.TEXT)
    as_data = written in {OutputFormat.JSON, OutputFormat.YAML}
    with open_client(ctx) as client:
        try:
            reply = _accepted(client.submit_raw, text)
        except KeyboardInterrupt:
            talk().print("\nInterrupted before the server answered; 'sandbox task list' shows whether it took the run.")
            raise
        task_id = str(reply["task_id"])
        _warn(reply)
        if not (follow or watch or wait):
            _print_reply(ctx, reply, task_id)
            talk().print(f"Follow it with: sandbox task logs {task_id} --follow")
            return
        talk().print(f"Submitted {task_id}")
        if follow:
            exit_by_outcome(reading.follow_log(client, task_id, seconds, written=written, raw=raw))
        with detachable(task_id, "status", "--watch"):
            if watch and not as_data:
                ended = _watched(client, task_id, seconds)
            else:
                ended = client.wait(task_id, timeout_seconds=seconds)
            if as_data:
                print_data(client.raw(task_id), written)
            elif wait and not watch:
                print_task(ended)
        exit_by_outcome(ended)


@app.command()
@asks_server
@writes_data
def validate(ctx: typer.Context, file: ManifestFile = None, file_option: ManifestOption = None) -> None:
    """Have the server check a manifest as if it were submitted, and start nothing.

    The exit code is 0 when it would be accepted. Example: sandbox task validate task.yaml
    """
    _validate(ctx, _read_manifest(file, file_option, "validate"))


@app.command()
@asks_server
@writes_data
def retry(ctx: typer.Context, task_ids: TaskIds) -> None:
    """Submit the manifests of runs again, each under a new id, which is printed.

    The label retry-of names the run that is repeated. Example: sandbox task retry 1ssrg4b-k3f9q
    """
    from cli.terminal import talk

    def again(client: TaskClient, task_id: str) -> Any:
        reply = _accepted(client.retry, task_id)
        talk().print(f"Follow it with: sandbox task logs {reply['task_id']} --follow")
        return reply

    _each(ctx, task_ids, again, lambda reply: str(reply["task_id"]))


@app.command("list")
@asks_server
@writes_data
def list_tasks(
    ctx: typer.Context,
    state: Annotated[
        str | None, typer.Option("--state", help="Comma-separated states.", autocompletion=completion.states)
    ] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows to show; default: 100.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Rows to skip.")] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            help="created_at, started_at, state_changed_at or name.",
            autocompletion=completion.words("created_at", "started_at", "state_changed_at", "name"),
        ),
    ] = None,
    order: Annotated[
        str | None, typer.Option("--order", help="asc or desc.", autocompletion=completion.words("asc", "desc"))
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the list anew every 2 s, until Ctrl-C.")] = False,
) -> None:
    """List runs, newest first.

    A table that fits the terminal; --format text writes a line for each run, its fields divided by tabs: id, state,
    time of creation, name.

    Example: sandbox task list --state running,completing --label team=platform
    """
    from cli.task.view import print_found
    from cli.task.watch import repeat

    wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
    labels = dict(_label(text) for text in label or [])
    written = format_of(ctx, OutputFormat.TABLE)
    every = shared_options(ctx).watch or (_LIST_SECONDS if watch else None)
    seconds = None if every is None else reading.pause_seconds(every)
    with open_client(ctx) as client:

        def show() -> None:
            print_found(client.find_raw(wanted, labels), written)

        if seconds is None:
            show()
        else:
            repeat(show, seconds)


@app.command()
@asks_server
@writes_data
def status(
    ctx: typer.Context,
    task_ids: TaskIds,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    timeout: Timeout = None,
) -> None:
    """Show runs. With --watch one, until it ends; the exit code is then 0 only when it completes.

    Example: sandbox task status 1ssrg4b-k3f9q --watch
    """
    from cli.task.view import print_task, print_tasks
    from client import Task

    seconds = _seconds(timeout, "--watch", waiting=watch)
    written = format_of(ctx, OutputFormat.TEXT)
    with open_client(ctx) as client:
        if watch:
            if len(task_ids) != 1:
                raise UsageError("--watch takes one run; 'sandbox task wait' takes several.")
            task_id = task_ids[0]
            with detachable(task_id, "status", "--watch"):
                if written in {OutputFormat.JSON, OutputFormat.YAML}:
                    ended = client.wait(task_id, timeout_seconds=seconds)
                    print_data(client.raw(task_id), written)
                else:
                    ended = _watched(client, task_id, seconds)
            exit_by_outcome(ended)
        found = [client.raw(task_id) for task_id in task_ids]
    if print_data(found[0] if len(found) == 1 else found, written):
        return
    runs = [Task.model_validate(each) for each in found]
    if written is not OutputFormat.TEXT:
        print_tasks(runs, written)
        return
    for place, each in enumerate(runs):
        if place:
            typer.echo()
        print_task(each)


app.command("get", help="The same as status.")(status)


@app.command("wait")
@asks_server
@writes_data
def wait_for(ctx: typer.Context, task_ids: TaskIds, timeout: Timeout = None) -> None:
    """Wait until all of the runs have ended; each is told when it has, by its id and state.

    The exit code is 0 when all of them completed, else 1; 5 when the time is over.

    Example: sandbox task wait ID1 ID2 --timeout 30m
    """
    from cli.task.watch import wait_for_all

    seconds = None if timeout is None else reading.pause_seconds(timeout)
    with open_client(ctx) as client:
        done = wait_for_all(client, task_ids, seconds, format_of(ctx, OutputFormat.TEXT))
    raise typer.Exit(0 if done else 1)


@app.command()
@asks_server
@writes_data
def cancel(
    ctx: typer.Context,
    task_ids: TaskIds,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept with the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Kill the agent without its 30 s of grace.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """End runs: their agents are stopped, their artifacts are collected, their machines are torn down.

    At a terminal it asks first; in a script it does not.

    Example: sandbox task cancel 1ssrg4b-k3f9q --reason "wrong branch"
    """

    def end(client: TaskClient, task_id: str) -> Any:
        if not yes and sys.stdin.isatty() and sys.stderr.isatty():
            task = client.get(task_id)
            if not task.terminal:
                typer.confirm(f"Cancel task {task_id}, which is {task.state}?", abort=True, err=True)
        return client.cancel(task_id, reason, force=force)

    _each(ctx, task_ids, end, lambda reply: str(reply.get("message") or "Cancellation requested"))


@app.command()
@asks_server
@writes_data
def message(
    ctx: typer.Context,
    task_id: TaskId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message; '-' reads stdin.", show_default=False)],
    message_id: Annotated[str | None, typer.Option("--id", help="Sending the same id again changes nothing.")] = None,
) -> None:
    """Send the running agent a further message.

    Example: sandbox task message 1ssrg4b-k3f9q "Please update the changelog too."
    """
    from cli.terminal import talk

    with open_client(ctx) as client:
        reply = client.message(task_id, sys.stdin.read() if text == "-" else text, message_id)
    if not print_data(reply, format_of(ctx, OutputFormat.TEXT)):
        talk().print("Sent.")


@app.command()
@asks_server
@writes_data
def close(ctx: typer.Context, task_ids: TaskIds) -> None:
    """Let sessions with 'headless: false' end after their last answers."""
    from cli.terminal import talk

    def end(client: TaskClient, task_id: str) -> Any:
        reply = client.close_session(task_id)
        talk().print(f"The session of {task_id} ends after its last answer.")
        return reply

    _each(ctx, task_ids, end, lambda _reply: None)


app.command()(reading.logs)
app.command()(reading.artifacts)
app.command()(reading.download)


def _each(
    ctx: typer.Context,
    task_ids: list[str],
    act: Callable[[TaskClient, str], Any],
    in_words: Callable[[Any], str | None],
) -> None:
    """Do the same to each run. One that is refused keeps none of the others from it, and sets the exit code."""
    from cli.streams import complain

    written = format_of(ctx, OutputFormat.TEXT)
    replies: list[Any] = []
    refused: list[TaskyardError] = []
    with open_client(ctx) as client:
        for task_id in task_ids:
            try:
                reply = act(client, task_id)
            except TaskyardError as error:
                if len(task_ids) == 1:
                    raise
                complain(error.message)
                refused.append(error)
                continue
            replies.append(reply)
            if written in {OutputFormat.JSON, OutputFormat.YAML}:
                continue
            words = str(reply["task_id"]) if written is OutputFormat.NAME else in_words(reply)
            if words is not None:
                typer.echo(words)
    print_data(replies[0] if len(task_ids) == 1 else replies, written)
    if refused:
        raise typer.Exit(refused[0].exit_code)


def _print_reply(ctx: typer.Context, reply: Any, text: str) -> None:
    if not print_data(reply, format_of(ctx, OutputFormat.TEXT)):
        typer.echo(text)


def _validate(ctx: typer.Context, text: str) -> None:
    with open_client(ctx) as client:
        reply = _accepted(client.validate, text)
    _warn(reply)
    _print_reply(ctx, reply, "The manifest is valid.")


def _warn(reply: Any) -> None:
    from cli.terminal import talk

    for warning in reply.get("warnings") or ():
        talk().print(f"Warning: {warning.get('field')} {warning.get('message')}.", style="yellow")


def _accepted(send: Callable[[str], Any], text: str) -> Any:
    """The reply; a refusal has each of its faults on a line of its own."""
    try:
        return send(text)
    except InvalidManifest as error:
        raise _listed(error) from error


def _read_manifest(file: Path | None, option: Path | None, command: str) -> str:
    if file is not None and option is not None:
        raise UsageError("Name the manifest once, with --file or without.")
    chosen = file or option
    if chosen is None:
        raise UsageError(f"Name the manifest: sandbox task {command} FILE.")
    named = "stdin" if str(chosen) == "-" else f"'{chosen}'"
    try:
        if named == "stdin":
            data = sys.stdin.buffer.read(_MANIFEST_BYTES + 1)
        else:
            with chosen.open("rb") as opened:
                data = opened.read(_MANIFEST_BYTES + 1)
        if len(data) > _MANIFEST_BYTES:
            raise UsageError(f"The manifest {named} cannot be read: it is larger than any manifest may be.")
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"The manifest {named} cannot be read: {reason}.") from error
    if not text.strip():
        raise UsageError(f"The manifest {named} is empty.")
    return text


def _listed(error: InvalidManifest) -> InvalidManifest:
    """The same refusal with each fault on a line of its own."""
    from client import faults

    lines = [f"{fault.get('field', '')}: {fault.get('message', '')}".removeprefix(": ") for fault in faults(error)]
    text = "\n  ".join(["The manifest was refused.", *(lines or [error.message])])
    return InvalidManifest(text, **error.details)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"'{text}' is not a label; write --label KEY=VALUE.")
    return key, value


def _seconds(timeout: str | None, options: str, *, waiting: bool) -> float | None:
    if timeout is None:
        return None
    if not waiting:
        raise UsageError(f"--timeout goes with {options}.")
    return reading.pause_seconds(timeout)


def _watched(client: TaskClient, task_id: str, seconds: float | None) -> Task:
    from cli.task.watch import watch

    return watch(client, task_id, seconds)
