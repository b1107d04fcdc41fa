"""What `sandbox task` reads of a run: its log, its artifacts, and how it ended."""

from __future__ import annotations

import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from cli import completion
from cli.options import OutputFormat, TaskId, asks_server, format_of, open_client, print_data, writes_data
from foundation.errors import UsageError

if TYPE_CHECKING:
    from client import Artifact, Fetched, LogLine, Task, TaskClient

_INTERRUPTED = 130
_PAUSE = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)?")
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
# What clocks and timers take; nobody waits for so long.
_LONGEST_SECONDS = 10 * 365 * 86400.0
_TIMEOUT_HELP = "Give up waiting after this long, with exit code 5; the run goes on."

Timeout = Annotated[str | None, typer.Option("--timeout", metavar="DURATION", help=_TIMEOUT_HELP)]


class LogStream(StrEnum):
    """Parts of the run log."""

    ALL = "all"
    STDOUT = "stdout"
    STDERR = "stderr"
    EVENTS = "events"
    TOLD = "told"


@asks_server
@writes_data
def logs(  # noqa: PLR0917 -- options, all given by name
    ctx: typer.Context,
    task_id: TaskId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay until the run ends.")] = False,
    tail: Annotated[int, typer.Option("--tail", min=0, help="Only the last N entries; 0: all.")] = 0,
    stream: Annotated[LogStream, typer.Option("--stream", help="Which part of the log.")] = LogStream.ALL,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="Only from then on: an ISO-8601 time, or 10m ago.")
    ] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The lines as they are stored.")] = False,
    timestamps: Annotated[bool, typer.Option("--timestamps", help="Each line with its time.")] = False,
    timeout: Timeout = None,
) -> None:
    """Show a run's log: what Claude says and does, made readable.

    With --follow the exit code is 0 only when the run completes. Ctrl-C leaves the run alone.

    Example: sandbox task logs 1ssrg4b-k3f9q --since 10m --follow
    """
    if timeout is not None and not follow:
        raise UsageError("--timeout goes with --follow.")
    seconds = None if timeout is None else pause_seconds(timeout)
    written = format_of(ctx, OutputFormat.TEXT)
    with open_client(ctx) as client:

        def show() -> None:
            lines = client.logs(task_id, follow=follow, tail=tail, stream=stream, since=_since(since))
            _show(lines, written=written, raw=raw, waiting=follow, timestamps=timestamps)

        if follow:
            exit_by_outcome(_followed(client, task_id, show, seconds))
        show()


@asks_server
@writes_data
def artifacts(
    ctx: typer.Context,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[list] ID",
            show_default=False,
            help="Id of the run; the word 'list' may precede it.",
            autocompletion=completion.task_ids,
        ),
    ],
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Also what is kept for runs that continue it: the agent's conversation.")
    ] = False,
) -> None:
    """List what a run has left.

    --format text writes a line for each artifact, its fields divided by tabs: name, bytes, type, SHA-256.

    Example: sandbox task artifacts 1ssrg4b-k3f9q
    """
    from cli.task.view import print_artifacts
    from cli.terminal import talk
    from client.tasks.replies import ArtifactPage

    match words:
        case [task_id] | ["list", task_id]:
            pass
        case _:
            raise UsageError("Name one run: sandbox task artifacts ID.")
    written = format_of(ctx, OutputFormat.TABLE)
    with open_client(ctx) as client:
        reply = client.artifacts_raw(task_id, hidden=hidden)
    if print_data(reply, written):
        return
    found = ArtifactPage.model_validate(reply).artifacts
    if found:
        print_artifacts(found, written)
    else:
        talk().print("No artifacts yet; they are collected when the agent has ended.")


@asks_server
def download(
    ctx: typer.Context,
    task_id: TaskId,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            show_default=False,
            help="Name of the artifact, or its path.",
            autocompletion=completion.artifact_names,
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All artifacts of the run.")] = False,
    target: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="PATH", help="File or directory to write to; '-' is stdout."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify/--no-verify", help="Check the SHA-256 of what arrived.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there already.")] = False,
) -> None:
    """Download an artifact, or all of them; the path written is printed.

    A file that is there already stays: with the same bytes it counts as downloaded, with others it is an error. With
    --all, what fails stops nothing else; it is told at the end, with an exit code.

    Example: sandbox task download 1ssrg4b-k3f9q --all -o out
    """
    if (name is None) is not everything:
        raise UsageError("Name one artifact, or give --all.")
    if str(target) == "-" and everything:
        raise UsageError("Only one artifact can go to stdout; name it.")
    with open_client(ctx) as client:
        if everything:
            failed = []
            for fetched in fetch_all(client, task_id, target or Path(), verify=verify, force=force):
                if fetched.error is None:
                    typer.echo(fetched.path)
                else:
                    failed.append(fetched)
            if failed:
                _exit_after(failed)
            return
        artifact = _named(client, task_id, client.artifacts(task_id, hidden=True), str(name))
        if str(target) == "-":
            _write_out(client, task_id, artifact, verify=verify)
            return
        path = _target(artifact, target)
        with progress_bar(artifact.name) as progress:
            client.download(task_id, artifact.name, path, progress, verify=verify, force=force)
        typer.echo(path)


def fetch_all(
    client: TaskClient, task_id: str, directory: Path, *, verify: bool = True, force: bool = False
) -> Iterator[Fetched]:
    """Download all artifacts of a run below a directory, each told when it has arrived or failed."""
    with (
        progress_bar(task_id) as progress,
        closing(client.download_all(task_id, directory, progress, verify=verify, force=force)) as fetching,
    ):
        yield from fetching


