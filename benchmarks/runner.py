"""Runs cases: round by round, ours and by hand in turn, so that both meet the same machine in the same mood."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import psutil

from benchmarks.case import Case, Run
from benchmarks.cases import (
    cold_boot,
    egress,
    first_command,
    image_build,
    list_runs,
    log_latency,
    running_machine,
    status,
    task_run,
    throughput,
    way_in,
    workspace_disk,
)
from benchmarks.cases.logs import append
from benchmarks.cases.streams import followers, host_streams
from benchmarks.lab import Lab
from benchmarks.measurements import CaseResult, make_result, now
from foundation.errors import InvalidParameter

CASES: tuple[Case, ...] = (
    image_build.CASE,
    cold_boot.CASE,
    first_command.RESTORE,
    first_command.POOL,
    first_command.CREATE,
    running_machine.EXEC,
    running_machine.PAUSE,
    running_machine.RESUME,
    way_in.CASE,
    workspace_disk.WORKSPACE,
    workspace_disk.ARTIFACTS,
    task_run.CASE,
    log_latency.CASE,
    followers.CASE,
    egress.CASE,
    status.CASE,
    list_runs.CASE,
    throughput.CASE,
    append.CASE,
    host_streams.CASE,
)

_QUIET_PERCENT = 20.0
_QUIET_LOOKS = 2
_LOOK_SECONDS = 1.0


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


def measure(
    cases: Sequence[Case], lab: Lab, watcher: Watcher, *, repeat: int | None = None, patience: float = 0.0
) -> Iterator[CaseResult]:
    """Run the cases and give the result of each as it ends; ``repeat`` overrides how many rounds they have.

    Before each run it waits for the host to be quiet, but no longer than ``patience`` seconds.
    """

    def run(side: str, number: int, work: Callable[[], Run]) -> Run:
        watcher.run(side, number)
        _await_quiet(lab, patience)
        done = work()
        watcher.ended(done)
        return done

    for case in cases:
        rounds = repeat or case.repeat
        warm_up = 1 if case.warm_up else 0
        watcher.case(case, 2 * (rounds + warm_up))
        with case.open(lab) as sides:
            began, load = now(), os.getloadavg()[0]
            done = [
                (run("ours", number, sides.ours), run("by hand", number, sides.by_hand))
                for number in range(1 - warm_up, rounds + 1)
            ]
        yield make_result(case, done[warm_up:], began, load)


def _await_quiet(lab: Lab, patience: float) -> None:
    """Wait until other programs leave most of the processors alone for two looks in a row."""
    deadline = time.monotonic() + patience
    quiet_looks = 0
    while quiet_looks < _QUIET_LOOKS and time.monotonic() < deadline:
        busy = psutil.cpu_percent(_LOOK_SECONDS)
        quiet_looks = quiet_looks + 1 if busy < _QUIET_PERCENT else 0
        lab.report(f"waiting for the host to be quiet ({busy:.0f} % busy)")
