"""Whether processes and files grow: samples of them over time, and a line through those after the warm-up."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limit:
    """How much a series may grow in the time measured: a share of its median, or an amount if that is more."""

    share: float
    amount: float


_LIMITS: Mapping[str, Limit] = {
    "MiB": Limit(0.12, 24),
    "descriptors": Limit(0.2, 12),
    "threads": Limit(0.2, 16),
    "files": Limit(0.1, 20),
    "MiB of files": Limit(0.2, 16),
}


@dataclass(frozen=True)
class Growth:
    """A series: its name and unit, its median, and what a line through it gains over the time that is measured."""

    name: str
    unit: str
    median: float
    gained: float

    @property
    def too_much(self) -> bool:
        limit = _LIMITS[self.unit]
        return self.gained > max(limit.amount, limit.share * self.median)

    def __str__(self) -> str:
        return f"{self.name} {self.median:.0f} {self.unit} ({self.gained:+.1f})"


class Samples:
    """Samples of some processes by name, and of the files below a directory but for some of its parts."""

    def __init__(self, processes: Mapping[str, int], directory: Path, left_out: frozenset[str]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in processes.items()}
        self._directory = directory
        self._left_out = left_out
        self._series: defaultdict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)

    def take(self) -> str:
        """One sample of everything, and the same in one line. Raises psutil.NoSuchProcess for one that has ended."""
        now = time.monotonic()
        told = []
        for name, process in self._processes.items():
            with process.oneshot():
                values = {
                    "MiB": process.memory_info().rss / _MEBIBYTE,
                    "descriptors": process.num_fds(),
                    "threads": process.num_threads(),
                }
            for unit, value in values.items():
                self._series[name, unit].append((now, value))
            told.append(f"{name} " + ", ".join(f"{value:.0f} {unit}" for unit, value in values.items()))
        sizes = self._sizes()
        self._series["home", "files"].append((now, len(sizes)))
        self._series["home", "MiB of files"].append((now, sum(sizes) / _MEBIBYTE))
        return "; ".join([*told, f"home {len(sizes)} files"])

    def growth(self, since: float) -> list[Growth]:
        """The growth of every series from a moment of the monotonic clock on."""
        found = []
        for (name, unit), samples in self._series.items():
            kept = [(at, value) for at, value in samples if at >= since]
            if len(kept) > 1:
                times, values = zip(*kept, strict=True)
                slope = statistics.linear_regression(times, values).slope
                found.append(Growth(name, unit, statistics.median(values), slope * (times[-1] - times[0])))
        return found

    def _sizes(self) -> list[int]:
        sizes = []
        for path in self._directory.rglob("*"):
            if self._left_out.isdisjoint(path.relative_to(self._directory).parts):
                try:
                    if path.is_file():
                        sizes.append(path.stat().st_size)
                except OSError:
                    continue
        return sizes
