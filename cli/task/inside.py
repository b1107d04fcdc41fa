"""`sandbox task exec` and `shell`: commands and terminals in the machine of a run."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from cli.options import TaskId, asks_server, shared_options
from foundation.errors import UsageError

if TYPE_CHECKING:
    from cli.task.connection import Server

_END_OF_OPTIONS = "--"
# That of the user; of one whose shell is for programs, the one for people.
_LOGIN = 'if [ -x /bin/bash ]; then exec /bin/bash -l; fi; exec "${SHELL:-/bin/sh}" -l'

User = Annotated[
    str | None,
    typer.Option("--user", "-u", metavar="USER", help="Name, or uid, or uid:gid; default: agent.", show_default=False),
]
Directory = Annotated[
    str | None,
    typer.Option("--workdir", "-w", metavar="DIR", help="Where to start; default: the workspace.", show_default=False),
]
Environment = Annotated[
    list[str] | None,
    typer.Option(
        "--env", "-e", metavar="NAME=VALUE", help="A variable; NAME alone takes it from here. May be repeated."
    ),
]


class WithCommand(TyperCommand):
    """Takes options before and after the run's id, and none of those of the command that follows it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options may stand behind the id where '--' parts them from the command."""
        ctx.allow_interspersed_args = False
        if _END_OF_OPTIONS in args:
            ctx.allow_interspersed_args = self._names_id_alone(ctx, args[: args.index(_END_OF_OPTIONS)])
        return super().parse_args(ctx, args)

    def _names_id_alone(self, ctx: Any, head: list[str]) -> bool:
        ctx.allow_interspersed_args = True
        try:
            found, _, _ = self.make_parser(ctx).parse_args(list(head))
        except Exception:  # noqa: BLE001 -- whatever is wrong is said when it is read as what it is
            return False
        return bool(found.get("task_id")) and not found.get("command")


@asks_server
def exec_(
    ctx: typer.Context,
    task_id: TaskId,
    command: Annotated[
        list[str], typer.Argument(metavar="COMMAND...", help="The command, best after '--'.", show_default=False)
    ],
    stdin: Annotated[bool, typer.Option("--stdin", "-i", help="Pass standard input on.")] = False,
    tty: Annotated[bool, typer.Option("--tty", "-t", help="Give it a terminal.")] = False,
    user: User = None,
    workdir: Directory = None,
    env: Environment = None,
) -> None:
    """Run a command in the machine of a run that is going on, or whose machine was kept.

    The exit code is the command's, and 128 and the number of a signal that ended it. Ctrl-C goes to the command; a
    second one leaves. Whoever leaves ends the command, and all that it has started.

    Example: sandbox task exec 1ssrg4b-k3f9q -- git status
    """
    from cli.task.terminal_mode import is_terminal

    words = command[1:] if command[:1] == [_END_OF_OPTIONS] else command
    if not words or not words[0]:
        raise UsageError("Say which command is to be run: sandbox task exec ID -- COMMAND.")
    if tty and stdin and not is_terminal(0):
        raise UsageError("Standard input is no terminal; leave out -t.")
    raise typer.Exit(
        _attached(
            ctx,
            task_id,
            {"argv": words, "directory": workdir, "environment": _environment(env), "user": user, "stdin": stdin},
            terminal=tty,
        )
    )


@asks_server
def shell(ctx: typer.Context, task_id: TaskId, user: User = None) -> None:
    """Open a shell in the machine of a run that is going on, or whose machine was kept.

    It ends with the connection, and so does all that was started in it.

    Example: sandbox task shell 1ssrg4b-k3f9q
    """
    from cli.task.terminal_mode import is_terminal

    if not is_terminal(0):
        raise UsageError("A shell needs a terminal; a script goes to: sandbox task exec -i ID -- sh")
    raise typer.Exit(_attached(ctx, task_id, {"shell": _LOGIN, "user": user, "stdin": True}, terminal=True))


def _attached(ctx: typer.Context, task_id: str, fields: dict[str, Any], *, terminal: bool) -> int:
    from pydantic import ValidationError

    from cli.task.attachment import attach
    from cli.task.terminal_mode import is_terminal, terminal_name, terminal_size
    from foundation.service.attachment import Attachment

    given: dict[str, Any] = {name: value for name, value in fields.items() if value is not None}
    if terminal:
        cols, rows = terminal_size()
        given["terminal"] = {"cols": cols, "rows": rows, "term": terminal_name()}
    try:
        wanted = Attachment.model_validate(given)
    except ValidationError as error:
        raise UsageError("; ".join(_told(fault) for fault in error.errors(include_url=False))) from None
    sys.stdout.flush()
    return attach(server_of(ctx), task_id, wanted, raw=terminal and wanted.stdin and is_terminal(0))


def _told(fault: Any) -> str:
    field = ".".join(str(part) for part in fault["loc"])
    return (
        f"{field}: {fault['msg'].removeprefix('Value error, ')}"
        if field
        else fault["msg"].removeprefix("Value error, ")
    )


def server_of(ctx: typer.Context) -> Server:
    """The server that was chosen."""
    from cli.config.contexts import choose
    from cli.task.connection import Server

    options = shared_options(ctx)
    target = choose(options.server, options.context)
    return Server(target.server, target.token)


def _environment(given: list[str] | None) -> dict[str, str]:
    found = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if equals:
            found[name] = value
        elif name in os.environ:
            found[name] = os.environ[name]
    return found
