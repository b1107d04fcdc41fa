"""Runs on the terminal: tables that fit, one run in full, and its log."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from cli.options import OutputFormat
from cli.render import STATE_COLOURS, LogRenderer, clean, progress_line
from foundation.units import format_seconds, format_size

if TYPE_CHECKING:
    from client import Artifact, LogLine, Task

# The least of a name that still tells something.
_LEAST_CHARS = 8
_GAP = 2
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


def print_found(found: Any, written: OutputFormat) -> None:
    """A page of runs as it was asked to be written; how many more there are is told on stderr."""
    from client import TaskPage

    if written is OutputFormat.JSON:
        print_json(found)
        return
    page = TaskPage.model_validate(found)
    if written is OutputFormat.TABLE:
        print_tasks(page.tasks)
    else:
        print_rows([task.id, task.state, _utc(task.created_at), task.name] for task in page.tasks)
    if page.total_count > len(page.tasks):
        talk().print(f"{len(page.tasks)} of {page.total_count} runs; --limit and --offset show others.")


def print_tasks(tasks: Sequence[Task]) -> None:
    """Runs as a table: long names are shortened."""
    rows = [(task.id, clean(task.name), state_text(task.state), _when(task.created_at), _took(task)) for task in tasks]
    print_table(("ID", "NAME", "STATE", "CREATED", "TOOK"), rows, droppable=("TOOK", "CREATED"))


def print_artifacts(artifacts: Sequence[Artifact]) -> None:
    """Artifacts as a table, with their whole checksums where these fit."""
    rows = [
        (
            clean(artifact.name),
            format_size(artifact.size_bytes),
            clean(artifact.content_type),
            artifact.checksum.removeprefix("sha256:"),
        )
        for artifact in artifacts
    ]
    print_table(("NAME", "SIZE", "TYPE", "SHA256"), rows, fold=True, droppable=("SHA256", "TYPE"))


def print_artifact_rows(artifacts: Sequence[Artifact]) -> None:
    """Artifacts as lines for programs."""
    print_rows(
        [artifact.name, str(artifact.size_bytes), artifact.content_type, artifact.checksum.removeprefix("sha256:")]
        for artifact in artifacts
    )


def print_task(task: Task) -> None:
    """One run in full, as a block of names and values."""
    rows: list[tuple[str, str | Text | None]] = [
        ("ID", task.id),
        ("Name", task.name),
        ("State", Text.assemble(state_text(task.state), f"  {clean(task.state_message or '')}")),
        ("Labels", ", ".join(f"{key}={value}" for key, value in sorted(task.labels.items()))),
        ("Created", _when(task.created_at)),
        ("Started", _when(task.started_at) if task.started_at else None),
        ("Took", _took(task)),
        ("Machine", " on ".join(part for part in (task.vm_name, task.host) if part)),
        ("Progress", None if task.terminal else progress_of(task)),
        ("Exit code", None if task.exit_code is None else str(task.exit_code)),
        ("Cause", task.cause),
        ("Error", task.error),
        ("Result", task.result),
        ("Tokens", _tokens(task)),
        *(("Note", note) for note in task.notes),
        ("Enter", task.ssh_command),
    ]
    shown = Table.grid(padding=(0, 2))
    for name, value in rows:
        if value:
            shown.add_row(Text(name, "dim"), value if isinstance(value, Text) else Text(clean(value)))
    console = output()
    (console if console.is_terminal else _wide()).print(shown, soft_wrap=False)
    if not task.live:
        talk().print("No worker answers: this is the last recorded state.", style="yellow")


def states_of(task: Task) -> Iterator[tuple[str, float | None]]:
    """Each state that the run went through and the seconds it took; none for the last one."""
    following = [*task.transitions[1:], None]
    for entered, left in zip(task.transitions, following, strict=True):
        yield entered.state, (left.at - entered.at).total_seconds() if left else None


def print_outcome(console: Console, task: Task) -> None:
    """How a run ended, and what to do next when it failed."""
    text = Text.assemble(state_text(task.state), f" after {_took(task)}")
    if task.error:
        text.append(f": {clean(task.error)}")
    console.print(text)
    if task.ssh_command:
        console.print(f"The machine is kept for you. Enter it with:\n  {clean(task.ssh_command)}")


def show_log(lines: Iterator[LogLine], *, waiting: bool, timestamps: bool = False) -> None:
    """Log lines made readable; while ``waiting`` for more, a terminal shows that something is going on."""
    console = output()
    renderer = LogRenderer(console, timestamps=timestamps)
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


@contextmanager
def _spinner(console: Console) -> Iterator[_Spinner | None]:
    if not console.is_terminal:
        yield None
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Spinner(progress)


def print_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    flexible: str = "NAME",
    fold: bool = False,
    droppable: Sequence[str] = (),
) -> None:
    """Print a table that fits. What reads a pipe gets everything.

    On a terminal the flexible column takes the room that the others leave, and is shortened or folded to it. When that
    is too little, the columns that may be dropped are: the first named first.
    """
    console = output()
    if not console.is_terminal:
        console = _wide()
    widths = {
        head: max([len(head), *(Text(cell).cell_len if isinstance(cell, str) else cell.cell_len for cell in column)])
        for head, column in zip(heads, zip(*rows, strict=True) if rows else [()] * len(heads), strict=True)
    }

    def room(kept: Sequence[str]) -> int:
        return console.width - sum(widths[head] + _GAP for head in kept if head != flexible)

    kept = list(heads)
    for head in droppable:
        if room(kept) >= (widths[flexible] if fold else min(widths[flexible], _LEAST_CHARS)):
            break
        kept.remove(head)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for head in kept:
        table.add_column(
            head,
            justify="right" if head == "SIZE" else "left",
            no_wrap=not fold,
            overflow="fold" if fold else "ellipsis",
            max_width=max(room(kept), 1) if head == flexible else None,
        )
    for row in rows:
        table.add_row(*(cell for head, cell in zip(heads, row, strict=True) if head in kept))
    console.print(table, soft_wrap=False)


def _wide() -> Console:
    return Console(width=_PIPE_WIDTH, markup=False, highlight=False, emoji=False)


def print_rows(rows: Iterable[Sequence[str]]) -> None:
    """Rows for programs: a line each, fields divided by tabs."""
    for row in rows:
        sys.stdout.write("\t".join(" ".join(clean(field).split()) for field in row) + "\n")


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(clean(state), STATE_COLOURS.get(state, "blue"))


def _when(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _age(since: datetime) -> float:
    return max(0.0, (datetime.now(UTC) - since).total_seconds())


def _took(task: Task) -> str:
    if task.terminal:
        return format_seconds((task.state_changed_at - task.created_at).total_seconds())
    return format_seconds(_age(task.created_at))


def progress_of(task: Task) -> str | None:
    """The agent's live figures in words; none before it has said anything."""
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
