"""Runs cases: round by round, ours and by hand in turn, so that both meet the same machine in the same mood."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from benchmarks import cold_boot, image_build, list_runs, task_run
from benchmarks.case import Case, Run
from benchmarks.lab import Lab
from benchmarks.measurements import CaseResult, make_result, now
from foundation.errors import InvalidParameter

CASES: tuple[Case, ...] = (image_build.CASE, cold_boot.CASE, task_run.CASE, list_runs.CASE)


class Watcher(Protocol):
    """Who is told how far the runs are."""

    def case(self, case: Case, runs: int) -> None:
        """A case begins, with this many runs in all."""

    def run(self, side: str, number: int) -> None:
        """A run begins; number 0 does not count."""

    def ended(self, run: Run) -> None:
        """A run has ended."""


def choose(names: Sequence[str]) -> list[Case]:
    """The cases of these names in their own order; all for none. Raises InvalidParameter that names those there are."""
    known = [case.name for case in CASES]
    if unknown := [name for name in names if name not in known]:
        raise InvalidParameter(f"There is no case '{unknown[0]}'; the cases are: {', '.join(known)}.")
    return [case for case in CASES if not names or case.name in names]


def measure(cases: Sequence[Case], lab: Lab, repeat: int | None, watcher: Watcher) -> Iterator[CaseResult]:
    """Run the cases and give the result of each as it ends; ``repeat`` overrides how many rounds they have."""
    for case in cases:
        rounds = repeat or case.repeat
        warm_up = 1 if case.warm_up else 0
        watcher.case(case, 2 * (rounds + warm_up))
        with case.open(lab) as sides:
            began, load = now(), os.getloadavg()[0]
            done = [
                (_run(watcher, "ours", number, sides.ours), _run(watcher, "by hand", number, sides.by_hand))
                for number in range(1 - warm_up, rounds + 1)
            ]
        yield make_result(case, done[warm_up:], began, load)


def _run(watcher: Watcher, side: str, number: int, work: Callable[[], Run]) -> Run:
    watcher.run(side, number)
    run = work()
    watcher.ended(run)
    return run
