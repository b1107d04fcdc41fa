"""What leaves the command line: data on stdout, everything else on stderr; tables, rows, JSON and YAML."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from cli.streams import clean, is_quiet

# The least of a name that is still of use.
_LEAST_CHARS = 8
_GAP = 2


def output() -> Console:
    """Where data goes."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


def talk() -> Console:
    """Where everything goes that is neither data nor an error."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True, quiet=is_quiet())


def spinner_name(console: Console) -> str:
    """A spinner that the terminal has the characters for."""
    return "line" if console.options.ascii_only else "dots"


def print_json(data: Any) -> None:
    """JSON, laid out; the server's own is unchanged but for its layout."""
    unicode = codecs.lookup(sys.stdout.encoding or "ascii").name.startswith("utf")
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=not unicode) + "\n")


def print_yaml(data: Any) -> None:
    """The same data as YAML, without anything in it that could steer a terminal."""
    import yaml

    sys.stdout.write(yaml.safe_dump(data, sort_keys=False, allow_unicode=False))


def print_rows(rows: Iterable[Sequence[str]]) -> None:
    """Rows for programs: a line each, fields divided by tabs."""
    for row in rows:
        sys.stdout.write("\t".join(" ".join(clean(field).split()) for field in row) + "\n")


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    flexible: str | None = None,
    droppable: Sequence[str] = (),
    wide: bool = False,
) -> None:
    """Print a table. What reads a pipe gets everything, and so does who asks for it ``wide``.

    On a terminal the flexible column takes the room that the others leave, and is shortened to it. When that is too
    little, the columns that may be dropped are: the first named first. Nothing else is ever shortened or broken: it is
    there to be copied.
    """
    console = output()
    cells = [[Text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    widths = {
        head: max([len(head), *(row[place].cell_len for row in cells)], default=0) for place, head in enumerate(heads)
    }
    kept = list(heads)
    if console.is_terminal and not wide:
        kept, widths = _fitted(console.width, widths, flexible, droppable)
    for line in ([Text(head, "bold") for head in heads], *cells):
        visible = [(head, cell) for head, cell in zip(heads, line, strict=True) if head in kept]
        text = Text()
        for place, (head, cell) in enumerate(visible):
            piece = cell.copy()
            piece.truncate(widths[head], overflow="ellipsis")
            room = widths[head] - piece.cell_len
            last = place == len(visible) - 1
            text.append(" " * room if head == "SIZE" else "")
            text.append_text(piece)
            text.append("" if last else " " * ((0 if head == "SIZE" else room) + _GAP))
        text.rstrip()
        console.print(text, soft_wrap=True)


def _fitted(
    width: int, widths: dict[str, int], flexible: str | None, droppable: Sequence[str]
) -> tuple[list[str], dict[str, int]]:
    """The columns that are shown, and how wide each is."""
    kept = list(widths)

    def room() -> int:
        return width - sum(widths[head] + _GAP for head in kept if head != flexible)

    wanted = widths.get(flexible, 0) if flexible else 0
    for head in droppable:
        if room() >= min(wanted, _LEAST_CHARS):
            break
        kept.remove(head)
    if flexible is None:
        return kept, widths
    if room() < 1:
        kept.remove(flexible)
    return kept, widths | {flexible: min(wanted, max(room(), 1))}
