"""The files of a workspace that the patterns of a run name, and sentences about patterns that name none or too many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pathspec import GitIgnoreSpec

_FILES_MOST = 1000


@dataclass(frozen=True)
class Selection:
    """Paths to store, in the order of storing; patterns that name no file; sentences for the run's notes."""

    files: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def select(files: Iterable[str], patterns: Sequence[str]) -> Selection:
    """The files that the patterns name. ``files`` are paths relative to the workspace."""
    files = list(files)
    unmatched = [pattern for pattern in patterns if not any(GitIgnoreSpec.from_lines([pattern]).match_files(files))]
    matched = sorted(set(GitIgnoreSpec.from_lines(patterns).match_files(files)))
    notes = []
    if len(matched) > _FILES_MOST:
        notes.append(f"The patterns match {len(matched)} files; the first {_FILES_MOST} were stored.")
    return Selection(matched[:_FILES_MOST], unmatched, notes)
