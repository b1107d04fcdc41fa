"""What was measured, as it is kept in ``results/latest.json``: every single run, the ratios, and the machine."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import psutil
from pydantic import BaseModel

from benchmarks.case import Case, Run
from foundation.durable import ORDINARY, write_whole
from machines.hypervisor.acceleration import qemu_version

LATEST = Path(__file__).parent / "results" / "latest.json"
_ROOT = Path(__file__).parent.parent


class Machine(BaseModel):
    """The host as far as it bears on the figures. Memory in bytes."""

    cores: int
    processor: str
    memory: int
    acceleration: str
    qemu: str
    system: str


class Spread(BaseModel):
    """Median, lowest and highest of a few numbers."""

    median: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Spread:
        """The spread of at least one number."""
        return cls(median=statistics.median(numbers), lowest=min(numbers), highest=max(numbers))


class FigureResult(BaseModel):
    """One figure: what each run of either side took, in the order of the rounds. The rest is as in ``Figure``."""

    name: str
    title: str
    unit: str
    ours: list[float]
    by_hand: list[float]
    ratio_limit: float | None = None
    limit: float | None = None
    beside: str = ""
    label: str = ""

    @property
    def ratio(self) -> Spread | None:
        """Ours to by hand, round by round: both runs of a round met the machine in about the same mood.

        None when the other side has a zero.
        """
        if not all(self.by_hand):
            return None
        return Spread.of([mine / theirs for mine, theirs in zip(self.ours, self.by_hand, strict=True)])

    @property
    def kept(self) -> bool | None:
        """Whether the medians are within the limits; None without limits."""
        checks = []
        if self.limit is not None:
            checks.append(Spread.of(self.ours).median <= self.limit)
        if self.ratio_limit is not None and self.ratio is not None:
            checks.append(self.ratio.median <= self.ratio_limit)
        return all(checks) if checks else None


class CaseResult(BaseModel):
    """One case: figures and phases (seconds) of every run, in the order of the rounds.

    ``load`` is the host's load average before the case began.
    """

    name: str
    title: str
    by_hand: str
    measured_at: datetime
    commit: str
    load: float
    rounds: int
    figures: list[FigureResult]
    phases_ours: dict[str, list[float]]
    phases_by_hand: dict[str, list[float]]


class Results(BaseModel):
    """The last result of each case on one machine."""

    machine: Machine
    cases: list[CaseResult] = []

    def take(self, result: CaseResult, order: Sequence[str]) -> None:
        """Put a case's result in the place of an earlier one; cases stay in the given order."""
        kept = [case for case in self.cases if case.name != result.name and case.name in order]
        self.cases = sorted([*kept, result], key=lambda case: order.index(case.name))

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        path.parent.mkdir(exist_ok=True)
        write_whole(path, self.model_dump_json(indent=1) + "\n", ORDINARY)


def load_results(path: Path, machine: Machine) -> Results:
    """The results in the file; none when there is no file, or when they are another machine's."""
    if path.exists():
        results = Results.model_validate_json(path.read_text())
        if results.machine == machine:
            return results
    return Results(machine=machine)


def make_result(case: Case, rounds: Sequence[tuple[Run, Run]], began: datetime, load: float) -> CaseResult:
    """The result of the rounds of a case, each of them a run of ours and one by hand."""
    return CaseResult(
        name=case.name,
        title=case.title,
        by_hand=case.by_hand,
        measured_at=began,
        commit=_commit(),
        load=round(load, 2),
        rounds=len(rounds),
        figures=[
            FigureResult(
                name=figure.name,
                title=figure.title,
                unit=figure.unit,
                ours=[round(ours.figures[figure.name], 4) for ours, _ in rounds],
                by_hand=[round(by_hand.figures[figure.name], 4) for _, by_hand in rounds],
                ratio_limit=figure.ratio_limit,
                limit=figure.limit,
                beside=figure.beside,
                label=figure.label,
            )
            for figure in case.figures
        ],
        phases_ours=_phases([ours for ours, _ in rounds]),
        phases_by_hand=_phases([by_hand for _, by_hand in rounds]),
    )


def this_machine(acceleration: str) -> Machine:
    """The facts of this host, none of which name it."""
    return Machine(
        cores=os.cpu_count() or 1,
        processor=_processor(),
        memory=psutil.virtual_memory().total,
        acceleration=acceleration,
        qemu=qemu_version(),
        system=f"Linux {platform.release().partition('-')[0]}, Python {platform.python_version()}",
    )


def now() -> datetime:
    """The time to the second."""
    return datetime.now(UTC).replace(microsecond=0)


def _phases(runs: Sequence[Run]) -> dict[str, list[float]]:
    names = dict.fromkeys(name for run in runs for name in run.phases)
    return {name: [round(run.phases.get(name, 0.0), 3) for run in runs] for name in names}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit() -> str:
    """The checkout's commit, marked when files differ from it; empty outside of a checkout."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, check=False, capture_output=True, text=True).stdout.strip()
