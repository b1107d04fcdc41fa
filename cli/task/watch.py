"""Live views: the states of a run, one line each, with the agent's progress; and a list shown anew again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from cli.options import OutputFormat, print_data
from cli.streams import clean
from cli.task.view import print_outcome, progress_of, state_text, states_of
from cli.terminal import output, print_rows, spinner_name, talk
from client import PATIENCE_SECONDS
from client.refusals import still_going
from foundation.units import format_seconds

if TYPE_CHECKING:
    from client import Task, TaskClient

_LOOK_SECONDS = 1.0
_REFRESHES_PER_SECOND = 8
_WAY = ("pending", "staging", "provisioning", "ready", "running", "completing", "completed")
# Whence a run may go back on its way.
_ASLEEP = "awaiting_decision"
_WIDTH = max(map(len, (*_WAY, _ASLEEP))) + 2


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


def wait_for_all(client: TaskClient, task_ids: Sequence[str], seconds: float | None, written: OutputFormat) -> bool:
    """Wait until all runs have ended, and write each when it has; whether all completed. Raises TimedOut.

    Asked for as data, all are written at the end, in the order in which they were named.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    going = list(dict.fromkeys(task_ids))
    ended: dict[str, Task] = {}
    as_data = written in {OutputFormat.JSON, OutputFormat.YAML}
    try:
        while going:
            for task_id in list(going):
                task = client.get(task_id, patience_seconds=PATIENCE_SECONDS)
                if not task.terminal:
                    last = task
                    continue
                ended[task_id] = task
                going.remove(task_id)
                if not as_data:
                    print_rows([[task.id] if written is OutputFormat.NAME else [task.id, task.state]])
                    sys.stdout.flush()
            if not going:
                break
            if deadline is not None and time.monotonic() + _LOOK_SECONDS > deadline:
                raise still_going(last)
            time.sleep(_LOOK_SECONDS)
    except KeyboardInterrupt:
        talk().print(f"\nThe runs go on. Wait again with: sandbox task wait {' '.join(going)}")
        raise
    if as_data:
        found = [client.raw(task_id) for task_id in dict.fromkeys(task_ids)]
        print_data(found[0] if len(found) == 1 else found, written)
    return all(task.state == "completed" for task in ended.values())


def repeat(show: Callable[[], None], seconds: float) -> None:
    """Show something anew every so many seconds, in the same place of a terminal, until Ctrl-C."""
    console = Console()
    while True:
        console.clear()
        show()
        sys.stdout.flush()
        time.sleep(seconds)


class _States:
    """The lines of one watched run."""

    def __init__(self, console: Console) -> None:
        self.live: Live | None = None
        if console.is_terminal:
            self.live = Live(console=console, transient=True, refresh_per_second=_REFRESHES_PER_SECOND)
        self._console = console
        self._done = 0
        self._last_line = ""
        self._spinner = Spinner(spinner_name(console))

    def show(self, task: Task) -> None:
        """Write the states that have ended since the last look, and what goes on now."""
        for state, seconds in list(states_of(task))[self._done :]:
            if seconds is None:
                break
            passed = f"{clean(state):<{_WIDTH}}"
            self._console.print(Text.assemble(("✓ ", "green"), passed, (format_seconds(seconds), "dim")))
            self._done += 1
        if task.terminal:
            return
        text = (None if task.state == _ASLEEP else progress_of(task)) or clean(task.state_message or "")
        if self.live is not None:
            self.live.update(self._going_on(task, text))
        elif (line := f"· {clean(task.state):<{_WIDTH}}{text}".rstrip()) != self._last_line:
            self._console.print(line)
            self._last_line = line

    def _going_on(self, task: Task, text: str) -> Group:
        age = max(0.0, (datetime.now(UTC) - task.state_changed_at).total_seconds())
        line = Text.assemble(state_text(task.state), " " * (_WIDTH - len(task.state)))
        line.append(f"{format_seconds(age)}  ", "dim").append(text)
        self._spinner.update(text=line)
        state = "running" if task.state == _ASLEEP else task.state
        known = _WAY.index(state) if state in _WAY else len(_WAY)
        return Group(self._spinner, *(Text(f"  {state}", "dim") for state in _WAY[known + 1 :]))
