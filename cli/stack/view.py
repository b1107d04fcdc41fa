"""What a person sees of the stack: one line for each part that starts, dies or stops, with the time it took."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cli.stack.supervisor import PartEvent
from foundation.settings import Settings
from foundation.units import format_seconds


class StackView:
    """Prints a stack's events; on a terminal, parts on their way up or down also show for how long they are."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._moving: dict[str, TaskID] = {}
        self._lock = threading.Lock()
        columns = (TextColumn(" "), SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)

    def report(self, event: PartEvent) -> None:
        """Show one event; called from any thread."""
        with self._lock:
            if event.part in self._moving:
                self._progress.remove_task(self._moving.pop(event.part))
            if event.kind in {"starting", "stopping"}:
                self._moving[event.part] = self._progress.add_task(f"{event.label:<16} {event.kind}", total=None)
                self._progress.start()
                return
            self._console.print(_line(event), soft_wrap=True)
            if not self._moving:
                # Nothing moves: the terminal is left alone until something does.
                self._progress.stop()

    def settled(self, settings: Settings, seconds: float) -> None:
        """Say that all is up, and what to do next."""
        model = "scripted (no ANTHROPIC_API_KEY is set)" if settings.model_is_scripted else settings.anthropic_base_url
        self._console.print(
            f"Up in {format_seconds(seconds)}. Model: {model}. Logs: {settings.logs}\n"
            "Submit a task from another terminal with 'sandbox task submit'; Ctrl-C stops the stack.",
            soft_wrap=True,
        )

    def stopping(self) -> None:
        """Say that the stop was heard."""
        self._console.print("Stopping ...")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def machines_left(settings: Settings) -> list[str]:
    """Lines on the machines that keep running after the stack has stopped; none when there are none."""
    from machines.host import MachineHost

    host = MachineHost(settings)
    alive = [record.id for record in host.records() if host.is_alive(record.id)]
    if not alive:
        return []
    count = "1 machine keeps" if len(alive) == 1 else f"{len(alive)} machines keep"
    return [
        f"{count} running, and the next 'sandbox up' goes on with its work: {', '.join(alive)}",
        "'sandbox machine list' shows them, 'sandbox machine destroy ID' ends one.",
    ]


def _line(event: PartEvent) -> str:
    mark, text = {
        "ready": ("[green]✓[/]", f"ready in {format_seconds(event.seconds)}"),
        "died": ("[yellow]![/]", ""),
        "failed": ("[red]✗[/]", ""),
        "stopped": ("[dim]■[/]", f"stopped in {format_seconds(event.seconds)}"),
    }[event.kind]
    detail = event.detail.replace("[", r"\[")
    return f"  {mark} {event.label:<16} {text}{'  ' if text and detail else ''}{detail}"
