"""Shows how far the runs are: a moving line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.case import Case, Run

_LINE_SECONDS = 5.0


class View:
    """A watcher of the runs that prints what they took; ``report`` shows what the one under way is doing."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[dim]{task.fields[doing]}", markup=True),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, doing="")
        self._case: Case | None = None
        self._label = ""
        self._printed = 0.0

    def report(self, line: str) -> None:
        """One line about what is being done; called from any thread."""
        self._progress.update(self._task, doing=line.replace("[", r"\["))
        if not self._console.is_terminal and time.monotonic() - self._printed >= _LINE_SECONDS:
            self._print(f"  {line}")

    def case(self, case: Case, runs: int) -> None:
        """A case begins."""
        self._case = case
        self._progress.reset(self._task, total=runs, description=case.name, doing="getting ready")
        self._print(f"{case.title}: Taskyard beside {case.by_hand}")

    def run(self, side: str, number: int) -> None:
        """A run begins."""
        name = self._case.name if self._case else ""
        self._label = f"{side}, warming up" if number == 0 else f"{side}, round {number}"
        self._progress.update(self._task, description=f"{name}: {self._label}", doing="")

    def ended(self, run: Run) -> None:
        """A run has ended."""
        self._progress.advance(self._task)
        figures = ", ".join(f"{name} {value:.2f}" for name, value in run.figures.items())
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in run.phases.items())
        self._print(f"  {self._label}: {figures}" + (f" ({phases})" if phases else ""))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._console.print(line, markup=False, soft_wrap=True)
