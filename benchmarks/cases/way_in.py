"""The way into a running machine through the API: commands, a file and a port, beside ssh, sftp and ``ssh -L``."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import USUAL, Stand, restoring
from benchmarks.lab import Lab, free_port
from benchmarks.stopwatch import Stopwatch
from cli.stack.up import Stack
from client import TaskClient
from examples.hello.prepare import prepare
from examples.hello.serve import serve
from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.host import MachineHost

_COMMANDS = 20
_BYTES = 100 * 10**6
_PORT = 8000
# Python's own server is there in every image; the file is in memory, so that no disk is measured.
_SERVING = (
    f"mkdir -p /dev/shm/served && head -c {_BYTES} /dev/zero >/dev/shm/served/file && cd /dev/shm/served && "
    f"{{ setsid python3 -m http.server {_PORT} </dev/null >/dev/null 2>&1 & }}"
)
_SCENARIO = """
name: waiting
description: Answers, and waits for a message that does not come
when: "Scenario: waiting"
turns:
  - text: Waiting.
"""
_LIMIT_SECONDS = 300.0
_POLL_SECONDS = 0.1


class Entered:
    """A run whose agent waits for a message, as the API's clients see it."""

    def __init__(self, settings: Settings, client: TaskClient, task_id: str) -> None:
        self.host = MachineHost(settings)
        self.id = str(client.get(task_id).vm_name)
        base = f"http://127.0.0.1:{settings.api_port}"
        self._machine = f"{base}/api/v1/tasks/{task_id}"
        self.http = httpx.Client(timeout=_LIMIT_SECONDS)

    def run(self, command: str) -> int:
        """Run a command line in the foreground; its exit code."""
        reply = self.http.post(f"{self._machine}/exec", json={"shell": command}).raise_for_status()
        last = json.loads(reply.text.splitlines()[-1])
        if "exit" not in last:
            raise TaskyardError(f"The command '{command}' was left without an end: {last}")
        return int(last["exit"]["code"])

    def put(self, source: Path, there: str) -> None:
        """Write a file from one of this host's."""
        with source.open("rb") as file:
            self.http.put(f"{self._machine}/files/content", params={"path": there}, content=file).raise_for_status()

    def get(self, there: str, target: Path) -> None:
        """Read a file into one of this host's."""
        self._take(f"{self._machine}/files/content", {"path": there}, target)

    def fetch(self, port: int, path: str, target: Path) -> None:
        """Fetch from a web server of the guest."""
        self._take(f"{self._machine}/ports/{port}/{path}", {}, target)

    def _take(self, url: str, parameters: dict[str, str], target: Path) -> None:
        with self.http.stream("GET", url, params=parameters) as answer, target.open("wb") as file:
            answer.raise_for_status()
            for data in answer.iter_bytes():
                file.write(data)


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand, _entered(lab) as machine:
        machine.host.connect(machine.id).run(_SERVING)
        _await(lambda: machine.run(f"curl -sfI -o /dev/null http://127.0.0.1:{_PORT}/file") == 0)
        yield Sides(lambda: _ours(lab, machine), lambda: _by_hand(stand))


def _ours(lab: Lab, machine: Entered) -> Run:
    source, target = lab.directory / "file", lab.directory / "back"
    try:
        subprocess.run(["head", "-c", str(_BYTES), "/dev/urandom"], stdout=source.open("wb"), check=True)
        watch = Stopwatch()
        for number in range(_COMMANDS):
            if machine.run("true") != 0:
                raise TaskyardError("The command of the benchmark failed.")
            watch.lap(f"command {number + 1}")
        machine.put(source, "/dev/shm/file")  # noqa: S108 -- in the guest
        watch.lap("put")
        machine.get("/dev/shm/file", target)  # noqa: S108
        watch.lap("got")
        if source.read_bytes() != target.read_bytes():
            raise TaskyardError("The file of the benchmark came back another.")
        watch.lap("compared")
        machine.fetch(_PORT, "file", target)
        watch.lap("fetched")
        if target.stat().st_size != _BYTES:
            raise TaskyardError("The file of the guest's web server came in part.")
    finally:
        source.unlink(missing_ok=True)
        target.unlink(missing_ok=True)
    return _run(watch)


def _by_hand(stand: Stand) -> Run:
    return _run(
        stand.by_hand(
            "way_in.sh",
            GUEST_USER="agent",
            TIMES=str(_COMMANDS),
            BYTES=str(_BYTES),
            SERVING=_SERVING,
            SERVED="file",
            PORT_THERE=str(_PORT),
            FORWARDED=str(free_port()),
        )
    )


def _run(watch: Stopwatch) -> Run:
    commands = [seconds for name, seconds in watch.laps.items() if name.startswith("command ")]
    return Run(
        {"command": statistics.median(commands)} | {name: watch.laps[name] for name in ("put", "got", "fetched")}
    )


@contextmanager
def _entered(lab: Lab) -> Iterator[Entered]:
    """A run in a machine like those that are entered by hand, on a stack of its own."""
    scenario = lab.directory / "waiting.yaml"
    scenario.write_text(_SCENARIO)
    settings = lab.settings.model_copy(update={"scenario": scenario})
    prepared = prepare(lab.own, lab.report, lab.directory / "examples")
    with serve(prepared.path) as url, Stack(settings), TaskClient(f"http://127.0.0.1:{settings.api_port}") as client:
        manifest: dict[str, Any] = {
            "version": "1",
            "kind": "Task",
            "metadata": {"name": "entered"},
            "repository": {"url": url, "branch": "main"},
            "claude": {"prompt": "Scenario: waiting", "headless": False},
            "vm": asdict(USUAL),
        }
        task_id = client.submit(manifest)
        try:
            _await(lambda: _has_answered(client, task_id))
            yield Entered(settings, client, task_id)
        finally:
            client.cancel(task_id, force=True)
            client.wait(task_id, timeout_seconds=_LIMIT_SECONDS)


def _has_answered(client: TaskClient, task_id: str) -> bool:
    if (task := client.get(task_id)).terminal:
        raise TaskyardError(f"The run of the benchmark ended as '{task.state}': {task.error}")
    return any('"type":"result"' in (line.data or "") for line in client.logs(task_id))


def _await(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TaskyardError(f"The machine of the benchmark was not there within {_LIMIT_SECONDS:g} s.")
        time.sleep(_POLL_SECONDS)


CASE = Case(
    name="way-in",
    title="Into a running machine",
    by_hand="ssh over a connection that is open, sftp and `ssh -L` over the same one (`benchmarks/by_hand/way_in.sh`)",
    figures=(
        Figure("command", f"`true` through the API, median of {_COMMANDS}", ratio_limit=1.5, label="Command by API"),
        # Rates of 0.8 and 0.7.
        Figure("put", f"{_BYTES // 10**6} MB into a file of the machine", ratio_limit=1.25),
        Figure("got", "the same file back", ratio_limit=1.25),
        Figure("fetched", f"{_BYTES // 10**6} MB from a web server of the machine", ratio_limit=1 / 0.7),
    ),
    open=_open,
    repeat=5,
)
