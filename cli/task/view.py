"""Runs on the terminal: lists of them, one run in full, and its log."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from cli.options import OutputFormat, print_data
from cli.streams import clean
from cli.task.render import STATE_COLOURS, LogRenderer, progress_line
from cli.terminal import output, print_rows, print_table, spinner_name, talk
from foundation.units import format_seconds, format_size

if TYPE_CHECKING:
    from client import Artifact, LogLine, NetworkUse, PermissionRequest, RunNetwork, Task
    from client.tasks.replies import NetworkPolicy

_GAP = 2
_ASKED_CHARS = 200
# Below this a paragraph is not folded: it would be a column of single words.
_LEAST_WIDTH = 30


def print_found(found: Any, written: OutputFormat) -> None:
    """A page of runs as it was asked to be written; how many more there are is told on stderr."""
    from client import TaskPage

    if print_data(found, written):
        return
    page = TaskPage.model_validate(found)
    print_tasks(page.tasks, written)
    if not page.total_count:
        talk().print("No runs; submit one with: sandbox task submit FILE")
    elif not page.tasks:
        talk().print(f"No runs from number {page.offset + 1} on; there are {page.total_count}.")
    elif page.total_count > len(page.tasks):
        talk().print(f"{len(page.tasks)} of {page.total_count} runs; --limit and --offset show others.")


def print_tasks(tasks: Sequence[Task], written: OutputFormat = OutputFormat.TABLE) -> None:
    """Runs as a table that shortens their names, as a table that does not, as lines for programs, or their ids."""
    if written is OutputFormat.NAME:
        print_rows([task.id] for task in tasks)
    elif written is OutputFormat.TEXT:
        print_rows([task.id, task.state, _utc(task.created_at), task.name] for task in tasks)
    elif written is OutputFormat.WIDE:
        heads = ("ID", "NAME", "STATE", "CREATED", "STARTED", "TOOK", "CAUSE", "MACHINE", "LABELS")
        print_table(heads, [_wide_row(task) for task in tasks], wide=True)
    else:
        rows = [
            (task.id, one_line(task.name), state_text(task.state), when(task.created_at), _took(task)) for task in tasks
        ]
        print_table(("ID", "NAME", "STATE", "CREATED", "TOOK"), rows, flexible="NAME", droppable=("TOOK", "CREATED"))


def _wide_row(task: Task) -> tuple[str | Text, ...]:
    started = when(task.started_at) if task.started_at else "-"
    return (
        *(task.id, one_line(task.name), state_text(task.state), when(task.created_at), started, _took(task)),
        *(one_line(task.cause or "-"), one_line(task.vm_name or "-"), one_line(_labels(task)) or "-"),
    )


def print_artifacts(artifacts: Sequence[Artifact], written: OutputFormat = OutputFormat.TABLE) -> None:
    """Artifacts as a table, with their whole checksums where these fit; as lines for programs; or their names."""
    if written is OutputFormat.NAME:
        print_rows([artifact.name] for artifact in artifacts)
        return
    if written is OutputFormat.TEXT:
        print_rows(
            [artifact.name, str(artifact.size_bytes), artifact.content_type, artifact.checksum.removeprefix("sha256:")]
            for artifact in artifacts
        )
        return
    rows = [
        (
            one_line(artifact.name),
            format_size(artifact.size_bytes),
            one_line(artifact.content_type),
            one_line(artifact.checksum.removeprefix("sha256:")),
        )
        for artifact in artifacts
    ]
    wide = written is OutputFormat.WIDE
    print_table(("NAME", "SIZE", "TYPE", "SHA256"), rows, droppable=("SHA256", "TYPE"), wide=wide)


def print_task(task: Task) -> None:
    """One run in full, as a block of names and values."""
    print_fields(
        [
            ("ID", task.id),
            ("Name", task.name),
            ("State", Text.assemble(state_text(task.state), f"  {clean(task.state_message or '')}")),
            ("Labels", _labels(task)),
            ("Created", when(task.created_at)),
            ("Started", when(task.started_at) if task.started_at else None),
            ("Took", _took(task)),
            ("Machine", " on ".join(part for part in (task.vm_name, task.host) if part)),
            ("Progress", None if task.terminal else progress_of(task)),
            ("Exit code", None if task.exit_code is None else str(task.exit_code)),
            ("Cause", task.cause),
            ("Error", task.error),
            ("Result", task.result),
            ("Output", None if task.output is None else json.dumps(task.output, ensure_ascii=False)),
            ("Tokens", _tokens(task)),
            ("Cost", _cost(task)),
            ("Decide", _decision(task)),
            *(("Asks", _asks(task, request)) for request in task.permission_requests),
            ("Network", network_line(task.network_policy, task.network)),
            ("Pushed", _pushed(task)),
            *(("Note", note) for note in task.notes),
            *(("Undelivered", message) for message in task.undelivered_messages),
            ("Kept until", _until(task.preserved_until)),
        ],
        [("Enter", task.ssh_command)],
    )
    if not task.live:
        talk().print("No worker answers: this is the last recorded state.", style="yellow")


def _pushed(task: Task) -> str | None:
    """Where the work is, and what was not done of a push."""
    pushed = task.pushed
    if pushed is None:
        return None
    place = f"{pushed.branch} at {(pushed.commit or '')[:12]}" if pushed.branch else None
    return "; ".join(part for part in (place, pushed.pull_request_url, pushed.note, pushed.error) if part)


def print_network(network: RunNetwork, written: OutputFormat) -> None:
    """What a machine may reach, and a table of what it asked for; or the names of its rules."""
    use = network.use
    hosts = use.hosts if use else []
    if written is OutputFormat.NAME:
        print_rows([rule] for rule in network.policy.hosts)
        return
    print_fields(
        [
            ("Network", network_line(network.policy, use)),
            *(("Allowed", rule) for rule in network.policy.hosts),
            ("In force", "yes" if network.in_force else "no: there is no machine yet, or its host has not taken it"),
        ]
    )
    if hosts:
        rows = [
            (
                one_line(each.host),
                str(each.port),
                str(each.allowed),
                str(each.blocked),
                format_size(each.sent_bytes),
                format_size(each.received_bytes),
                one_line(each.reason or ""),
            )
            for each in hosts
        ]
        heads = ("HOST", "PORT", "LET THROUGH", "REFUSED", "SENT", "RECEIVED", "WHY")
        output().print()
        print_table(heads, rows, droppable=("WHY", "SENT", "RECEIVED"), wide=written is OutputFormat.WIDE)
    for warning in network.warnings:
        talk().print(Text(clean(f"{warning.get('field')} {warning.get('message')}.")))


def network_line(policy: NetworkPolicy | None, use: NetworkUse | None) -> str | None:
    """What a machine may reach and has asked for, in one line; none where nobody says."""
    if policy is None:
        return None
    words = one_line(policy.mode)
    if policy.mode == "outbound":
        words += f", {len(policy.hosts)} host{'' if len(policy.hosts) == 1 else 's'}"
    if use is not None and (use.allowed or use.blocked):
        plural = "" if use.allowed == 1 else "s"
        words += f"; {use.allowed} connection{plural} let through, {use.blocked} refused"
    return words


def print_fields(rows: Sequence[tuple[str, str | Text | None]], to_copy: Sequence[tuple[str, str | None]] = ()) -> None:
    """Names and values, those without a value left out.

    On a terminal long values are folded between words, and no word is ever broken: it may be a path or an address.
    What is there ``to_copy`` is not folded at all.
    """
    console = output()
    width = max([len(name) for name, value in (*rows, *to_copy) if value], default=0) + _GAP
    room = console.width - width
    for name, value in (*rows, *to_copy):
        if not value:
            continue
        text = value if isinstance(value, Text) else Text(clean(value).expandtabs())
        folded = console.is_terminal and room >= _LEAST_WIDTH and (name, value) not in to_copy
        lines = _folded(text, room) if folded else text.split("\n", allow_blank=True)
        for place, piece in enumerate(lines):
            piece.rstrip()
            console.print(Text(f"{name if place == 0 else '':<{width}}", "dim") + piece)


def _folded(text: Text, room: int) -> list[Text]:
    """The text in lines of so many cells, divided between words; a word that is longer has a line of its own."""
    lines: list[Text] = []
    for paragraph in text.split("\n", allow_blank=True):
        ends: list[int] = []
        width = 0
        for place, word in _words(paragraph.plain):
            if width and width + cell_len(word.rstrip()) > room:
                ends.append(place)
                width = 0
            width += cell_len(word)
        lines += paragraph.divide(ends)
    return lines


def _words(text: str) -> Iterator[tuple[int, str]]:
    """Each word with the blanks behind it, and where it begins."""
    for found in re.finditer(r"\s*\S+\s*", text):
        yield found.start(), found[0]


def states_of(task: Task) -> Iterator[tuple[str, float | None]]:
    """Each state that the run went through and the seconds it took; none for the last one."""
    for entered, left in zip_longest(task.transitions, task.transitions[1:]):
        yield entered.state, (left.at - entered.at).total_seconds() if left else None


def print_outcome(console: Console, task: Task) -> None:
    """How a run ended, and what to do next when it failed."""
    text = Text.assemble(state_text(task.state), f" after {_took(task)}")
    if task.error:
        text.append(f": {clean(task.error)}")
    console.print(text)
    if task.ssh_command:
        console.print(f"The machine is kept for you. Enter it with:\n  {clean(task.ssh_command)}")
    if task.preserved_until:
        console.print(
            f"It ends {when(task.preserved_until)}. On its host, 'sandbox machine extend {task.id} 24h' keeps it "
            f"longer, and 'sandbox machine release {task.id}' ends it."
        )


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


def show_data(lines: Iterator[LogLine], written: OutputFormat) -> None:
    """Log lines as data: a line of JSON for each, or the items of a list in YAML."""
    for line in lines:
        entry = line.model_dump(mode="json", exclude_none=True)
        if written is OutputFormat.YAML:
            print_data([entry], written)
        else:
            sys.stdout.write(json.dumps(entry, ensure_ascii=True) + "\n")
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
    columns = (
        SpinnerColumn(spinner_name(console)),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        yield _Spinner(progress)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(clean(state), STATE_COLOURS.get(state, "blue"))


def one_line(text: str) -> str:
    """Text in one line, as a cell of a table has it."""
    return " ".join(clean(text).split())


def _labels(task: Task) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(task.labels.items()))


def when(at: datetime) -> str:
    """A time in the zone of this host, which it names."""
    try:
        return at.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    except (OverflowError, ValueError):
        return at.isoformat()  # at an end of the calendar


def _until(at: datetime | None) -> str | None:
    if at is None:
        return None
    left = (at - datetime.now(UTC)).total_seconds()
    return f"{when(at)} ({'in ' + format_seconds(left) if left > 0 else 'over'})"


def _utc(at: datetime) -> str:
    return at.replace(tzinfo=at.tzinfo or UTC).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


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
    cached = usage.cache_read_input_tokens
    read = f" ({cached} more read from the cache)" if cached else ""
    limit = "" if usage.budget_tokens is None else f"; {usage.tokens:,} of {usage.budget_tokens:,} in all"
    return f"{usage.input_tokens} in{read}, {usage.output_tokens} out{limit}"


def _cost(task: Task) -> str | None:
    """Dollars by the price table, and how many there may be."""
    usage = task.usage
    if usage is None or usage.cost_usd is None or not (usage.cost_usd or usage.unpriced_usd or usage.budget_usd):
        return None
    words = f"${usage.cost_usd:.4f}"
    if usage.budget_usd is not None:
        words += f" of ${usage.budget_usd:.2f}"
    if usage.unpriced_models:
        words += f"; what {one_line(', '.join(usage.unpriced_models))} costs is not known"
        words += f" (${usage.unpriced_usd:.4f} at most)" if usage.unpriced_usd else ""
    return words


def _asks(task: Task, request: PermissionRequest) -> str:
    """What the agent asks, and how it is answered."""
    if questions := request.questions():
        return f"{one_line(' '.join(questions))}; 'sandbox task answer {task.id} ANSWER...' tells it"
    what = one_line(request.description or json.dumps(request.input, ensure_ascii=False))[:_ASKED_CHARS]
    return f"{one_line(request.tool)}: {what}; 'sandbox task approve {task.id}' permits it, deny does not"


def _decision(task: Task) -> str | None:
    """Until when a run waits, and how it is continued."""
    until = _until(task.decision_until)
    return until and f"{until}; 'sandbox task continue {task.id} --budget USD' lets it go on"
