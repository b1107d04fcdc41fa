"""The command `sandbox bench`: measures Taskyard beside the same work done by hand with plain tools."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Annotated

import typer


def bench(
    cases: Annotated[list[str] | None, typer.Argument(help="Cases to run; all when none is named.")] = None,
    repeat: Annotated[int | None, typer.Option(min=1, help="Rounds of each case; default: the case's own.")] = None,
    patience: Annotated[
        float, typer.Option(min=0, help="Most seconds to wait before each run for the host to be quiet.")
    ] = 20.0,
    publish: Annotated[
        bool, typer.Option("--publish", help="Write docs/performance.md and docs/performance.svg from the figures too.")
    ] = False,
    known: Annotated[bool, typer.Option("--list", help="Print the names of the cases and exit.")] = False,
) -> None:
    """Measure Taskyard beside the same work done by hand, in turns, and keep the figures in benchmarks/results.

    Example: sandbox bench restore --repeat 5
    """
    from rich.console import Console

    from foundation.errors import HostNotReady

    try:
        from benchmarks.lab import Lab
        from benchmarks.measurements import LATEST, load_results, this_machine
        from benchmarks.page import PAGE, table
        from benchmarks.page import publish as write_page
        from benchmarks.plot import PLOT, draw
        from benchmarks.runner import CASES, choose, measure
        from benchmarks.view import View
    except ModuleNotFoundError as error:
        raise HostNotReady(f"The benchmarks run from a checkout of Taskyard with its environment ({error}).") from None

    console = Console(highlight=False)
    if known:
        for case in CASES:
            console.print(f"{case.name:<14} {case.title}", soft_wrap=True)
        return
    chosen = choose(cases or [])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt_once)
    with View(console) as view, Lab(view.report) as lab:
        results = load_results(LATEST, this_machine(lab.acceleration()))
        for result in measure(chosen, lab, view, repeat=repeat, patience=patience):
            results.take(result, [case.name for case in CASES])
            results.save(LATEST)
    console.print(table(results))
    console.print(f"Every run is in {LATEST}.", soft_wrap=True)
    if publish:
        write_page(results, PAGE)
        draw(results, PLOT)
        console.print(f"The figures are in {PAGE} and {PLOT}.", soft_wrap=True)


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C would break off the clean-up, which is short.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
