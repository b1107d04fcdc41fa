"""The person's terminal while a process of a machine has it: raw, given back whatever happens, with its size told."""

from __future__ import annotations

import atexit
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# What a terminal has that does not know its size.
_COLS, _ROWS = 80, 24
_SIZE_MOST = 10_000
_TERM = "xterm-256color"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+._-]{0,63}")


def is_terminal(number: int) -> bool:
    """Whether the standard stream of this number is a terminal."""
    try:
        return os.isatty(number)
    except OSError:
        return False


def terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal that the output goes to, or else the input comes from."""
    for number in (1, 0, 2):
        with suppress(OSError):
            cols, rows = os.get_terminal_size(number)
            if cols and rows:
                return min(cols, _SIZE_MOST), min(rows, _SIZE_MOST)
    return _COLS, _ROWS


def terminal_name() -> str:
    """What the terminal is, for programs that draw on it."""
    name = os.environ.get("TERM", "")
    return name if _NAME.fullmatch(name) else _TERM


class RawTerminal:
    """Standard input as a raw terminal. ``restore`` and ``enter`` may be called in any order, again and again."""

    def __init__(self) -> None:
        self._kept = termios.tcgetattr(0)
        self._raw = False

    def enter(self) -> None:
        """Every byte goes to the process from here on, that of Ctrl-C too."""
        with suppress(termios.error):
            self._kept = self._kept if self._raw else termios.tcgetattr(0)
            self._raw = True
            tty.setraw(0, termios.TCSADRAIN)

    def restore(self) -> None:
        """The terminal is as it was found."""
        if self._raw:
            self._raw = False
            with suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._kept)


@contextmanager
def raw_terminal() -> Iterator[RawTerminal]:
    """Standard input raw while the block runs, also across suspensions; restored however the program ends."""
    terminal = RawTerminal()
    atexit.register(terminal.restore)

    def suspend(_signal: int, _frame: object) -> None:
        terminal.restore()
        os.kill(os.getpid(), signal.SIGSTOP)

    def leave(number: int, _frame: object) -> None:
        terminal.restore()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    handled = {signal.SIGTSTP: suspend, signal.SIGTERM: leave, signal.SIGHUP: leave, signal.SIGQUIT: leave}
    before = {number: signal.signal(number, handler) for number, handler in handled.items()}
    terminal.enter()
    try:
        yield terminal
    finally:
        terminal.restore()
        atexit.unregister(terminal.restore)
        for number, handler in before.items():
            signal.signal(number, handler)
        sys.stdout.flush()
