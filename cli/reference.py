"""`python -m cli.reference`: writes the parts of docs/ that the program itself knows best: commands and settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from cli.main import LazyCommand, app
from foundation.settings import Settings

DOCS = Path(__file__).resolve().parents[1] / "docs"

_BEGIN = "<!-- {name}: begin (written by `python -m cli.reference`) -->"
_END = "<!-- {name}: end -->"
# Defaults that each host works out for itself, in words.
_MADE = {"home": "`~/.local/share/taskyard`", "host_name": "the name of the host"}
_NOT_SHOWN = {"--help"}


def pages() -> dict[Path, str]:
    """The text of each written page as it should be, its handwritten parts unchanged."""
    written = {"cli.md": ("commands", commands()), "settings.md": ("settings", settings())}
    return {DOCS / page: _filled(DOCS / page, name, text) for page, (name, text) in written.items()}


def command_tree() -> Iterator[tuple[str, Any]]:
    """Every command with its full name, ``sandbox`` itself first."""
    yield from _below("sandbox", typer.main.get_command(app))


def commands() -> str:
    """All commands with their arguments and options, as Markdown."""
    return "\n\n".join(_command(name, command) for name, command in command_tree())


def settings() -> str:
    """All settings with their defaults, as a Markdown table."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for field, info in Settings.model_fields.items():
        alias = info.validation_alias
        names = getattr(alias, "choices", None) or [f"TASKYARD_{field.upper()}"]
        variables = " or ".join(f"`{name}`" for name in names)
        rows.append(f"| {variables} | {_MADE.get(field) or _default(info)} | {_cell(info.description or '')} |")
    return "\n".join(rows)


def _below(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    command = command.load() if isinstance(command, LazyCommand) else command
    yield name, command
    for child, found in getattr(command, "commands", {}).items():
        yield from _below(f"{name} {child}", found)


def _command(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    visible = [parameter for parameter in command.params if not _NOT_SHOWN & set(parameter.opts)]
    parts = [f"### `{name}`", f"    {_usage(name, command)}", _paragraphs(command.help or "")]
    if visible:
        rows = [f"| {_names(parameter, context)} | {_cell(_meaning(parameter))} |" for parameter in visible]
        parts.append("\n".join(["| | |", "|---|---|", *rows]))
    return "\n\n".join(part for part in parts if part)


def _usage(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    words = [
        parameter.display_name_raw if parameter.required else f"[{parameter.display_name_raw.strip('[]')}]"
        for parameter in arguments
    ]
    below = ["COMMAND ..."] if hasattr(command, "commands") else []
    return " ".join([name, "[OPTIONS]", *words, *below])


def _names(parameter: Any, context: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.display_name_raw}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    return names if parameter.is_flag else _cell(f"{names} `{parameter.display_type_rich(context)}`")


def _meaning(parameter: Any) -> str:
    text = parameter.help or ""
    default = parameter.default
    if parameter.param_type_name == "option" and not parameter.is_flag and default not in {None, ""}:
        text += f" Default: {getattr(default, 'value', default)}."
    return text


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n"))


def _default(info: Any) -> str:
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    return "`" + (", ".join(map(str, value)) if isinstance(value, list) else str(value)) + "`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _filled(page: Path, name: str, text: str) -> str:
    begin, end = _BEGIN.format(name=name), _END.format(name=name)
    head, _, rest = page.read_text().partition(begin)
    _, found, tail = rest.partition(end)
    if not found:
        raise ValueError(f"{page} has no part between '{begin}' and '{end}'")
    return f"{head}{begin}\n\n{text}\n\n{end}{tail}"


def main() -> None:
    """Write the pages that are not as they should be, and name them."""
    for page, text in pages().items():
        if page.read_text() != text:
            page.write_text(text)
            sys.stdout.write(f"{page.name} is written anew.\n")


if __name__ == "__main__":
    main()
