"""What strings name of the house is there: tests patch by name, and run programs, and no checker sees either."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator

from tests.unit.house.test_measures import MODULES, ROOMS, tree

_ROOM = rf"(?<![\w./@:-])(?:{'|'.join(ROOMS)})"
_NAME = re.compile(rf"{_ROOM}(?:\.[A-Za-z_]\w*)+")
_IMPORT = re.compile(rf"\bfrom ({_ROOM}(?:\.\w+)*) import (\w+(?:, \w+)*)")
# Files, and hosts, that begin as a room is called.
_OTHER = (".md", ".tar", ".org")


def strings(name: str) -> Iterator[str]:
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def named(text: str) -> Iterator[str]:
    yield from (name for name in _NAME.findall(text) if not name.endswith(_OTHER))
    for module, names in _IMPORT.findall(text):
        yield from (f"{module}.{name}" for name in names.split(", "))


def is_there(name: str) -> bool:
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


def test_what_strings_name_of_the_house_is_there() -> None:
    missing = {f"{module}: {name}" for module in MODULES for text in strings(module) for name in named(text)}
    assert not {each for each in missing if not is_there(each.partition(": ")[2])}
