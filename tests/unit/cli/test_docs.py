"""The documentation and the program say the same: commands, options, settings, errors, links."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from cli.reference import command_tree, pages
from foundation.errors import TaskyardError
from foundation.settings import Settings
from tests.docs_snippets import PAGES, ROOT, inline, snippets

TREE = dict(command_tree())
OTHER_VARIABLES = {"TASKYARD_SERVER"}


def errors(above: type[TaskyardError] = TaskyardError) -> Iterator[type[TaskyardError]]:
    yield above
    for below in above.__subclasses__():
        if below.__module__ == TaskyardError.__module__:
            yield from errors(below)


def test_what_the_program_writes_into_the_docs_is_up_to_date() -> None:
    for page, text in pages().items():
        assert page.read_text() == text, "run: python -m cli.reference"


def test_every_error_is_told_with_its_status_and_exit_code() -> None:
    text = (ROOT / "docs/errors.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \| (\S.*) \|$", text, re.MULTILINE)
    told = {code: (int(status), int(exit_code)) for code, status, exit_code, _ in rows}
    assert told == {error.code: (error.http_status, error.exit_code) for error in errors()}


def test_every_setting_named_in_the_docs_exists() -> None:
    known = {f"TASKYARD_{field.upper()}" for field in Settings.model_fields} | OTHER_VARIABLES
    for page in PAGES:
        named = set(re.findall(r"\bTASKYARD_[A-Z0-9_]*[A-Z0-9]\b", page.read_text()))
        assert named <= known, page.name


def takes_arguments(name: str) -> bool:
    below = hasattr(TREE[name], "commands")
    return not below and any(parameter.param_type_name == "argument" for parameter in TREE[name].params)


@pytest.mark.parametrize("name", [name for name in TREE if takes_arguments(name)])
def test_every_command_that_takes_arguments_shows_one(name: str) -> None:
    assert re.search(rf"Example: {name} \S", TREE[name].help or "")


def written_commands() -> Iterator[tuple[str, str]]:
    for name, command in TREE.items():
        for words in re.findall(r"Example: sandbox (.*)", command.help or ""):
            yield name, words
    for page in PAGES:
        lines = [command for snippet in snippets(page) for command in snippet.commands()]
        for line in [*lines, *inline(page)]:
            if match := re.search(r"(?:^|[\s(/])sandbox( .*)?$", line):
                yield page.name, (match[1] or "").strip().rstrip(")")


@pytest.mark.parametrize(("page", "words"), list(written_commands()))
def test_every_command_and_option_named_in_the_docs_exists(page: str, words: str) -> None:
    name, value_comes = "sandbox", False
    known = options(TREE[name])
    for word in shlex.split(words, comments=True):
        if value_comes:
            value_comes = False
        elif word in {"|", "&&", "…", "...", "--"}:
            break
        elif word.startswith("-") and getattr(TREE[name], "context_settings", {}).get("ignore_unknown_options"):
            break  # what follows is another program's
        elif word.startswith("-") and word != "-":
            option, equals, _ = word.partition("=")
            if re.fullmatch("-[a-z]{2,}", option):
                # Several flags in one word.
                assert all(known.get(f"-{letter}") for letter in option[1:]), f"{page}: {name} has no {option}"
                continue
            assert option in known, f"{page}: {name} has no {option}"
            value_comes = not equals and not known[option]
        elif hasattr(TREE[name], "commands"):
            name = f"{name} {word}"
            assert name in TREE, f"{page}: there is no {name}"
            known |= options(TREE[name])


def options(command: Any) -> dict[str, bool]:
    """The options of a command, and whether each is a flag."""
    names = dict.fromkeys(("--help", "-h"), True)
    for parameter in command.params:
        if parameter.param_type_name == "option":
            names |= dict.fromkeys([*parameter.opts, *parameter.secondary_opts], parameter.is_flag)
    return names


def anchors(text: str) -> set[str]:
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Any) -> None:
    for target in re.findall(r"\]\(([^)#\s]*(?:#[^)\s]*)?)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} links to {target}"
        if anchor:
            assert anchor in anchors(there.read_text()), f"{page.name} links to {target}"
