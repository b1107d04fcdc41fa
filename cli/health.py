"""`sandbox health`: whether the server answers, and whether what it needs does."""

from __future__ import annotations

from typing import Any

import typer

from cli.options import AsJson, ContextName, Format, OutputFormat, Server, format_of, open_client, remember
from foundation.errors import TaskyardError

app = typer.Typer(no_args_is_help=True, help="Ask a server whether it is well.")

_WATCHDOG = "/healthz/http"
_CHECKS = ("/healthz", _WATCHDOG, "/readyz", "/healthz/deep")


@app.callback()
def health(
    ctx: typer.Context,
    server: Server = None,
    context: ContextName = None,
    output_format: Format = None,
    as_json: AsJson = False,
) -> None:
    """Ask a server whether it is well."""
    remember(ctx, server, context, OutputFormat.JSON if as_json else output_format)


@app.command()
def status(ctx: typer.Context, server: Server = None, output_format: Format = None) -> None:
    """Make all checks: is the process alive, can it take tasks, how many workers and tasks there are.

    The exit code is 1 when one of them fails.
    """
    from cli.task_view import print_json, print_rows, print_table

    answers: dict[str, dict[str, Any]] = {}
    failed = set()
    with open_client(ctx, server) as client:
        # A server that is not there at all is told of once.
        answers[_CHECKS[0]] = client.health(_CHECKS[0])
        for path in _CHECKS[1:]:
            try:
                answers[path] = client.health(path)
            except TaskyardError as error:
                answers[path] = {"error": error.code, "message": error.message}
                failed.add(path)
    rows = [(path, "failed" if path in failed else "ok", _written(answer)) for path, answer in answers.items()]
    match format_of(ctx, output_format, OutputFormat.TABLE):
        case OutputFormat.JSON:
            print_json(answers)
        case OutputFormat.TEXT:
            print_rows(rows)
        case OutputFormat.TABLE:
            print_table(("CHECK", "RESULT", "ANSWER"), rows, flexible="ANSWER", fold=True)
    if failed:
        raise typer.Exit(1)


@app.command()
def watchdog(ctx: typer.Context, server: Server = None, output_format: Format = None) -> None:
    """Ask only whether the HTTP service answers: quick, for what restarts it."""
    from cli.task_view import print_json

    with open_client(ctx, server) as client:
        answer = client.health(_WATCHDOG)
    if format_of(ctx, output_format, OutputFormat.TEXT) is OutputFormat.JSON:
        print_json(answer)
    else:
        typer.echo(answer["http"])


def _written(answer: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in answer.items())
