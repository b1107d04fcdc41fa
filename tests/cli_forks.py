"""`python -m tests.cli_forks`: runs many commands of `sandbox`, each in a forked process with streams of its own.

A case costs a fork where a process of its own would cost a start of Python. Reads a list of cases from stdin and writes
a list of results to stdout, as JSON.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import signal
import ssl
import sys
import tempfile
import traceback
from dataclasses import asdict, dataclass, field
from typing import IO

import httpx

import cli.main
import cli.task.watch
import client
import client.tasks.blocking
import client.tasks.reading
from cli.reference import command_tree

# Nobody here waits as long for a server as a person does.
_PATIENCE_SECONDS = 0.4
# A case that takes longer hangs.
_LONGEST_SECONDS = 60
_AT_A_TIME = 6


_NEEDED = (
    "cli.config.contexts", "cli.task.view", "machines.host", "machines.images.store", "machines.snapshots.snapshot",
    "rich.live", "rich.progress", "storage.bucket", "activities.machine.preservation", "typer.rich_utils", "yaml",
)  # fmt: skip


@dataclass
class Case:
    """One command line; ``closed`` are numbers of streams that are not open, ``encoding`` is that of the terminal."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    stdin: str = ""
    stdout: str | None = None
    encoding: str = "utf-8"
    directory: str | None = None


@dataclass
class Ended:
    """How it ended."""

    code: int
    out: str
    err: str


def main() -> None:
    """Run the cases and write the results."""
    cases = [Case(**case) for case in json.load(sys.stdin)]
    # What commands need is imported once.
    list(command_tree())
    for name in _NEEDED:
        importlib.import_module(name)
    # Reading the certificates of this host costs more than all the rest of a command.
    certificates = ssl.create_default_context()
    ssl.create_default_context = lambda *_, **__: certificates
    gc.freeze()
    client.TaskClient.__init__.__defaults__ = (client.DEFAULT_SERVER, None, _PATIENCE_SECONDS)  # type: ignore[misc]
    for module in (client.tasks.blocking, client.tasks.reading, cli.task.watch):
        vars(module)["PATIENCE_SECONDS"] = 0.0
    vars(client.tasks.reading)["FOLLOW_TIMEOUT"] = httpx.Timeout(_PATIENCE_SECONDS)
    vars(client.tasks.reading)["_LINE_SECONDS"] = _PATIENCE_SECONDS
    json.dump([asdict(each) for each in _run(cases)], sys.stdout)


def _run(cases: list[Case]) -> list[Ended]:
    """The cases, some at a time: most of what they do is to wait for servers."""
    going: dict[int, tuple[int, list[IO[bytes]]]] = {}
    ended: dict[int, Ended] = {}
    for place, case in enumerate(cases):
        if len(going) == _AT_A_TIME:
            _take_one(going, ended)
        files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115 -- closed when it has ended
        files[0].write(case.stdin.encode())
        files[0].seek(0)
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                _become(case, [file.fileno() for file in files])
            os._exit(99)
        going[child] = place, files
    while going:
        _take_one(going, ended)
    return [ended[place] for place in range(len(cases))]


def _take_one(going: dict[int, tuple[int, list[IO[bytes]]]], ended: dict[int, Ended]) -> None:
    child, status = os.waitpid(-1, 0)
    place, files = going.pop(child)
    written = []
    for file in files[1:]:
        file.seek(0)
        written.append(file.read().decode(errors="replace"))
    for file in files:
        file.close()
    ended[place] = Ended(os.waitstatus_to_exitcode(status), *written)


def _become(case: Case, streams: list[int]) -> None:
    signal.alarm(_LONGEST_SECONDS)
    if case.directory is not None:
        os.chdir(case.directory)
    os.environ.update(case.environment)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    if case.stdout is not None:
        os.dup2(os.open(case.stdout, os.O_WRONLY), 1)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if number in case.closed:
            os.close(number)
            setattr(sys, name, None)
        else:
            raw = io.FileIO(number, "r" if number == 0 else "w", closefd=False)
            buffer: io.BufferedReader | io.BufferedWriter = (
                io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
            )
            setattr(sys, name, io.TextIOWrapper(buffer, encoding=case.encoding))
    sys.argv = ["sandbox", *case.arguments]
    code = 98
    try:
        cli.main.run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 0
    except BaseException:  # noqa: BLE001 -- what Python itself would do is shown
        traceback.print_exc()
        code = 97
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
