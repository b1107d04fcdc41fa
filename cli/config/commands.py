"""The commands `sandbox config`: every setting with its source, secrets masked; and the servers that have a name."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import completion
from cli.options import OutputFormat, format_of, print_data, writes_data

if TYPE_CHECKING:
    from foundation.settings import Settings

_MASK = "********"
# Values that are derived when the setting itself is absent, by the property that derives them.
_DERIVED = {
    "image_dir": ("images", ""),
    "temporal_address": ("temporal_target", " (embedded)"),
    "s3_endpoint": ("s3_target", " (embedded)"),
}


app = typer.Typer(help="Show all settings and where they come from; name servers.", invoke_without_command=True)

ContextArgument = Annotated[
    str,
    typer.Argument(metavar="NAME", show_default=False, help="Name of the context.", autocompletion=completion.contexts),
]


@app.callback()
@writes_data
def config(ctx: typer.Context) -> None:
    """Show all settings, their values and where these come from; or keep the names of servers.

    Each setting is set by an environment variable of the name shown. A context is a server with a name, and a token if
    it wants one; commands that are told of no other server talk to that of the current context.
    """
    if ctx.invoked_subcommand is None:
        _show_settings(format_of(ctx, OutputFormat.TEXT))


@app.command("key")
def key() -> None:
    """Print the key that clients of the task-runs API show: the first one set, or the one made at first start.

    Example: sandbox config key
    """
    from foundation.settings import Settings

    typer.echo(Settings().client_keys()[0].decode())


@app.command("set-context")
def set_context(
    name: ContextArgument,
    server: Annotated[str, typer.Option("--server", metavar="URL", help="The server.", show_default=False)],
    token: Annotated[
        str | None, typer.Option("--token", metavar="TOKEN", help="Bearer token that it wants; '-' reads stdin.")
    ] = None,
) -> None:
    """Name a server, or give a name another server.

    Example: sandbox config set-context staging --server http://127.0.0.1:8122
    """
    from cli.config.contexts import checked, load_contexts, save_contexts

    contexts = load_contexts()
    token = sys.stdin.read().strip() if token == "-" else token  # noqa: S105 -- the word for stdin
    contexts.by_name[name] = checked(name, server, token)
    save_contexts(contexts)
    hint = "" if contexts.current == name else f" Use it with: sandbox config use-context {name}"
    typer.echo(f"Context '{name}' is {contexts.by_name[name].server}.{hint}", err=True)


@app.command("use-context")
def use_context(name: ContextArgument) -> None:
    """Make a context the current one.

    Example: sandbox config use-context staging
    """
    from cli.config.contexts import load_contexts, save_contexts

    contexts = load_contexts()
    server = contexts.named(name).server
    contexts.current = name
    save_contexts(contexts)
    typer.echo(f"Commands talk to {server} now.", err=True)


@app.command("get-contexts")
@writes_data
def get_contexts(ctx: typer.Context) -> None:
    """List the contexts; a star marks the current one."""
    from cli.config.contexts import load_contexts

    contexts = load_contexts()
    known = sorted(contexts.by_name.items())
    facts = [
        {"name": name, "server": each.server, "token": each.token is not None, "current": name == contexts.current}
        for name, each in known
    ]
    written = format_of(ctx, OutputFormat.TABLE)
    if print_data(facts, written):
        return
    from cli.terminal import print_rows, print_table, talk

    rows = [
        ("*" if name == contexts.current else "", name, each.server, "set" if each.token else "-")
        for name, each in known
    ]
    if written is OutputFormat.NAME:
        print_rows([name] for name, _ in known)
    elif written is OutputFormat.TEXT:
        print_rows(rows)
    elif known:
        print_table(("", "NAME", "SERVER", "TOKEN"), rows)
    else:
        talk().print("No contexts; make one with: sandbox config set-context NAME --server URL")


@app.command("delete-context")
def delete_context(name: ContextArgument) -> None:
    """Forget a context, and its token.

    Example: sandbox config delete-context staging
    """
    from cli.config.contexts import load_contexts, save_contexts

    contexts = load_contexts()
    contexts.named(name)
    del contexts.by_name[name]
    if contexts.current == name:
        contexts.current = None
    save_contexts(contexts)
    typer.echo(f"Context '{name}' is forgotten.", err=True)


def _show_settings(written: OutputFormat) -> None:
    from cli.terminal import output, print_rows, print_table
    from foundation.settings import Settings

    rows = setting_rows(Settings())
    if print_data(rows, written):
        return
    if written is OutputFormat.NAME:
        print_rows([row["name"]] for row in rows)
        return
    if written in {OutputFormat.TABLE, OutputFormat.WIDE}:
        print_table(("NAME", "VALUE", "SOURCE"), [(row["name"], row["shown"], row["source"]) for row in rows])
        return
    from rich.text import Text

    console = output()
    for row in rows:
        is_set = row["source"] != "default"
        line = Text(f"{row['name']:<33}", style="bold" if is_set else "")
        line.append(row["shown"], style="green" if is_set else "")
        line.append(f"  ({'set by ' if is_set else ''}{row['source']})", style="dim")
        console.print(line)
        console.print(Text(f"    {row['description']}", style="dim"))


def setting_rows(settings: Settings) -> list[dict[str, Any]]:
    """One dict for each setting: name, value, shown, source, description.

    ``name`` is the environment variable; ``value`` is JSON-ready, secrets are masked; ``shown`` is the value in words,
    derived ones included; ``source`` is ``default`` or the variable that set it.
    """
    from pydantic import AliasChoices, SecretStr

    values = settings.model_dump(mode="json")
    rows = []
    for field, info in type(settings).model_fields.items():
        alias = info.validation_alias
        names = [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []
        variables = names or [f"TASKYARD_{field.upper()}"]
        source = next((name for name in variables if name in os.environ), "default")
        value: Any = values[field]
        if isinstance(getattr(settings, field), SecretStr):
            value = _MASK
        text = _in_words(value)
        if value is None and field in _DERIVED:
            attribute, remark = _DERIVED[field]
            text = f"{getattr(settings, attribute)}{remark}"
        rows.append(
            {
                "name": variables[0],
                "value": value,
                "shown": text,
                "source": source,
                "description": info.description or "",
            }
        )
    return rows


def _in_words(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
