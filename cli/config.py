"""The command `sandbox config`: every setting, the value in force and where it comes from; secrets are masked."""

from __future__ import annotations

import json
import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from foundation.settings import Settings

_MASK = "********"
# Values that are derived when the setting itself is absent, by the property that derives them.
_DERIVED = {
    "image_dir": ("images", ""),
    "temporal_address": ("temporal_target", " (embedded)"),
    "s3_endpoint": ("s3_target", " (embedded)"),
}


class Format(StrEnum):
    """How a command prints its answer."""

    TEXT = "text"
    JSON = "json"


def config(
    output: Annotated[Format, typer.Option("--format", help="How to print: text or json.")] = Format.TEXT,
) -> None:
    """Show all settings, their values and where these come from.

    Each is set by an environment variable of the name shown.
    """
    from foundation.settings import Settings

    rows = setting_rows(Settings())
    if output is Format.JSON:
        typer.echo(json.dumps(rows, indent=2))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for row in rows:
        is_set = row["source"] != "default"
        line = Text(f"{row['name']:<33}", style="bold" if is_set else "")
        line.append(row["shown"], style="green" if is_set else "")
        line.append(f"  ({'set by ' if is_set else ''}{row['source']})", style="dim")
        console.print(line, soft_wrap=True)
        console.print(Text(f"    {row['description']}", style="dim"), soft_wrap=True)


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
        shown = _shown(value)
        if value is None and field in _DERIVED:
            attribute, remark = _DERIVED[field]
            shown = f"{getattr(settings, attribute)}{remark}"
        rows.append(
            {
                "name": variables[0],
                "value": value,
                "shown": shown,
                "source": source,
                "description": info.description or "",
            }
        )
    return rows


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
