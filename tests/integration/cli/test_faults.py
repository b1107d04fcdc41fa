"""Every command of the program against servers, terminals, files and settings that are not as they should be.

The commands are those that the program has, so that a new one is held to the same.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.reference import command_tree
from foundation.settings import Settings
from tests.cli_forks import Case, Ended
from tests.stand_ins.foreign_servers import FOREIGN, serving

# The same command as `task status`.
_ALIASES = {"sandbox task get"}
LEAVES = {
    name.removeprefix("sandbox "): each
    for name, each in command_tree()
    if " " in name and not hasattr(each, "commands") and name not in _ALIASES
}
ASKING = sorted(
    name
    for name, each in LEAVES.items()
    if any("--server" in p.opts for p in each.params) and name not in {"config set-context", "task shell"}
)
# These start, build, measure or remove something that is not the tests' to have.
_WITH_EFFECTS = {"demo", "up", "server", "worker", "bench", "clean", "image build", "doctor"}
HARMLESS = sorted(LEAVES.keys() - _WITH_EFFECTS)
#: Those that go on looking: each with the words that make it do so.
WATCHING = {
    "task submit": ("--follow", "--watch", "--wait"),
    "task status": ("--watch",),
    "task logs": ("--follow",),
    "task list": ("--watch",),
    "task wait": (None,),
}
# What every command is shown; the others of FOREIGN are shown to these alone, which read in all the ways there are.
COMMON = {
    "html", "redirect", "another object", "fields of other types", "nothing", "silence",
}  # fmt: skip
READING = {"task list", "task submit", "task logs", "health watchdog"}
MANIFEST = "version: '1'\nkind: Task\n"
_BAD_WORDS = ("Traceback", "did not expect")
# Commands of which one of several options is required.
_ONE_OF = {"task continue": ["--tokens", "1"], "task configure": ["--model", "sonnet"]}


def arguments(name: str, manifest: str, *options: str) -> list[str]:
    """A command with all that it wants to be given. Options come first: to some, what follows is another command's."""
    given = {"FILE": manifest, "DURATION": "1h", "TEXT": "words", "NAME": "name", "SRC": "x:file", "DST": "."}
    given["[LOCAL:]PORT..."] = ":80"
    words = [*name.split(), *options]
    for parameter in LEAVES[name].params:
        if parameter.param_type_name == "argument" and (parameter.required or parameter.metavar in {"FILE", "NAME"}):
            words.append(given.get(str(parameter.metavar), "x"))
        elif parameter.param_type_name == "option" and parameter.required:
            words += [parameter.opts[0], "http://127.0.0.1:9"]
    return words + _ONE_OF.get(name, [])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("faults")
    (directory / "task.yaml").write_text(MANIFEST)
    return directory


def run(cases: Iterable[Case], place: Path, **environment: str) -> list[Ended]:
    """The cases, with a home of their own, and how they ended."""
    own = {"TASKYARD_HOME": str(place / "home"), "XDG_CONFIG_HOME": str(place), "TERM": "dumb", "TASKYARD_S3_PORT": "9"}
    listed = []
    for case in cases:
        case.environment = own | environment | case.environment
        case.directory = case.directory or str(place)
        listed.append(asdict(case))
    done = subprocess.run(
        [sys.executable, "-m", "tests.cli_forks"], input=json.dumps(listed), capture_output=True, text=True, check=True
    )
    return [Ended(**each) for each in json.loads(done.stdout)]


def told(ended: Ended) -> str:
    return f"{ended.code}\n{ended.out}\n{ended.err}"


def check_sentence(name: str, ended: Ended, codes: set[int]) -> None:
    """A refusal is a sentence on stderr, and nothing on stdout."""
    assert ended.code in codes, f"{name}: {told(ended)}"
    assert not any(words in ended.out + ended.err for words in _BAD_WORDS), f"{name}: {told(ended)}"
    assert "Error: " in ended.err, f"{name}: {told(ended)}"


def test_the_commands_are_known() -> None:
    assert {"task list", "health status", "version"} <= set(ASKING)
    assert WATCHING.keys() <= LEAVES.keys()
    assert LEAVES.keys() >= _WITH_EFFECTS


