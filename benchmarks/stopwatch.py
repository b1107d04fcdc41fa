"""Measures time in laps, with the clock that processes of one host share."""

from __future__ import annotations

import time
from itertools import accumulate


class Stopwatch:
    """Seconds since it was made, or since a unix time, in laps by name."""

    def __init__(self, begun: float | None = None) -> None:
        self.laps: dict[str, float] = {}
        self._begun = self._last = begun or time.time()

    def lap(self, name: str, at: float | None = None) -> float:
        """End a lap now, or at a unix time; the seconds since the beginning. A name used again adds up."""
        now = at or time.time()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now
        return now - self._begun

    @property
    def moments(self) -> dict[str, float]:
        """The ends of the laps, in seconds from the beginning; for laps with a name each."""
        return dict(zip(self.laps, accumulate(self.laps.values()), strict=True))
