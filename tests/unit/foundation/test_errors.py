"""The error tree is drawn whole, and each error of it has all that a user is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus

import foundation.errors
from foundation.errors import InvalidBody, InvalidManifest, TaskyardError
from foundation.faults import MOST_FAULTS, Fault

DRAWN = re.compile(r"^ {4}([│├└─ ]*)(\w+) *(?:(\d{3}) +(\d))? *(\w+)?$", re.MULTILINE)


def tree(error: type[TaskyardError] = TaskyardError, depth: int = 0) -> Iterator[tuple[int, type[TaskyardError]]]:
    yield depth, error
    for below in error.__subclasses__():
        if below.__module__ == foundation.errors.__name__:
            yield from tree(below, depth + 1)


def test_the_drawing_shows_every_error_where_it_stands_with_its_figures() -> None:
    drawn: dict[str, tuple[int, int, int, str]] = {}
    above: dict[int, tuple[str, str]] = {}
    for branches, name, status, exit_code, code in DRAWN.findall(foundation.errors.__doc__ or ""):
        depth = len(branches) // 4
        # Figures that are not drawn are those of the error above.
        above[depth] = (status, exit_code) if status else above[depth - 1]
        drawn[name] = (depth, int(above[depth][0]), int(above[depth][1]), code)
    real = {error.__name__: (depth, error.http_status, error.exit_code, error.code) for depth, error in tree()}
    assert drawn == real


def test_each_error_has_a_code_of_its_own_a_known_status_and_a_word_about_it() -> None:
    errors = [error for _, error in tree()]
    assert len({error.code for error in errors}) == len(errors)
    for error in errors:
        assert HTTPStatus(error.http_status) >= HTTPStatus.BAD_REQUEST
        assert error.exit_code in range(1, 6)
        assert (error.__doc__ or "").strip()


def test_faults_are_told_printable_bounded_and_without_credentials() -> None:
    faults = [Fault(f"a.https://x:hush@host/{'k' * 5000}", "holds 'https://hush@host'\x1b[31m" + "m" * 5000, "word")]
    for error in (InvalidManifest.of(faults * 1000), InvalidBody.of(faults * 1000)):
        told = error.details["errors"]
        assert len(told) == MOST_FAULTS + 1
        assert "hush" not in error.message + str(told)
        assert error.message.isprintable()
        assert len(error.message) < 30_000
