"""Options that many commands share, also before the command's name, and what they amount to for one command."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completion

if TYPE_CHECKING:
    from client import TaskClient

_SERVER_HELP = (
    "Server to talk to; default: TASKYARD_SERVER, AGENTIC_SERVER, the current context, http://localhost:8122."
)


class OutputFormat(StrEnum):
    """How results are written."""

    TABLE = "table"
    WIDE = "wide"
    TEXT = "text"
    NAME = "name"
    JSON = "json"
    YAML = "yaml"


@dataclass(frozen=True)
class SharedOptions:
    """The values of shared options so far; those after a command's name win over those before it."""

    server: str | None = None
    context: str | None = None
    format: OutputFormat | None = None
    watch: str | None = None


Server = Annotated[str | None, typer.Option("--server", metavar="URL", help=_SERVER_HELP, show_default=False)]
ContextName = Annotated[
    str | None,
    typer.Option("--context", metavar="NAME", help="Context to use.", autocompletion=completion.contexts),
]
Format = Annotated[
    OutputFormat | None, typer.Option("--format", "--output", "-o", help="How to write the result.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write data and errors only.")]
TaskId = Annotated[
    str, typer.Argument(metavar="ID", show_default=False, autocompletion=completion.task_ids, help="Id of the run.")
]
TaskIds = Annotated[
    list[str],
    typer.Argument(metavar="ID...", show_default=False, autocompletion=completion.task_ids, help="Ids of the runs."),
]

_SERVER_OPTIONS = {"server": Server, "context": ContextName, "quiet": Quiet}
_FORMAT_OPTIONS = {"output_format": Format, "as_json": AsJson}
_DEFAULTS = {"quiet": False, "as_json": False}


def asks_server(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command, or what stands before its name, the options that say which server is asked."""
    return _with(command, _SERVER_OPTIONS)


def writes_data(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command, or what stands before its name, the options that say how its result is written."""
    return _with(command, _FORMAT_OPTIONS)


def _with(command: Callable[..., Any], options: dict[str, Any]) -> Callable[..., Any]:
    """The command with more options, which it finds in its context, and not among its arguments."""
    signature = inspect.signature(command, eval_str=True)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS.get(name), annotation=annotation)
        for name, annotation in options.items()
    ]

    @functools.wraps(command)
    def taking(ctx: typer.Context, **arguments: Any) -> Any:
        shared = {name: arguments.pop(name) for name in options}
        _remember(ctx, **shared)
        return command(ctx, **arguments)

    taking.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    taking.__annotations__ = {name: parameter.annotation for name, parameter in signature.parameters.items()} | options
    return taking


def _remember(ctx: typer.Context, **shared: Any) -> None:
    given = shared_options(ctx)
    written = OutputFormat.JSON if shared.get("as_json") else shared.get("output_format")
    ctx.obj = replace(
        given,
        server=shared.get("server") or given.server,
        context=shared.get("context") or given.context,
        format=written or given.format,
    )
    if shared.get("quiet"):
        from cli.streams import be_quiet

        be_quiet(True)


def shared_options(ctx: typer.Context) -> SharedOptions:
    """The shared options of the command, and of what stands before its name."""
    return ctx.obj if isinstance(ctx.obj, SharedOptions) else SharedOptions()


def format_of(ctx: typer.Context, default: OutputFormat) -> OutputFormat:
    """The format: of the command's own option, else of the one before its name, else the default."""
    return shared_options(ctx).format or default


def print_data(data: Any, written: OutputFormat) -> bool:
    """Write data that is asked for as data. False when it is wanted in words, and nothing was written."""
    from cli.terminal import print_json, print_yaml

    if written is OutputFormat.JSON:
        print_json(data)
    elif written is OutputFormat.YAML:
        print_yaml(data)
    else:
        return False
    return True


def open_client(ctx: typer.Context) -> TaskClient:
    """A client of the server that was chosen."""
    from cli.config.contexts import choose
    from client import TaskClient

    given = shared_options(ctx)
    target = choose(given.server, given.context)
    return TaskClient(target.server, target.token)
