"""Numbers of the parent tasks of a project: each is claimed in the bucket by whoever puts its object there first."""

from __future__ import annotations

from urllib.parse import quote

from storage.bucket import Bucket

_DIGITS = 12


class Numbers:
    """Gives numbers from 1 on, each once, whoever asks on whichever server. Its methods block."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        # The highest number of each project that this process has seen.
        self._seen: dict[str, int] = {}

    def claim(self, project: str, holder: str) -> int:
        """A number of the project that nobody has; ``holder`` is written into its object. Raises BucketUnavailable."""
        taken = self._seen.get(project, 0)
        while not self._bucket.put(_key(project, taken + 1), holder.encode(), if_absent=True):
            taken = self._last(project, taken + 1)
        self._seen[project] = max(self._seen.get(project, 0), taken + 1)
        return taken + 1

    def _last(self, project: str, taken: int) -> int:
        """The highest number that is taken, from one that is: numbers are claimed without a gap."""
        step = 1
        while self._is_taken(project, taken + step):
            taken += step
            step *= 2
        while step > 1:
            step //= 2
            if self._is_taken(project, taken + step):
                taken += step
        return taken

    def _is_taken(self, project: str, number: int) -> bool:
        return self._bucket.get(_key(project, number)) is not None


def _key(project: str, number: int) -> str:
    return f"parents/{quote(project, safe='')}/numbers/{number:0{_DIGITS}d}"
