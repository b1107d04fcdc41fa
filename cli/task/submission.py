"""What `sandbox task` submits: a manifest from a file or stdin, checked by the server, or that of an earlier run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import OutputFormat, TaskId, TaskIds, asks_server, format_of, open_client, print_data, writes_data
from cli.task import reading
from cli.task.batch import each_run
from cli.task.reading import Timeout, detachable, exit_by_outcome
from foundation.errors import InvalidManifest, UsageError

if TYPE_CHECKING:
    from client import TaskClient

_MANIFEST_BYTES = 16 * 2**20

ManifestFile = Annotated[
    Path | None, typer.Argument(metavar="FILE", help="Manifest, YAML or JSON; '-' reads stdin.", show_default=False)
]
ManifestOption = Annotated[Path | None, typer.Option("--file", "-f", metavar="FILE", help="The same.")]


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
    seconds = reading.timeout_seconds(timeout, "--follow, --watch or --wait", waiting=follow or watch or wait)
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
                from cli.task.watch import watch as watch_run

                ended = watch_run(client, task_id, seconds)
            else:
                ended = client.wait(task_id, timeout_seconds=seconds)
            if as_data:
                print_data(client.raw(task_id), written)
            elif wait and not watch:
                print_task(ended)
        exit_by_outcome(ended)


@asks_server
@writes_data
def validate(ctx: typer.Context, file: ManifestFile = None, file_option: ManifestOption = None) -> None:
    """Have the server check a manifest as if it were submitted, and start nothing.

    The exit code is 0 when it would be accepted. Example: sandbox task validate task.yaml
    """
    _validate(ctx, _read_manifest(file, file_option, "validate"))


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

    each_run(ctx, task_ids, again, lambda reply: str(reply["task_id"]))


@asks_server
@writes_data
def resume(
    ctx: typer.Context,
    task_id: TaskId,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What the agent is to do now.", show_default=False)],
    new_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Id of the new run.")] = None,
    files_only: Annotated[
        bool, typer.Option("--files-only", help="Begin a new conversation on the files of the run.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show the new run's log until it ends.")] = False,
) -> None:
    """Go on from where a run has ended: a new run on its files, in its agent's conversation.

    Its manifest is that of the ended run, with another prompt; 'resume' in a manifest of your own may change more. The
    run may have failed or been cancelled.

    Example: sandbox task resume 1ssrg4b-k3f9q "Now update the changelog too."
    """
    from cli.terminal import talk

    with open_client(ctx) as client:
        reply = _accepted(lambda text: client.resume(task_id, text, new_id=new_id, conversation=not files_only), prompt)
        _warn(reply)
        new = str(reply["task_id"])
        if follow:
            talk().print(f"Submitted {new}")
            exit_by_outcome(reading.follow_log(client, new, None, written=format_of(ctx, OutputFormat.TEXT), raw=False))
        _print_reply(ctx, reply, new)
        talk().print(f"Follow it with: sandbox task logs {new} --follow")


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
