"""`sandbox health`: whether the server answers, and whether what it needs does."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import OutputFormat, asks_server, format_of, open_client, print_data, writes_data
from foundation.errors import TaskyardError
from foundation.urls import without_credentials

app = typer.Typer(no_args_is_help=True, help="Ask a server whether it is well.")

_WATCHDOG = "/healthz/http"
_CHECKS = ("/healthz", _WATCHDOG, "/readyz", "/healthz/deep")


@app.callback()
@asks_server
@writes_data
def health(ctx: typer.Context) -> None:
    """Ask a server whether it is well."""


@app.command()
@asks_server
@writes_data
def status(ctx: typer.Context) -> None:
    """Make all checks: is the process alive, can it take tasks, how many workers and tasks there are.

    The exit code is 1 when one of them fails.
    """
    from cli.task.view import one_line
    from cli.terminal import print_rows, print_table

    answers: dict[str, dict[str, Any]] = {}
    failed = set()
    with open_client(ctx) as client:
        # A server that is not there at all is told of once.
        answers[_CHECKS[0]] = client.health(_CHECKS[0])
        for path in _CHECKS[1:]:
            try:
                answers[path] = client.health(path)
            except TaskyardError as error:
                answers[path] = {"error": error.code, "message": error.message}
                failed.add(path)
    rows = [(path, "failed" if path in failed else "ok", one_line(_written(each))) for path, each in answers.items()]
    written = format_of(ctx, OutputFormat.TABLE)
    if written is OutputFormat.NAME:
        print_rows([path] for path in answers)
    elif written is OutputFormat.TEXT:
        print_rows(rows)
    elif not print_data(answers, written):
        print_table(("CHECK", "RESULT", "ANSWER"), rows)
    if failed:
        raise typer.Exit(1)


@app.command()
@asks_server
@writes_data
def watchdog(ctx: typer.Context) -> None:
    """Ask only whether the HTTP service answers: quick, for what restarts it."""
    from cli.streams import clean

    with open_client(ctx) as client:
        answer = client.health(_WATCHDOG)
    if not print_data(answer, format_of(ctx, OutputFormat.TEXT)):
        typer.echo(clean(str(answer.get("http") or answer.get("status"))))


@asks_server
@writes_data
def version(ctx: typer.Context) -> None:
    """Print the versions of this program and, when it answers, of the server.

    The exit code is 0 either way.
    """
    from importlib.metadata import version as installed

    from cli.task.view import print_fields

    facts: dict[str, Any] = {"client": installed("taskyard"), "server": None, "address": None}
    try:
        with open_client(ctx) as client:
            facts["address"] = without_credentials(client.server)
            found = client.health().get("version")
            facts["server"] = None if found is None else str(found)
            absent = "it tells no version"
    except TaskyardError as error:
        absent = error.message
    if not print_data(facts, format_of(ctx, OutputFormat.TEXT)):
        print_fields([("sandbox", facts["client"]), ("server", facts["server"] or f"unknown: {absent}")])


def _written(answer: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in answer.items())