def test_no_server_of_another_kind_makes_a_command_fail_without_a_sentence(place: Path) -> None:
    kinds, cases = [], []
    with ExitStack() as stack:
        for kind, speaks in FOREIGN.items():
            url = stack.enter_context(serving(speaks))
            for name in ASKING if kind in COMMON else READING:
                words = arguments(name, "task.yaml", "--server", url)
                for more in WATCHING.get(name, (None,)):
                    kinds.append((kind, name))
                    cases.append(Case([*words, *([more] if more else [])]))
        ended = run(cases, place)
    for (kind, name), each in zip(kinds, ended, strict=True):
        if name == "version":
            assert (each.code, "server   unknown: " in each.out) == (0, True), told(each)
            continue
        check_sentence(f"{name}, {kind}", each, {2} if kind == "html 404" else {1, 3, 5})
        if name == "health status":
            continue  # it tells of each check by itself
        if kind in {"html", "html with a line", "another object", "a list", "null", "deep json", "not unicode"}:
            assert "is not Taskyard" in each.err, f"{name}, {kind}: {told(each)}"
        if kind in {"html 502", "html 404", "html 500"}:
            assert "not as Taskyard does" in each.err, f"{name}, {kind}: {told(each)}"
        if kind == "redirect":
            assert "https://login.invalid/x" in each.err, told(each)


TERMINALS: dict[str, dict[str, Any]] = {
    "ascii": {"encoding": "ascii", "environment": {"COLUMNS": "20", "NO_COLOR": "1"}},
    "one column": {"environment": {"COLUMNS": "1", "FORCE_COLOR": "1"}},
    "no stdout": {"closed": [1]},
    "no streams": {"closed": [0, 1, 2]},
    "full disk": {"stdout": "/dev/full"},
    "no home": {"environment": {"HOME": "/nonexistent", "XDG_CONFIG_HOME": ""}},
    "home is a file": {"environment": {"HOME": "/etc/passwd", "XDG_CONFIG_HOME": "", "TASKYARD_HOME": "/etc/passwd/x"}},
}


# Where no server is, all that ask one end in the same way: some of them stand for the rest.
WRITING = [
    name for name in HARMLESS if name not in ASKING or name in {*READING, "task wait", "health status", "version"}
]


def test_no_terminal_makes_a_command_fail_without_a_sentence(place: Path) -> None:
    names, cases = [], []
    for terminal, facts in TERMINALS.items():
        for name in WRITING:
            # Nobody listens at this port: what the command itself does is looked at.
            names.append((terminal, name))
            cases.append(Case(arguments(name, "task.yaml"), **facts))
    for name in LEAVES:
        names.append(("ascii", f"{name} --help"))
        cases.append(Case([*name.split(), "--help"], **TERMINALS["ascii"]))
    for (terminal, name), each in zip(names, run(cases, place, TASKYARD_SERVER="http://127.0.0.1:9"), strict=True):
        assert not any(words in each.out + each.err for words in _BAD_WORDS), f"{name}, {terminal}: {told(each)}"
        expected = {0} if name.endswith("--help") else {0, 1, 2, 3, 5}
        assert each.code in expected, f"{name}, {terminal}: {told(each)}"


@pytest.fixture(scope="module")
def manifests(place: Path) -> dict[str, Path]:
    (place / "empty").write_bytes(b"")
    (place / "blank").write_bytes(b" \n\t\n")
    (place / "binary").write_bytes(bytes(range(256)))
    (place / "huge").touch()
    with (place / "huge").open("r+b") as file:
        file.truncate(2**32)
    (place / "loop").symlink_to("loop")
    names = ("empty", "blank", "binary", "huge", "loop", "missing", ".")
    return {name: place / name for name in names} | {"too long": place / ("n" * 300), "below a file": place / "empty/x"}


