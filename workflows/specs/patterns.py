"""Artifact patterns: how one is written, what is refused, and the paths that it stands for, part by part.

A pattern is a glob from the top of the workspace. ``*`` and ``?`` stay within a part, a part ``**`` stands for any
number of directories, ``[a-z]`` for one character, ``{a,b}`` for either, and a backslash takes the meaning away. What
has no such meaning stands for itself, a leading ``#`` or ``!`` too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

PATTERNS_MOST = 100
ALTERNATIVES_MOST = 500
_CHARS_MOST = 500
_BRACES_MOST = 64

ANY_DEPTH = "**"
_TOKEN = re.compile(r"\\.|[{},]", re.DOTALL)


def checked(pattern: str) -> str:
    """The pattern as it is. Raises ValueError with what is wrong about it."""
    alternatives(pattern)
    return pattern


def checked_together(patterns: Sequence[str]) -> None:
    """Raise ValueError when there are too many of them."""
    if len(patterns) > PATTERNS_MOST:
        raise ValueError(f"has {len(patterns)} patterns; {PATTERNS_MOST} is the most")
    written_out = sum(len(alternatives(pattern)) for pattern in patterns)
    if written_out > ALTERNATIVES_MOST:
        raise ValueError(f"is {written_out} patterns once its braces are written out; {ALTERNATIVES_MOST} is the most")


def alternatives(pattern: str) -> list[tuple[str, ...]]:
    """Every way to read a pattern's braces, each as the parts of a path; the last of ``out/`` or ``out/**`` is ``*``.

    Raises ValueError for what could name nothing in a workspace.
    """
    if not pattern.strip():
        raise ValueError("must not be empty")
    if len(pattern) > _CHARS_MOST:
        raise ValueError(f"is longer than {_CHARS_MOST} characters")
    if "\0" in pattern:
        raise ValueError("holds a NUL character, which no file name has")
    return list(dict.fromkeys(_parts(text, pattern) for text in _without_braces(pattern)))


def _parts(text: str, pattern: str) -> tuple[str, ...]:
    if text.startswith("/"):
        raise ValueError(f"'{pattern}' must be relative to the workspace; write it without the leading '/'")
    parts: list[str] = []
    for part in text.replace("\\/", "/").split("/"):
        if part == "..":
            raise ValueError(f"'{pattern}' must stay inside the workspace; it must not have a part '..'")
        if part not in {"", "."} and not (part == ANY_DEPTH and parts[-1:] == [ANY_DEPTH]):
            parts.append(part)
    if not parts:
        raise ValueError(f"'{pattern}' names no file; write '**' for all files of the workspace")
    if text.endswith("/") and parts[-1] != ANY_DEPTH:
        parts.append(ANY_DEPTH)
    if parts[-1] == ANY_DEPTH:
        parts.append("*")
    return tuple(parts)


def _without_braces(pattern: str) -> list[str]:
    """Every way to read the braces. A pair without a comma stands for itself."""
    done: list[str] = []
    pending = [pattern]
    while pending:
        text = pending.pop()
        group = _innermost(text)
        if group is None:
            done.append(text)
            continue
        begin, end, commas = group
        if not commas:
            pending.append(f"{text[:begin]}\\{{{text[begin + 1 : end]}\\}}{text[end + 1 :]}")
            continue
        bounds = [begin, *commas, end]
        pending += [
            text[:begin] + text[first + 1 : last] + text[end + 1 :] for first, last in reversed(list(pairwise(bounds)))
        ]
        if len(pending) + len(done) > _BRACES_MOST:
            raise ValueError(f"'{pattern}' is more than {_BRACES_MOST} patterns once its braces are written out")
    return done


def _innermost(text: str) -> tuple[int, int, list[int]] | None:
    """Where the first pair of braces without another in it begins and ends, and its commas."""
    begin: int | None = None
    commas: list[int] = []
    for token in _TOKEN.finditer(text):
        match token[0]:
            case "{":
                begin, commas = token.start(), []
            case ",":
                commas.append(token.start())
            case "}" if begin is not None:
                return begin, token.start(), commas
    return None
