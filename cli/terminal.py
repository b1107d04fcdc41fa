"""What leaves the command line: data on stdout, everything else on stderr; tables, rows, JSON and YAML."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

CLOSED_PIPE = 141

# The least of a name that still tells something.
_LEAST_CHARS = 8
_GAP = 2
# What is a line's end to some program and none to others goes with the control characters; so do half characters, and
# what changes the direction of the text around it or cannot be seen.
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
# Marks of our own, on a terminal that has ASCII only.
_ASCII_MARKS = str.maketrans({"●": "*", "▸": ">", "◆": "#", "■": "=", "·": "-", "»": ">", "✓": "+", "✗": "x", "…": "~"})

_quiet = False


def clean(text: str) -> str:
    """Text without control characters, so that it cannot steer a terminal; tabs and newlines stay."""
    return _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def be_quiet(quiet: bool) -> None:
    """Whether ``talk`` says anything from now on."""
    global _quiet  # noqa: PLW0603 -- one command, one terminal
    _quiet = quiet


def output() -> Console:
    """Where data goes."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


def talk() -> Console:
    """Where everything goes that is neither data nor an error."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True, quiet=_quiet)


def complain(sentence: str) -> None:
    """Say what went wrong, on stderr, quiet or not."""
    sys.stderr.write(f"Error: {clean(sentence)}\n")


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
        shown = [(head, cell) for head, cell in zip(heads, line, strict=True) if head in kept]
        text = Text()
        for place, (head, cell) in enumerate(shown):
            piece = cell.copy()
            piece.truncate(widths[head], overflow="ellipsis")
            room = widths[head] - piece.cell_len
            last = place == len(shown) - 1
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


def prepare() -> None:
    """Make the standard streams such that writing to them never fails by its own: called once, first of all.

    Streams that are closed lead nowhere. A character that the terminal does not have is written as its escape. When
    whoever reads has gone, the program ends with exit code 141, as others do.
    """
    codecs.register_error("taskyard", _replaced)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "r" if number == 0 else "w"))  # noqa: SIM115, PTH123 -- for good
        elif number == 0:
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="surrogateescape")
        else:
            buffer = io.BufferedWriter(_Pipe(number))
            at_once = name == "stderr" or stream.isatty()
            made = io.TextIOWrapper(buffer, encoding=stream.encoding, errors="taskyard", line_buffering=at_once)
            setattr(sys, name, made)


def finish() -> bool:
    """Write what is still to be written. False when that was not possible."""
    done = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            done = False
    _Pipe.over = True
    return done


class _Pipe(io.FileIO):
    """A standard stream whose reader may go away, and whose disk may be full."""

    #: Set at the end of the program, after which what cannot be written is dropped.
    over = False

    def __init__(self, number: int) -> None:
        super().__init__(number, "w", closefd=False)
        self._broken: SystemExit | None = None

    def write(self, data: Any) -> int:
        if self._broken is None:
            try:
                return super().write(data)
            except BrokenPipeError:
                self._broken = SystemExit(CLOSED_PIPE)
            except OSError as error:
                self._broken = SystemExit(1)
                if self.fileno() == 1:
                    complain(f"The output cannot be written: {error.strerror}.")
        if self.over:
            return len(data)
        raise self._broken


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_ASCII_MARKS)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end
