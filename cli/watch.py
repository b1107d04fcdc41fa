"""Live views: the states of a run, one line each, with the agent's progress; and a list shown anew again and again."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from cli.render import clean
from cli.task_view import output, print_outcome, progress_of, state_text, states_of
from client import PATIENCE_SECONDS
from client.refusals import still_going
from foundation.units import format_seconds

if TYPE_CHECKING:
    from client import Task, TaskClient

_LOOK_SECONDS = 1.0
_REFRESHES_PER_SECOND = 8
_WAY = ("pending", "staging", "provisioning", "ready", "running", "completing", "completed")
_WIDTH = max(map(len, _WAY)) + 2


def watch(client: TaskClient, task_id: str, timeout_seconds: float | None = None) -> Task:
    """Show a run's states until it ends, and give the ended run. Raises TimedOut.

    On a terminal, below the states that are done, stands what goes on now and what is to come; elsewhere the progress
    is written as a line when it has changed.
    """
    console = output()
    deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
    view = _States(console)
    with view.live if view.live is not None else nullcontext():
        while True:
            task = client.get(task_id, patience_seconds=PATIENCE_SECONDS)
            view.show(task)
            if task.terminal:
                break
            if deadline is not None and time.monotonic() + _LOOK_SECONDS > deadline:
                raise still_going(task)
            time.sleep(_LOOK_SECONDS)
    print_outcome(console, task)
    return task


def repeat(show: Callable[[], None], seconds: float) -> None:
    """Show something anew every so many seconds, in the same place of a terminal, until Ctrl-C."""
    console = Console()
    try:
        while True:
            console.clear()
            show()
            time.sleep(seconds)
    except KeyboardInterrupt:
        return


class _States:
    """The lines of one watched run."""

    def __init__(self, console: Console) -> None:
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND)
        self._console = console
        self._done = 0
        self._told = ""
        self._spinner = Spinner("dots")

    def show(self, task: Task) -> None:
        """Write the states that have ended since the last look, and what goes on now."""
        for state, seconds in list(states_of(task))[self._done :]:
            if seconds is None:
                break
            self._console.print(Text.assemble(("✓ ", "green"), f"{state:<{_WIDTH}}", (format_seconds(seconds), "dim")))
            self._done += 1
        if task.terminal:
            return
        text = progress_of(task) or clean(task.state_message or "")
        if self.live is not None:
            self.live.update(self._going_on(task, text))
        elif (line := f"· {task.state:<{_WIDTH}}{text}".rstrip()) != self._told:
            self._console.print(line)
            self._told = line

    def _going_on(self, task: Task, text: str) -> Group:
        age = max(0.0, (datetime.now(UTC) - task.state_changed_at).total_seconds())
        line = Text.assemble(state_text(task.state), " " * (_WIDTH - len(task.state)))
        line.append(f"{format_seconds(age)}  ", "dim").append(text)
        self._spinner.update(text=line)
        known = _WAY.index(task.state) if task.state in _WAY else len(_WAY)
        return Group(self._spinner, *(Text(f"  {state}", "dim") for state in _WAY[known + 1 :]))
