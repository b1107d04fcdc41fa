"""Runs on the terminal: tables, one run in full, and the two live views, of a run's states and of its log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table
from rich.text import Text

from cli.render import STATE_COLOURS, LogRenderer, clean, progress_line
from foundation.units import format_seconds, format_size

if TYPE_CHECKING:
    from client import Artifact, LogLine, Task, TaskClient

_WATCH_SECONDS = 1.0
# Wide enough that nothing is cut where no terminal sets a width: what reads a pipe wants whole ids.
_PIPE_WIDTH = 10_000


def output() -> Console:
    """Where data goes."""
    return Console(markup=False, highlight=False, emoji=False, soft_wrap=True)


def talk() -> Console:
    """Where everything goes that is not data."""
    return Console(stderr=True, markup=False, highlight=False, emoji=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """The server's own JSON, unchanged but for its layout."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def print_tasks(tasks: Sequence[Task]) -> None:
    """Runs as a table that fits."""
    table = _table("ID", Column("NAME", ratio=1, no_wrap=True, overflow="ellipsis"), "STATE", "CREATED", "TOOK")
    for task in tasks:
        table.add_row(task.id, clean(task.name), _state(task.state), _when(task.created_at), _took(task))
    _print_table(table)


def print_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Artifacts as a table, with their whole checksums."""
    table = _table("NAME", Column("SIZE", justify="right"), "TYPE", Column("SHA256", overflow="fold"))
    for artifact in artifacts:
        digest = artifact.checksum.removeprefix("sha256:")
        table.add_row(clean(artifact.name), format_size(artifact.size_bytes), clean(artifact.content_type), digest)
    _print_table(table)


def print_task(task: Task) -> None:
    """One run in full, as a block of names and values."""
    rows: list[tuple[str, str | Text | None]] = [
        ("ID", task.id),
        ("Name", task.name),
        ("State", Text.assemble(_state(task.state), f"  {clean(task.state_message or '')}")),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(task.labels.items()))),
        ("Created", _when(task.created_at)),
        ("Started", _when(task.started_at) if task.started_at else None),
        ("Took", _took(task)),
        ("Machine", " on ".join(part for part in (task.vm_name, task.host) if part)),
        ("Progress", None if task.terminal else _progress(task)),
        ("Exit code", None if task.exit_code is None else str(task.exit_code)),
        ("Cause", task.cause),
        ("Error", task.error),
        ("Result", task.result),
        ("Tokens", _tokens(task)),
        ("Enter", task.ssh_command),
    ]
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value:
            table.add_row(Text(name, "dim"), value if isinstance(value, Text) else Text(clean(value)))
    _print_table(table)
    if not task.live:
        talk().print("No worker answers: this is the last recorded state.", style="yellow")


def states_of(task: Task) -> Iterator[tuple[str, float | None]]:
    """Each state that the run went through and the seconds it took; none for the last one."""
    following = [*task.transitions[1:], None]
    for entered, left in zip(task.transitions, following, strict=True):
        yield entered.state, (left.at - entered.at).total_seconds() if left else None


def print_outcome(console: Console, task: Task) -> None:
    """How a run ended, and what to do next when it failed."""
    text = Text.assemble(_state(task.state), f" after {_took(task)}")
    if task.error:
        text.append(f": {clean(task.error)}")
    console.print(text)
    if task.ssh_command:
        console.print(f"The machine is kept for you. Enter it with:\n  {clean(task.ssh_command)}")


def watch(client: TaskClient, task_id: str) -> Task:
    """A line for each state as the run goes through them, with live progress on a terminal. Gives the ended run."""
    import time

    from client import PATIENCE_SECONDS

    console = output()
    shown = 0
    state_shown: str | None = None
    with _spinner(console) as spinner:
        while True:
            task = client.get(task_id, patience_seconds=PATIENCE_SECONDS)
            states = list(states_of(task))
            for state, seconds in states[shown:]:
                if seconds is None:
                    break
                console.print(Text.assemble(("✓ ", "green"), f"{state:<14}", (format_seconds(seconds), "dim")))
                shown += 1
            if task.terminal:
                print_outcome(console, task)
                return task
            if spinner is not None:
                text = f"{task.state:<14} {_progress(task) or task.state_message or ''}"
                (spinner.add if task.state == state_shown else spinner.show)(text)
                state_shown = task.state
            time.sleep(_WATCH_SECONDS)


def show_log(lines: Iterator[LogLine], *, waiting: bool) -> None:
    """Log lines made readable; while ``waiting`` for more, a terminal shows that something is going on."""
    console = output()
    renderer = LogRenderer(console)
    with _spinner(console) if waiting else nullcontext() as spinner:
        for line in lines:
            renderer.show(line)
            if spinner is not None and line.type == "state_change":
                spinner.show(str(line.event.get("message") or line.event.get("state")))


def show_raw(lines: Iterator[LogLine], *, timestamps: bool) -> None:
    """Log lines as they are stored, stderr on stderr; events as JSON."""
    for line in lines:
        if line.id is None:
            continue
        head = f"[{line.timestamp.isoformat()}] " if timestamps else ""
        data = line.data if line.data is not None else json.dumps(line.event, ensure_ascii=False)
        target = sys.stderr if line.stream == "stderr" else sys.stdout
        target.write(head + (data if data.endswith("\n") else data + "\n"))
        target.flush()


def show_json(lines: Iterator[LogLine]) -> None:
    """Log lines as JSON, one a line."""
    for line in lines:
        sys.stdout.write(line.model_dump_json(exclude_none=True) + "\n")
        sys.stdout.flush()


class _Spinner:
    """What is going on below the lines, and for how long it has been."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._row = progress.add_task("Waiting")

    def show(self, text: str) -> None:
        """Something new goes on from now on."""
        self._progress.reset(self._row, description=clean(text))

    def add(self, text: str) -> None:
        """More about what goes on."""
        self._progress.update(self._row, description=clean(text))


@contextmanager
def _spinner(console: Console) -> Iterator[_Spinner | None]:
    if not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Spinner(progress)


def _table(*columns: Column | str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")


def _print_table(table: Table) -> None:
    console = output()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH, markup=False, highlight=False, emoji=False)
        for column in table.columns:
            column.ratio = None
    console.print(table, soft_wrap=False)


def _state(state: str) -> Text:
    return Text(clean(state), STATE_COLOURS.get(state, "blue"))


def _when(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _age(since: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


def _took(task: Task) -> str:
    if task.terminal:
        return format_seconds((task.state_changed_at - task.created_at).total_seconds())
    return format_seconds(_age(task.created_at))


def _progress(task: Task) -> str | None:
    progress = task.progress
    if not progress.output_bytes:
        return None
    return progress_line(progress.output_bytes, progress.tool_calls, progress.current_tool)


def _tokens(task: Task) -> str | None:
    if not task.usage:
        return None
    usage = task.usage
    cached = usage.get("cache_read_input_tokens", 0)
    read = f" ({cached} more read from the cache)" if cached else ""
    return f"{usage.get('input_tokens', 0)} in{read}, {usage.get('output_tokens', 0)} out"
