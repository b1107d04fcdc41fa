"""What a case is: one piece of work that Taskyard and plain tools both do, and how long each of them takes for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from benchmarks.lab import Lab


@dataclass(frozen=True)
class Figure:
    """One number of a case; the lower, the better.

    ``ratio_limit`` and ``limit`` are what the median of the ratio, and of our own numbers, is to stay within.
    ``beside`` says what stands on the other side when that is not the work done by hand. ``label`` puts the figure
    into the plot; of a case without labels, the first figure is there with the case's title.
    """

    name: str
    title: str
    unit: str = "s"
    ratio_limit: float | None = None
    limit: float | None = None
    beside: str = ""
    label: str = ""


@dataclass(frozen=True)
class Run:
    """One execution by one side: its figures by name, and the seconds of its phases in their order."""

    figures: Mapping[str, float]
    phases: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sides:
    """Both ways of a case, ready to be run any number of times, one after the other."""

    ours: Callable[[], Run]
    by_hand: Callable[[], Run]


@dataclass(frozen=True)
class Case:
    """A case. ``open`` sets up what is not measured and removes it again; ``by_hand`` says what the plain way is.

    ``warm_up`` asks for a first round that does not count.
    """

    name: str
    title: str
    by_hand: str
    figures: tuple[Figure, ...]
    open: Callable[[Lab], AbstractContextManager[Sides]]
    repeat: int = 3
    warm_up: bool = False
