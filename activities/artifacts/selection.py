"""The files of a workspace that the patterns of a run name, and sentences about patterns that name none or too many.

The workspace is walked once, with every pattern at once: each directory knows which parts of which patterns may come
next, and no part of a pattern is ever tried twice on one name. The time is that of files times patterns, whatever the
patterns look like.
"""

from __future__ import annotations

import fnmatch
import heapq
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice, zip_longest

from workflows.specs.patterns import ANY_DEPTH, PATTERNS_MOST, alternatives

FILES_MOST = 1000

_NAMED_MOST = 5
_REMEMBERED_MOST = 100_000
# What tools put below a workspace; where a limit must be kept, it is spent on everything else first.
_BROUGHT_IN = frozenset({
    "node_modules", "bower_components", ".yarn", ".pnpm-store", ".venv", "venv", "site-packages", "__pycache__", ".tox",
    ".nox", ".cache", ".mypy_cache", ".pytest_cache", ".gradle", "Pods",
})  # fmt: skip
_CLASS = re.compile(r"\[[!^]?\]?[^\]]*\]")


@dataclass(frozen=True)
class Selection:
    """Paths to store, sorted; patterns that name no file; of those that name too many, how many; sentences of all that.

    ``cut`` has for each pattern of which files were left out how many it names and how many of them are stored.
    """

    files: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def select(files: Iterable[str], patterns: Sequence[str], ignored: Collection[str] = ()) -> Selection:
    """The files that the patterns name, at most FILES_MOST. ``files`` are paths relative to the workspace.

    Where there are more, each pattern has its turn, and of its files those that lie nearest to the top come first,
    those that are ``ignored`` by git or in directories that tools fill (``node_modules``) last.
    """
    files = list(files)
    notes: list[str] = []
    if len(patterns) > PATTERNS_MOST:
        notes.append(f"Only the first {PATTERNS_MOST} of {len(patterns)} patterns were heeded.")
    patterns = list(dict.fromkeys(patterns[:PATTERNS_MOST]))
    matched = _matched(files, [_readings(pattern, notes) for pattern in patterns])
    unmatched = [pattern for pattern, found in zip(patterns, matched, strict=True) if not found]
    every = {path for found in matched for path in found}
    chosen = every
    cut: dict[str, tuple[int, int]] = {}
    if len(every) > FILES_MOST:
        rank = partial(_rank, ignored)
        ranked = [heapq.nsmallest(FILES_MOST, found, key=rank) for found in matched]
        turns = (path for turn in zip_longest(*ranked) for path in turn if path is not None)
        chosen = set(islice(dict.fromkeys(turns), FILES_MOST))
        for pattern, found in zip(patterns, matched, strict=True):
            stored = sum(path in chosen for path in found)
            if stored < len(found):
                cut[pattern] = (len(found), stored)
        notes.append(_cut_note(len(every), cut))
    if unmatched:
        notes += _unmatched_notes(unmatched, files)
    return Selection(sorted(chosen), unmatched, cut, notes)


@dataclass(frozen=True)
class _Part:
    """One part of a pattern, matched against one part of a path."""

    text: str
    literal: bool = False

    @cached_property
    def name(self) -> str:
        """The one name that it stands for when nothing in it has a meaning but a backslash."""
        return self.text if self.literal else re.sub(r"\\(.)", r"\1", self.text, flags=re.DOTALL)

    @cached_property
    def _regexes(self) -> tuple[re.Pattern[str], ...]:
        if self.literal or not any(letter in self.text for letter in "*?["):
            return ()
        # Brackets are a class of characters, or part of the name: app/[id]/page.tsx is a file.
        forms = dict.fromkeys((_as_fnmatch(self.text, classes=True), _as_fnmatch(self.text, classes=False)))
        return tuple(re.compile(fnmatch.translate(form)) for form in forms)

    def fits(self, name: str) -> bool:
        return name == self.name or any(regex.match(name) for regex in self._regexes)


_Reading = tuple[_Part, ...]
_DEEPER = _Part(ANY_DEPTH)


def _readings(pattern: str, notes: list[str]) -> list[_Reading]:
    """Every way to read a pattern: the file that is called so exactly, and what it stands for as a glob."""
    try:
        globs = alternatives(pattern)
    except ValueError as error:
        # A run of a version that accepted it.
        notes.append(f"A pattern was passed over: {error}.")
        return []
    exact = tuple(_Part(part, literal=True) for part in pattern.split("/") if part not in {"", "."})
    readings = [tuple(map(_Part, parts)) for parts in globs]
    return readings if pattern.endswith("/") else [exact, *readings]


