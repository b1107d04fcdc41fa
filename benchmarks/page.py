"""The figures for readers: a table for the terminal, and the marked block of ``docs/performance.md``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.table import Table

from benchmarks.measurements import CaseResult, FigureResult, Results, Spread
from foundation.errors import InvalidParameter
from foundation.units import format_size

PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN = "<!-- figures: begin (written by `sandbox bench --publish`) -->"
END = "<!-- figures: end -->"


def table(results: Results) -> Table:
    """Every figure: the median of both sides, and the ratio with its spread."""
    made = Table(title="Taskyard beside the same work done by hand", title_justify="left", title_style="bold")
    made.add_column("figure", min_width=24)
    for column in ("Taskyard", "by hand", "ratio", "to be", "rounds"):
        made.add_column(column, justify="right")
    for case in results.cases:
        for figure in case.figures:
            medians = [Spread.of([Spread.of(runs).median]) for runs in (figure.ours, figure.by_hand)]
            ours, by_hand = (shown(median, f" {figure.unit}") for median in medians)
            numbers = [ours, f"{by_hand}{_beside(figure)}", _ratio(figure), _limits(figure)]
            made.add_row(f"{case.name}: {figure.title}", *numbers, str(case.rounds))
        made.add_section()
    return made


def publish(results: Results, page: Path) -> None:
    """Put the figures between the two marks of a page. Raises InvalidParameter when they are not there."""
    text = page.read_text() if page.exists() else ""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise InvalidParameter(f"{page.name} lacks the lines '{BEGIN}' and '{END}', between which the figures go.")
    page.write_text(f"{before}{BEGIN}\n{block(results)}{END}{after}")


def block(results: Results) -> str:
    """The figures, the phases and the machine as Markdown."""
    return "\n".join([*_figures(results), "", *_phases(results), "", *_conditions(results), ""])


def shown(spread: Spread, unit: str, digits: int | None = None) -> str:
    """A spread as text: its median, and the lowest and highest in brackets, with as many decimals as tell something."""
    if digits is None:
        digits = 1 if spread.median >= 1 or spread.median == 0 else 3
    if spread.lowest == spread.highest:
        return f"{spread.median:.{digits}f}{unit}"
    return f"{spread.median:.{digits}f}{unit} ({spread.lowest:.{digits}f}–{spread.highest:.{digits}f})"  # noqa: RUF001


def _figures(results: Results) -> Iterator[str]:
    yield "| case | figure | Taskyard | by hand | ratio | rounds | to be |"
    yield "|---|---|---:|---:|---:|---:|---|"
    for case in results.cases:
        for figure in case.figures:
            cells = " | ".join(_cells(figure))
            yield f"| {case.title} | {figure.title} | {cells} | {case.rounds} | {_limits(figure)} |"
    yield ""
    yield (
        "Medians, with the lowest and the highest in brackets. The ratio is taken in each round, Taskyard's run to the "
        "run by hand right after it. Where another name stands in the column *by hand*, that is what it is beside."
    )


def _phases(results: Results) -> Iterator[str]:
    yield "Where the time goes (median seconds of each phase):"
    yield ""
    for case in results.cases:
        if case.phases_ours:
            yield f"- {case.title}, Taskyard: {_listed(case.phases_ours)}."
        yield f"- {case.title}, by hand with {case.by_hand}{_told(case.phases_by_hand)}."


def _conditions(results: Results) -> Iterator[str]:
    machine = results.machine
    yield (
        f"Machine: {machine.cores} cores ({machine.processor}), {format_size(machine.memory)} of memory, guests "
        f"run with {machine.acceleration}; {machine.qemu}; {machine.system}."
    )
    yield ""
    for case in results.cases:
        yield f"- {_measured(case)}"


def _measured(case: CaseResult) -> str:
    commit = f", commit {case.commit}" if case.commit else ""
    return f"{case.title}: measured {case.measured_at:%Y-%m-%d %H:%M} UTC{commit}, load average before it {case.load}."


def _cells(figure: FigureResult) -> list[str]:
    ours, by_hand = (shown(Spread.of(runs), f" {figure.unit}") for runs in (figure.ours, figure.by_hand))
    return [ours, f"{by_hand}{_beside(figure)}", _ratio(figure)]


def _beside(figure: FigureResult) -> str:
    return f" ({figure.beside})" if figure.beside else ""


def _ratio(figure: FigureResult) -> str:
    return shown(figure.ratio, "", 2) if figure.ratio else ""


def _limits(figure: FigureResult) -> str:
    """What the medians are to stay within, and whether they do."""
    limits = []
    if figure.limit is not None:
        limits.append(f"≤ {figure.limit:g} {figure.unit}")
    if figure.ratio_limit is not None:
        limits.append(f"ratio ≤ {figure.ratio_limit:g}")
    return f"{', '.join(limits)}: {'yes' if figure.kept else 'no'}" if limits else ""


def _told(phases: dict[str, list[float]]) -> str:
    return f": {_listed(phases)}" if phases else ""


def _listed(phases: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {shown(Spread.of([Spread.of(seconds).median]), '')}" for name, seconds in phases.items())
