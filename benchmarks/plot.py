"""The main figures as a picture: horizontal bars, Taskyard above the work done by hand, each pair to its own scale.

No background, and colours that are readable on a light one and on a dark one.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

import svg

from benchmarks.measurements import CaseResult, FigureResult, Results, Spread
from benchmarks.page import shown

PLOT = Path(__file__).parent.parent / "docs" / "performance.svg"

_WIDTH = 860
_LABELS, _RATIOS = 280, 60
# Room beside the longest bar for its seconds.
_NUMBERS = 80
_BY_HAND_WIDTH = 300
_ROW, _BAR, _TOP = 44, 14, 40
_TEXT, _OURS, _BY_HAND = "#737c86", "#2f81f7", "#98a1ab"
_STYLE = f"text {{ font-family: system-ui, sans-serif; font-size: 13px; fill: {_TEXT} }} .ratio {{ font-weight: 600 }}"


def draw(results: Results, path: Path) -> None:
    """Write the picture of the figures that have a label, and of the first one of each case without any."""
    path.write_text(picture(results) + "\n")


def picture(results: Results) -> str:
    """The same as SVG."""
    rows = [row for case in results.cases for row in _labelled(case)]
    ratios = [figure.ratio.median for _, figure in rows if figure.ratio]
    # The bar by hand is as long in each row, unless that leaves no room for the longest of ours.
    unit = min(_BY_HAND_WIDTH, (_WIDTH - _LABELS - _RATIOS - _NUMBERS) / max(ratios, default=1))
    height = _TOP + _ROW * len(rows)
    elements = [svg.Style(text=_STYLE), *_legend()]
    for number, (label, figure) in enumerate(rows):
        elements += _row(label, figure, _TOP + number * _ROW, unit)
    title = svg.Title(text="Taskyard beside the same work done by hand")
    return svg.SVG(
        width=_WIDTH, height=height, viewBox=svg.ViewBoxSpec(0, 0, _WIDTH, height), elements=[title, *elements]
    ).as_str()


def _labelled(case: CaseResult) -> Iterator[tuple[str, FigureResult]]:
    labelled = [figure for figure in case.figures if figure.label]
    for figure in labelled or case.figures[:1]:
        if figure.ratio:
            yield figure.label or case.title, figure


def _legend() -> Iterator[svg.Element]:
    for x, colour, name in ((_LABELS, _OURS, "Taskyard"), (_LABELS + 110, _BY_HAND, "by hand")):
        yield svg.Rect(x=x, y=8, width=_BAR, height=_BAR, rx=2, fill=colour)
        yield svg.Text(x=x + _BAR + 6, y=20, text=name)
    yield svg.Text(x=_WIDTH, y=20, text="ratio", text_anchor="end", class_=["ratio"])


def _row(label: str, figure: FigureResult, y: int, unit: float) -> Iterator[svg.Element]:
    ratio = figure.ratio.median if figure.ratio else 1.0
    yield svg.Text(x=_LABELS - 12, y=y + _BAR + 4, text=escape(label), text_anchor="end")
    sides = ((figure.ours, ratio, _OURS), (figure.by_hand, 1.0, _BY_HAND))
    for number, (runs, share, colour) in enumerate(sides):
        width = max(1.0, round(share * unit, 1))
        top = y + number * _BAR
        yield svg.Rect(x=_LABELS, y=top, width=width, height=_BAR - 1, rx=2, fill=colour)
        seconds = shown(Spread.of([Spread.of(runs).median]), f" {figure.unit}")
        yield svg.Text(x=_LABELS + width + 6, y=top + _BAR - 3, text=seconds)
    yield svg.Text(x=_WIDTH, y=y + _BAR + 4, text=f"{ratio:.2f}", text_anchor="end", class_=["ratio"])