def test_a_manifest_that_is_none_is_refused_by_name_before_a_server_is_asked(
    place: Path, manifests: dict[str, Path]
) -> None:
    taking = [name for name in LEAVES if any(p.metavar == "FILE" for p in LEAVES[name].params)]
    files = [(name, path) for name in taking for path in manifests.values()]
    cases = [Case([*name.split(), str(path)]) for name, path in files]
    stdin = [Case([*name.split(), "-"], stdin=text) for name in taking for text in ("", " \n")]
    closed = [Case([*name.split(), "-"], closed=[0]) for name in taking]
    for case, each in zip([*cases, *stdin, *closed], run([*cases, *stdin, *closed], place), strict=True):
        check_sentence(" ".join(case.arguments), each, {2})
        assert "The manifest " in each.err


GARBAGE = ("garbage", "", "-1", "{}", "1e400", "http://[\u00fc", "x" * 5000)


@pytest.mark.parametrize("field", list(Settings.model_fields))
def test_a_setting_that_is_garbage_is_named(field: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    variable = f"TASKYARD_{field.upper()}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TASKYARD_HOME", str(tmp_path))
    for value in GARBAGE:
        monkeypatch.setenv(variable, value)
        shown = CliRunner().invoke(app, ["config"])
        assert not any(bad in shown.output for bad in _BAD_WORDS), (value, shown.output)
        if shown.exit_code:
            assert (shown.exit_code, variable in shown.stderr) == (2, True), (value, shown.output)
        elif field in {"home", "host_name", "image_dir"}:
            listed = CliRunner().invoke(app, ["machine", "list"])
            assert listed.exit_code in {0, 1}, (value, listed.output)
            assert not any(bad in listed.output for bad in _BAD_WORDS), (value, listed.output)


def contexts_files(place: Path) -> Iterator[tuple[str, Path]]:
    contents = {
        "binary": b"\xff\xfe\x00",
        "not toml": b"[[[",
        "list": b"contexts = []",
        "no server": b"[contexts.a]\ntoken = 'x'",
        "no url": b"current_context = 'a'\n[contexts.a]\nserver = 'ftp://x'",
        "odd port": b"current_context = 'a'\n[contexts.a]\nserver = 'http://x:99999'",
        "bad token": "current_context = 'a'\n[contexts.a]\nserver = 'http://127.0.0.1:9'\ntoken = '\u00fc'".encode(),
        "gone": b"current_context = 'b'",
        "other type": b"current_context = 3\n[contexts]\na = 3",
    }
    for name, content in contents.items():
        path = place / "of contexts" / name / "taskyard" / "contexts.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        yield name, path.parent.parent
    (place / "of contexts" / "directory" / "taskyard" / "contexts.toml").mkdir(parents=True, exist_ok=True)
    yield "directory", place / "of contexts" / "directory"


def test_a_broken_file_of_contexts_is_named(place: Path) -> None:
    names, cases = [], []
    for kind, directory in contexts_files(place):
        # All commands choose their server in one place.
        for name in ASKING if kind == "not toml" else [*READING, "version"]:
            names.append((kind, name))
            cases.append(Case(arguments(name, "task.yaml"), {"XDG_CONFIG_HOME": str(directory), "TASKYARD_SERVER": ""}))
    for (kind, name), each in zip(names, run(cases, place, AGENTIC_SERVER=""), strict=True):
        if name == "version":
            assert (each.code, "unknown" in each.out) == (0, True), told(each)
        else:
            check_sentence(f"{name}, {kind}", each, {2})


NO_ADDRESSES = ("no url", "http://", "http://[", "http://x:99999", "http://x:y", "ftp://x", "http://\udc80", "x:8122")


def test_what_is_no_address_of_a_server_is_said(place: Path) -> None:
    named = [(server, name) for server in NO_ADDRESSES for name in (*sorted(READING), "version")]
    cases = [Case(arguments(name, "task.yaml", "--server", server)) for server, name in named]
    cases += [
        Case(arguments(name, "task.yaml"), {"TASKYARD_SERVER": server})
        for server, name in named
        if server.isascii() and name in {"task list", "version"}
    ]
    for case, each in zip(cases, run(cases, place), strict=True):
        if case.arguments == ["version"] or case.arguments[:1] == ["version"]:
            assert (each.code, "is not the URL of a server" in each.out) == (0, True), told(each)
        else:
            check_sentence(" ".join(case.arguments), each, {2})
            assert "is not the URL of a server" in each.err, told(each)
