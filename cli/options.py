"""Options that many commands share, also before the command's name, and what they amount to for one command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client import TaskClient

_SERVER_HELP = (
    "Server to talk to; default: TASKYARD_SERVER, AGENTIC_SERVER, the current context, http://localhost:8122."
)
_COMPLETION_SECONDS = 2.0
_COMPLETED_IDS = 100


class OutputFormat(StrEnum):
    """How results are written."""

    TEXT = "text"
    JSON = "json"
    TABLE = "table"


@dataclass(frozen=True)
class Given:
    """What stands before the command's name; the command's own options win."""

    server: str | None = None
    context: str | None = None
    format: OutputFormat | None = None
    watch: str | None = None


def complete_context(incomplete: str) -> list[str]:
    """Names of contexts that begin so."""
    from cli.contexts import load_contexts

    return [name for name in sorted(load_contexts().by_name) if name.startswith(incomplete)]


def _complete_id(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    """Ids of runs with their names; none when the server does not answer at once."""
    from cli.contexts import choose
    from cli.render import clean
    from client import TaskClient
    from foundation.errors import TaskyardError

    try:
        target = choose(ctx.params.get("server"), None)
        with TaskClient(target.server, target.token, timeout_seconds=_COMPLETION_SECONDS) as client:
            tasks = client.find(limit=_COMPLETED_IDS).tasks
    except TaskyardError:
        return []
    return [(task.id, f"{task.state}: {clean(task.name)}") for task in tasks if task.id.startswith(incomplete)]


Server = Annotated[str | None, typer.Option("--server", metavar="URL", help=_SERVER_HELP, show_default=False)]
ContextName = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context to use.", autocompletion=complete_context),
]
Format = Annotated[OutputFormat | None, typer.Option("--format", help="How to write the result.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
TaskId = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, autocompletion=_complete_id, help="Id of the run.")
]


def remember(
    ctx: typer.Context,
    server: str | None,
    context: str | None,
    output_format: OutputFormat | None,
    watch: str | None = None,
) -> None:
    """Keep what was given before the command's name, for the command and what stands between."""
    before = given(ctx)
    ctx.obj = replace(
        before,
        server=server or before.server,
        context=context or before.context,
        format=output_format or before.format,
        watch=watch or before.watch,
    )


def given(ctx: typer.Context) -> Given:
    """What was given before the command's name."""
    return ctx.obj if isinstance(ctx.obj, Given) else Given()


def format_of(ctx: typer.Context, own: OutputFormat | None, default: OutputFormat) -> OutputFormat:
    """How to write: as the command was told, else as was said before it, else the command's own way."""
    return own or given(ctx).format or default


def open_client(ctx: typer.Context, server: str | None) -> TaskClient:
    """A client of the server that was chosen."""
    from cli.contexts import choose
    from client import TaskClient

    before = given(ctx)
    target = choose(server or before.server, before.context)
    return TaskClient(target.server, target.token)
