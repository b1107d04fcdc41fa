"""The client as a distribution of its own: built from the checkout, it works with httpx and pydantic alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
from email.parser import Parser
from pathlib import Path
from typing import Any

import httpx
import pydantic
import pytest

import client
from client import AsyncTaskClient, TaskClient

ROOT = Path(__file__).parents[3]
# Refuses what neither the two libraries nor Python itself has, as an environment without the server's packages would.
TRY = """
import sys, importlib.metadata, re
allowed, seen, pending = {"client", "foundation"}, set(), ["httpx", "pydantic"]
while pending:
    name = pending.pop()
    try:
        files, lines = importlib.metadata.files(name), importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        continue
    seen.add(name)
    allowed |= {file.parts[0].split(".")[0] for file in files}
    needs = {re.match(r"[A-Za-z0-9._-]+", line)[0].lower() for line in lines if "extra ==" not in line}
    pending += needs - seen
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and top not in sys.stdlib_module_names and not top.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Only())
for name in ("temporalio", "minio", "paramiko", "yaml", "workflows", "storage", "cli"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} is there")
import client, client.tasks.asynchronous, client.tasks.blocking
from foundation.errors import ServiceUnavailable
assert client.__file__.startswith(sys.argv[1]), client.__file__
with client.TaskClient("http://127.0.0.1:9") as tasks:
    try:
        tasks.get("x")
    except ServiceUnavailable as error:
        print(error.code)
"""


def test_the_wheel_of_the_client_needs_nothing_of_the_server(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    run = [sys.executable, "-m"]
    subprocess.run([*run, "hatchling", "build", "-t", "wheel", "-d", wheels], cwd=ROOT / "client", check=True)
    (wheel,) = wheels.iterdir()
    install = [*run, "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", site, wheel]
    subprocess.run(install, check=True)

    (metadata,) = site.glob("*.dist-info/METADATA")
    needs = Parser().parsestr(metadata.read_text()).get_all("Requires-Dist") or []
    assert {need.partition("<")[0] for need in needs} == {"httpx", "pydantic"}
    assert all((site / room / "py.typed").is_file() for room in ("client", "foundation"))
    libraries = Path(httpx.__file__).parents[1]
    assert Path(pydantic.__file__).parents[1] == libraries
    started = subprocess.run(
        [sys.executable, "-S", "-c", TRY, site],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{site}:{libraries}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (started.stdout, started.stderr) == ("service_unavailable\n", "")


def _surface(of: type) -> dict[str, tuple[list[inspect.Parameter], set[str]]]:
    """Public methods, each with its parameters and the types in what it gives, awaited or not."""
    found = {}
    for name, method in inspect.getmembers(of, inspect.isfunction):
        if not name.startswith("_") or name == "__init__":
            signature = inspect.signature(method)
            gives = set(_words(str(signature.return_annotation).removeprefix("Async")))
            found[name] = ([*signature.parameters.values()], gives)
    return found


def test_both_clients_have_the_same_methods() -> None:
    assert _surface(AsyncTaskClient) == _surface(TaskClient)
    for name, method in inspect.getmembers(AsyncTaskClient, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method), name


def test_all_that_the_client_gives_is_named() -> None:
    public: dict[str, Any] = {name: getattr(client, name) for name in client.__all__}
    assert client.__all__ == sorted(client.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    returned = {word for _, gives in _surface(TaskClient).values() for word in gives}
    assert returned - set(public) <= {"Any", "Generator", "None", "bool", "bytes", "int", "list", "str"}


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text).split()


@pytest.mark.parametrize("room", [path.parent.name for path in ROOT.glob("*/__init__.py")])
def test_every_room_is_marked_as_typed(room: str) -> None:
    assert (ROOT / room / "py.typed").is_file()
