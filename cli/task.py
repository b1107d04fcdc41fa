"""`sandbox task`: submit, follow and end task runs, fetch their artifacts. Data on stdout, talk on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from foundation.errors import InvalidManifest, InvalidParameter

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from client import Artifact, Task, TaskClient

app = typer.Typer(no_args_is_help=True, help="Submit, follow and end task runs, fetch their artifacts.")

_DEFAULT_SERVER = "http://localhost:8122"
_INTERRUPTED = 130


class OutputFormat(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"


class LogStream(StrEnum):
    """Parts of the run log."""

    ALL = "all"
    STDOUT = "stdout"
    STDERR = "stderr"
    EVENTS = "events"


Server = Annotated[str | None, typer.Option("--server", metavar="URL", help="Server to talk to.")]
Format = Annotated[OutputFormat | None, typer.Option("--format", help="How to write the result.")]
TaskId = Annotated[str, typer.Argument(metavar="ID", show_default=False)]


class _Defaults:
    """Options given before the command's name; the command's own win."""

    server = _DEFAULT_SERVER
    format = OutputFormat.TEXT


@app.callback()
def task(
    server: Annotated[
        str, typer.Option("--server", envvar="TASKYARD_SERVER", metavar="URL", help="Server to talk to.")
    ] = _DEFAULT_SERVER,
    output_format: Annotated[OutputFormat, typer.Option("--format", help="How to write results.")] = OutputFormat.TEXT,
) -> None:
    """Submit, follow and end task runs, fetch their artifacts."""
    _Defaults.server = server
    _Defaults.format = output_format


@app.command()
def submit(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Manifest, YAML or JSON; '-' reads stdin.", show_default=False)
    ] = None,
    file_option: Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Show the log until the run ends.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait, silently, until the run ends.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """Submit a manifest; its run's id is printed.

    With --follow, --watch or --wait the exit code is 0 only when the run completes.
    """
    from cli.task_view import print_json, print_task, talk

    text = _read_manifest(file, file_option)
    as_json = _as_json(output_format)
    with _client(server) as client:
        try:
            reply = client.submit_raw(text)
        except InvalidManifest as error:
            raise _listed(error) from error
        task_id = str(reply["task_id"])
        if not (follow or watch or wait):
            _told(reply, task_id, as_json=as_json)
            talk().print(f"Follow it with: sandbox task logs {task_id} --follow")
            return
        talk().print(f"Submitted {task_id}")
        if follow:
            _follow_log(client, task_id, as_json=as_json)
        elif watch and not as_json:
            _watch_states(client, task_id)
        with _detachable(task_id, "status", "--watch"):
            ended = client.wait(task_id)
        if as_json and not follow:
            print_json(client.raw(task_id))
        elif wait and not (follow or watch):
            print_task(ended)
        _exit_by_outcome(ended)


@app.command("list")
def list_tasks(
    state: Annotated[str | None, typer.Option("--state", help="Comma-separated states.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Most rows to show.")] = None,
    offset: Annotated[int | None, typer.Option("--offset", help="Rows to skip.")] = None,
    sort: Annotated[
        str | None, typer.Option("--sort", help="created_at, started_at, state_changed_at or name.")
    ] = None,
    order: Annotated[str | None, typer.Option("--order", help="asc or desc.")] = None,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """List runs, newest first."""
    from cli.task_view import print_json, print_tasks, talk
    from client import TaskPage

    wanted = {"state": state, "limit": limit, "offset": offset, "sort": sort, "order": order}
    with _client(server) as client:
        found = client.find_raw(wanted, dict(_label(text) for text in label or []))
    if _as_json(output_format):
        print_json(found)
        return
    page = TaskPage.model_validate(found)
    print_tasks(page.tasks)
    if page.total_count > len(page.tasks):
        talk().print(f"{len(page.tasks)} of {page.total_count} runs; --limit and --offset show others.")


@app.command()
def status(
    task_id: TaskId,
    watch: Annotated[bool, typer.Option("--watch", help="Show the states until the run ends.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """Show one run. With --watch, until it ends; the exit code is then 0 only when it completes."""
    from cli.task_view import print_json, print_task

    with _client(server) as client:
        if watch:
            _exit_by_outcome(_watch_states(client, task_id))
        elif _as_json(output_format):
            print_json(client.raw(task_id))
        else:
            print_task(client.get(task_id))


app.command("get", help="The same as status.", hidden=True)(status)


@app.command()
def logs(  # noqa: PLR0917 -- options, all given by name
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Only the last N entries; 0: all.")] = 0,
    stream: Annotated[LogStream, typer.Option("--stream", help="Which part of the log.")] = LogStream.ALL,
    since: Annotated[str | None, typer.Option("--since", metavar="TIME", help="Only from this time on.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The lines as they are stored.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="The lines as stored, with their times.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """Show a run's log: what Claude says and does, made readable.

    With --follow the exit code is 0 only when the run completes. Ctrl-C leaves the run alone.
    """
    from cli.task_view import show_json, show_log, show_raw

    with _client(server) as client:
        lines = client.logs(task_id, follow=follow, tail=tail, stream=stream, since=since)
        with _detachable(task_id, "logs", "--follow"):
            if _as_json(output_format):
                show_json(lines)
            elif raw or timestamps:
                show_raw(lines, timestamps=timestamps)
            else:
                show_log(lines, waiting=follow)
        if follow:
            _exit_by_outcome(client.wait(task_id))


@app.command()
def cancel(
    task_id: TaskId,
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept with the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Kill the agent without its 30 s of grace.")] = False,
    server: Server = None,
    output_format: Format = None,
) -> None:
    """End a run: its agent is stopped, its artifacts are collected, its machine is torn down."""
    with _client(server) as client:
        reply = client.cancel(task_id, reason, force=force)
    _told(reply, str(reply["message"]), as_json=_as_json(output_format))


@app.command()
def message(
    task_id: TaskId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="'-' reads stdin.", show_default=False)],
    message_id: Annotated[str | None, typer.Option("--id", help="Sending the same id again changes nothing.")] = None,
    server: Server = None,
) -> None:
    """Send the running agent a further message."""
    from cli.task_view import talk

    with _client(server) as client:
        client.message(task_id, sys.stdin.read() if text == "-" else text, message_id)
    talk().print("Sent.")


@app.command()
def close(task_id: TaskId, server: Server = None) -> None:
    """Let a session with 'headless: false' end after its last answer."""
    from cli.task_view import talk

    with _client(server) as client:
        client.close_session(task_id)
    talk().print("The session ends after its last answer.")


@app.command()
def artifacts(task_id: TaskId, server: Server = None, output_format: Format = None) -> None:
    """List what a run has left."""
    from cli.task_view import print_artifacts, print_json, talk

    with _client(server) as client:
        if _as_json(output_format):
            print_json(client.raw(task_id, "/artifacts"))
            return
        found = client.artifacts(task_id)
    if found:
        print_artifacts(found)
    else:
        talk().print("No artifacts yet; they are collected when the agent has ended.")


@app.command()
def download(
    task_id: TaskId,
    name: Annotated[str | None, typer.Argument(metavar="NAME", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All artifacts of the run.")] = False,
    target: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="PATH", help="File or directory to write to.")
    ] = None,
    server: Server = None,
) -> None:
    """Download an artifact (or all of them), checked against its checksum; the path written is printed."""
    if (name is None) is not everything:
        raise InvalidParameter("Name one artifact, or give --all.")
    with _client(server) as client:
        found = client.artifacts(task_id)
        wanted = found if everything else [_named(client, task_id, found, str(name))]
        for path in fetch(client, task_id, wanted, target, into_directory=everything):
            typer.echo(path)


def fetch(
    client: TaskClient, task_id: str, wanted: list[Artifact], target: Path | None, *, into_directory: bool
) -> Iterator[Path]:
    """Download artifacts, each told by its path when it is there. The guest's names never leave the directory."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from cli.render import clean
    from cli.task_view import talk

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=talk(), transient=True) as bars:
        for artifact in wanted:
            bar = bars.add_task(clean(artifact.name), total=artifact.size_bytes)
            path = _local_path(artifact, target, into_directory=into_directory)
            client.download(task_id, artifact.name, path, partial(_advance, bars, bar))
            bars.remove_task(bar)
            yield path