def _matched(files: Sequence[str], readings: Sequence[Sequence[_Reading]]) -> list[list[str]]:
    """For each pattern, the files that one of its readings names."""
    flat = [(number, reading) for number, several in enumerate(readings) for reading in several]
    walk = _Walk([reading for _, reading in flat])
    found: list[list[str]] = [[] for _ in readings]
    for path in files:
        for number in {flat[reading][0] for reading in walk.named(path)}:
            found[number].append(path)
    return found


class _Walk:
    """Where the readings stand in each directory: pairs of a reading and the part that comes next."""

    def __init__(self, readings: Sequence[_Reading]) -> None:
        self._readings = readings
        self._fits: dict[tuple[_Part, str], bool] = {}
        start: set[tuple[int, int]] = set()
        for number in range(len(readings)):
            self._enter(start, number, 0)
        self._directories = {"": frozenset(start)}

    def named(self, path: str) -> set[int]:
        """The readings that name the file."""
        directory, _, name = path.rpartition("/")
        here = self._states(directory)
        return {
            number
            for number, place in here
            if place == len(self._readings[number])
            or (place + 1 == len(self._readings[number]) and self._fit(self._readings[number][place], name))
        }

    def _states(self, directory: str) -> frozenset[tuple[int, int]]:
        missing = []
        while directory not in self._directories:
            missing.append(directory)
            directory = directory.rpartition("/")[0]
        states = self._directories[directory]
        for below in reversed(missing):
            states = self._directories[below] = self._below(states, below.rpartition("/")[2])
        return states

    def _below(self, states: frozenset[tuple[int, int]], name: str) -> frozenset[tuple[int, int]]:
        entered: set[tuple[int, int]] = set()
        for number, place in states:
            reading = self._readings[number]
            if place == len(reading) or reading[place] == _DEEPER:
                entered.add((number, place))
                self._enter(entered, number, place)
            elif place + 1 == len(reading):
                # A directory that is named itself is taken whole; one that a wildcard meets is not.
                if reading[place].name == name:
                    entered.add((number, place + 1))
            elif self._fit(reading[place], name):
                self._enter(entered, number, place + 1)
        return frozenset(entered)

    def _enter(self, states: set[tuple[int, int]], number: int, place: int) -> None:
        states.add((number, place))
        if place < len(self._readings[number]) and self._readings[number][place] == _DEEPER:
            states.add((number, place + 1))

    def _fit(self, part: _Part, name: str) -> bool:
        known = self._fits.get((part, name))
        if known is None:
            if len(self._fits) > _REMEMBERED_MOST:
                self._fits.clear()
            known = self._fits[part, name] = part.fits(name)
        return known


def _as_fnmatch(text: str, *, classes: bool) -> str:
    """The part in the language of fnmatch, which has no backslash and negates with ``!`` only."""
    written: list[str] = []
    place = 0
    while place < len(text):
        letter = text[place]
        found = _CLASS.match(text, place) if classes and letter == "[" else None
        if letter == "\\" and place + 1 < len(text):
            written.append(_plain(text[place + 1]))
            place += 2
        elif found:
            inside = found[0][1:]
            written.append("[!" + inside[1:] if inside[0] == "^" else found[0])
            place = found.end()
        else:
            written.append(letter if letter in "*?" else _plain(letter))
            place += 1
    return "".join(written)


def _plain(letter: str) -> str:
    return f"[{letter}]" if letter in "*?[" else letter


def _rank(ignored: Collection[str], path: str) -> tuple[bool, int, str]:
    parts = path.split("/")
    return path in ignored or not _BROUGHT_IN.isdisjoint(parts[:-1]), len(parts), path


def _cut_note(count: int, cut: dict[str, tuple[int, int]]) -> str:
    parts = [f"'{pattern}' {stored} of {matched}" for pattern, (matched, stored) in islice(cut.items(), _NAMED_MOST)]
    return (
        f"The patterns match {count} files, more than {FILES_MOST}; those nearest to the top were stored, of "
        f"{', '.join(parts)}{_and_more(len(cut))}."
    )


def _unmatched_notes(unmatched: Sequence[str], files: Sequence[str]) -> list[str]:
    named = ", ".join(f"'{pattern}'" for pattern in unmatched[:_NAMED_MOST])
    notes = [f"No file of the workspace matches {named}{_and_more(len(unmatched))}."]
    top_only = [pattern for pattern in unmatched if "/" not in pattern]
    found = _matched(files, [_readings(f"**/{pattern}", []) for pattern in top_only])
    deeper = [(pattern, len(paths)) for pattern, paths in zip(top_only, found, strict=True) if paths]
    notes += [
        f"Patterns begin at the top of the workspace: '**/{pattern}' would have matched, and {count} files."
        for pattern, count in deeper[:_NAMED_MOST]
    ]
    return notes


def _and_more(count: int) -> str:
    return f" and {count - _NAMED_MOST} more" if count > _NAMED_MOST else ""