def follow_log(client: TaskClient, task_id: str, seconds: float | None, *, written: OutputFormat, raw: bool) -> Task:
    """Show the log until the run ends, and give the ended run. Raises TimedOut after so many seconds."""

    def show() -> None:
        _show(client.logs(task_id, follow=True), written=written, raw=raw, waiting=True)

    return _followed(client, task_id, show, seconds)


@contextmanager
def detachable(task_id: str, command: str, option: str) -> Iterator[None]:
    """Ctrl-C ends the looking on, not the run, and says how to come back."""
    try:
        yield
    except KeyboardInterrupt:
        from cli.terminal import talk

        talk().print(f"\nDetached; the run goes on. Come back with: sandbox task {command} {task_id} {option}")
        raise typer.Exit(_INTERRUPTED) from None


def exit_by_outcome(ended: Task) -> NoReturn:
    """Exit with 0 for a run that completed, else with 1 and the reason on stderr."""
    from cli.task.view import print_outcome
    from cli.terminal import talk

    if ended.state == "completed":
        raise typer.Exit(0)
    print_outcome(talk(), ended)
    raise typer.Exit(1)


def pause_seconds(text: str) -> float:
    """Seconds of a length of time: a number and one of ms, s, m, h, d; seconds without. Raises UsageError."""
    match = _PAUSE.fullmatch(text.strip())
    seconds = float(match[1]) * _UNIT_SECONDS[match[2] or "s"] if match else 0.0
    if not 0 < seconds <= _LONGEST_SECONDS:
        raise UsageError(f"'{text}' is not a length of time; write one such as 500ms, 2s, 30m or 1h.")
    return seconds


def _since(text: str | None) -> str | None:
    """A time, or a length of time before now, as the server takes it."""
    if text is None or not _PAUSE.fullmatch(text.strip()):
        return text
    return (datetime.now(UTC) - timedelta(seconds=pause_seconds(text))).isoformat()


def _show(
    lines: Iterator[LogLine], *, written: OutputFormat, raw: bool, waiting: bool, timestamps: bool = False
) -> None:
    from cli.task.view import show_data, show_log, show_raw

    if written in {OutputFormat.JSON, OutputFormat.YAML}:
        show_data(lines, written)
    elif raw:
        show_raw(lines, timestamps=timestamps)
    else:
        show_log(lines, waiting=waiting, timestamps=timestamps)


def _followed(client: TaskClient, task_id: str, show: Callable[[], None], seconds: float | None) -> Task:
    """The ended run, after its log was shown."""
    from client.refusals import still_going

    with detachable(task_id, "logs", "--follow"):
        try:
            with _alarm(seconds):
                show()
                return client.wait(task_id)
        except _Overdue:
            task = client.get(task_id)
            if task.terminal:
                return task
            raise still_going(task) from None


class _Overdue(BaseException):
    """The time is over. As with Ctrl-C, nothing on the way out takes it for a failure of its own."""


@contextmanager
def _alarm(seconds: float | None) -> Iterator[None]:
    """Break the block off after so many seconds, as Ctrl-C would: whatever it waits for. None: never."""
    if seconds is None:
        yield
        return

    def ring(_number: int, _frame: object) -> NoReturn:
        raise _Overdue

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def progress_bar(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on the terminal for what is on its way: called with the bytes done and those in all, 0 when unknown."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    from cli.streams import clean
    from cli.terminal import talk

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn())
    with Progress(*columns, console=talk(), transient=True) as bars:
        bar = bars.add_task(clean(name), total=None)
        yield lambda done, size: bars.update(bar, completed=done, total=size or None)


def _exit_after(failed: list[Fetched]) -> NoReturn:
    """Say which artifacts failed, and exit with the code that all of their errors have, else with 1."""
    from cli.streams import clean
    from cli.terminal import talk

    for fetched in failed:
        talk().print(f"{clean(fetched.artifact.name)}: {clean(str(fetched.error))}", markup=False, soft_wrap=True)
    codes = {fetched.error.exit_code for fetched in failed if fetched.error}
    raise typer.Exit(codes.pop() if len(codes) == 1 else 1)


def _named(client: TaskClient, task_id: str, found: list[Artifact], name: str) -> Artifact:
    by_path = [candidate for candidate in found if candidate.path == name]
    for candidate in [*(candidate for candidate in found if candidate.name == name), *by_path]:
        return candidate
    from foundation.errors import ArtifactNotFound

    names = ", ".join(candidate.name for candidate in found) or "none yet"
    raise ArtifactNotFound(f"Task '{task_id}' at {client.server} has no artifact '{name}'; it has: {names}.")


def _write_out(client: TaskClient, task_id: str, artifact: Artifact, *, verify: bool) -> None:
    """Write an artifact to stdout, once all of it is there and checked."""
    with tempfile.TemporaryDirectory(prefix="taskyard-") as directory, progress_bar(artifact.name) as progress:
        path = Path(directory, "artifact")
        client.download(task_id, artifact.name, path, progress, verify=verify)
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
    sys.stdout.flush()


def _target(artifact: Artifact, target: Path | None) -> Path:
    """The file that one artifact goes to. The guest's name chooses no directory."""
    from client.tasks.download import local_path

    if target is None or target.is_dir():
        return (target or Path()) / local_path(artifact.name).name
    return target


def timeout_seconds(timeout: str | None, options: str, *, waiting: bool) -> float | None:
    """Seconds of --timeout, which is of use only when something is waited for with one of these ``options``."""
    if timeout is None:
        return None
    if not waiting:
        raise UsageError(f"--timeout goes with {options}.")
    return pause_seconds(timeout)