# --- what the commands share


def _advance(bars: Progress, bar: TaskID, done: int, _size: int) -> None:
    bars.update(bar, completed=done)


def _client(server: str | None) -> TaskClient:
    from client import TaskClient

    return TaskClient(server or _Defaults.server)


def _as_json(given: OutputFormat | None) -> bool:
    return (given or _Defaults.format) is OutputFormat.JSON


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


def _follow_log(client: TaskClient, task_id: str, *, as_json: bool) -> None:
    from cli.task_view import show_json, show_log

    with _detachable(task_id, "logs", "--follow"):
        lines = client.logs(task_id, follow=True)
        if as_json:
            show_json(lines)
        else:
            show_log(lines, waiting=True)


def _watch_states(client: TaskClient, task_id: str) -> Task:
    from cli.task_view import watch

    with _detachable(task_id, "status", "--watch"):
        return watch(client, task_id)


@contextmanager
def _detachable(task_id: str, command: str, option: str) -> Iterator[None]:
    """Ctrl-C ends the looking on, not the run, and says how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        from cli.task_view import talk

        talk().print(f"\nDetached; the run goes on. Come back with: sandbox task {command} {task_id} {option}")
        raise typer.Exit(_INTERRUPTED) from None


def _exit_by_outcome(ended: Task) -> NoReturn:
    from cli.task_view import print_outcome, talk

    if ended.state == "completed":
        raise typer.Exit(0)
    print_outcome(talk(), ended)
    raise typer.Exit(1)


def _named(client: TaskClient, task_id: str, found: list[Artifact], name: str) -> Artifact:
    for candidate in found:
        if name in {candidate.name, candidate.path}:
            return candidate
    from foundation.errors import ArtifactNotFound

    names = ", ".join(candidate.name for candidate in found) or "none yet"
    raise ArtifactNotFound(f"Task '{task_id}' at {client.server} has no artifact '{name}'; it has: {names}.")


def _local_path(artifact: Artifact, target: Path | None, *, into_directory: bool) -> Path:
    parts = [part for part in PurePosixPath(artifact.name).parts if part not in {"..", "/"}] or ["artifact"]
    if into_directory:
        return (target or Path()) / Path(*parts)
    if target is None or target.is_dir():
        return (target or Path()) / parts[-1]
    return target
