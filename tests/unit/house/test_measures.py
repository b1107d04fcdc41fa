"""The measures of the house: how large modules and folders are, how they open, and that no two need each other."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
ROOMS = (
    "foundation", "workflows", "activities", "machines", "guest", "storage", "api", "worker", "client", "cli",
    "benchmarks", "examples", "tests",
)  # fmt: skip
MODULES_MOST = 15
LINES_MOST = 400
#: How the sentence of a module's docstring begins that says why the module is longer than that.
EXCUSE = f"Above {LINES_MOST} lines: "


def modules() -> dict[str, Path]:
    """The files of all modules by their full names; a package is its ``__init__``."""
    found = {}
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(MODULES[name].read_bytes())


def docstring(name: str) -> str:
    return ast.get_docstring(tree(name)) or ""


def imports(name: str) -> Iterator[str]:
    """The modules of the house that a module imports, wherever in it that is written."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            wanted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            wanted = [each if each in MODULES else node.module for each in below]
        else:
            continue
        yield from (each for each in wanted if each in MODULES)


def cycles() -> list[str]:
    """What is left of the modules when those are taken away, again and again, that import nothing which is left."""
    left = {name: set(imports(name)) for name in MODULES}
    while free := {name for name, wanted in left.items() if not wanted & left.keys()}:
        left = {name: wanted for name, wanted in left.items() if name not in free}
    return sorted(left)


def test_a_folder_has_few_modules() -> None:
    counted = Counter(path.parent.relative_to(ROOT) for path in MODULES.values() if path.name != "__init__.py")
    assert not {str(folder): count for folder, count in counted.items() if count > MODULES_MOST}


def test_a_module_opens_with_the_sentence_that_says_what_lives_in_it() -> None:
    assert not [name for name in MODULES if not docstring(name).partition("\n")[0].rstrip().endswith((".", ":"))]


def test_a_module_is_short_or_says_why_it_is_not() -> None:
    lines = {name: len(path.read_bytes().splitlines()) for name, path in MODULES.items()}
    excused = {name for name in MODULES if EXCUSE in docstring(name)}
    assert {name: count for name, count in lines.items() if count > LINES_MOST and name not in excused} == {}
    # The sentence goes when it is not true any more.
    assert {name: count for name, count in lines.items() if count <= LINES_MOST and name in excused} == {}


def test_no_module_needs_one_that_needs_it() -> None:
    assert not cycles()
