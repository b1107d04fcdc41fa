"""The standard streams of the command line: what may be written to them, and what becomes of it when nobody reads."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

CLOSED_PIPE = 141
_SHOW_CURSOR = b"\x1b[?25h"

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


def is_quiet() -> bool:
    """Whether only data and errors are to be written."""
    return _quiet


def complain(sentence: str) -> None:
    """Say what went wrong, on stderr, quiet or not."""
    sys.stderr.write(f"Error: {clean(sentence)}\n")


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


def finish() -> int | None:
    """Write what is still to be written, and show the cursor again; the exit code when that was not possible."""
    code: int | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except SystemExit as leaving:
            code = code or int(str(leaving.code))
        except (OSError, ValueError):
            code = code or 1
    _Pipe.over = True
    # Ctrl-C may have come before whatever hides it could promise to show it.
    if os.environ.get("TERM", "dumb") not in {"dumb", "unknown"} and os.isatty(1):
        with suppress(OSError):
            os.write(1, _SHOW_CURSOR)
    return code


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
