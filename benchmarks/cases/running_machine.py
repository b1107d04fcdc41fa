"""A machine that runs: commands in it, its pause and its resumption, beside ssh, ``savevm`` and ``-loadvm``."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import USUAL, Stand, restoring
from benchmarks.lab import Lab
from benchmarks.stopwatch import Stopwatch
from foundation.errors import TaskyardError

_COMMANDS = 20
# A process of the guest that shows on the serial console, which needs no connection, that it goes on.
_COUNTING = """setsid perl -e '$| = 1; while (1) { print "count ", ++$n, "\\n"; select undef, undef, undef, 0.02 }' \
    </dev/null >/dev/ttyS0 2>&1 &"""
_COUNTED = re.compile(rb"count (\d+)\r?\n")
_LIMIT_SECONDS = 60.0
_POLL_SECONDS = 0.005


@contextmanager
def _open_exec(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand, stand.machine() as machine_id:
        shell = stand.host.connect(machine_id)

        def ours() -> Run:
            took = []
            for _ in range(_COMMANDS):
                began = time.perf_counter()
                shell.run("true")
                took.append(time.perf_counter() - began)
            return Run({"round-trip": statistics.median(took)})

        def by_hand() -> Run:
            laps = stand.by_hand("exec.sh", TIMES=str(_COMMANDS)).laps
            return Run(
                {"round-trip": statistics.median(seconds for name, seconds in laps.items() if name != "entered")}
            )

        yield Sides(ours, by_hand)


@contextmanager
def _open_pause(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand:

        def by_hand() -> Run:
            laps = stand.by_hand("pause.sh", COUNTING=_COUNTING).laps
            return Run({"paused": laps["paused"], "durable": laps["paused"] + laps["on disk"], "kept": 0.0})

        yield Sides(lambda: _pause_and_resume(stand, {"paused", "durable", "kept"}), by_hand)


@contextmanager
def _open_resume(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand:

        def other() -> Run:
            laps = stand.by_hand("pause.sh", COUNTING=_COUNTING).laps
            figures = {"goes-on": laps["goes on"], "first-command": laps["goes on"] + laps["first command"]}
            machine_id, restored = stand.first_command()
            stand.host.destroy(machine_id)
            return Run(figures | {"beside-restore": sum(restored.laps.values())})

        yield Sides(lambda: _pause_and_resume(stand, {"goes-on", "first-command", "beside-restore"}), other)


def _pause_and_resume(stand: Stand, figures: set[str]) -> Run:
    host = stand.host
    with stand.machine() as machine_id:
        host.connect(machine_id).run(_COUNTING)
        console = host.console(machine_id)
        _await(lambda: _counted(console), "The process in the guest does not count")
        process = psutil.Process(host.record(machine_id).pid)
        resident = process.memory_info().rss

        watch = Stopwatch()
        host.pause(machine_id)
        paused = watch.lap("paused")
        kept = process.memory_info().rss if process.is_running() else 0
        counted = _counted(console)

        watch = Stopwatch()
        with ThreadPoolExecutor(1) as threads:
            # The guest runs before the call that resumes it has set the guest's clock and ends.
            seen = threads.submit(_await, lambda: _counted(console) > counted, "The paused process does not go on")
            host.resume(machine_id)
            goes_on = watch.lap("process goes on", seen.result())
        watch.lap("resumed")
        host.connect(machine_id).run("true")
        entered = watch.lap("first command")
        found = {
            "paused": paused,
            "durable": paused,
            "kept": 100 * kept / resident,
            "goes-on": goes_on,
            "first-command": entered,
            "beside-restore": goes_on,
        }
        phases = watch.laps if "goes-on" in figures else {}
        return Run({name: value for name, value in found.items() if name in figures}, phases)


def _counted(console: Path) -> int:
    """The last number that the process in the guest has shown; 0 before the first."""
    numbers = _COUNTED.findall(console.read_bytes())
    return int(numbers[-1]) if numbers else 0


def _await(condition: Callable[[], object], otherwise: str) -> float:
    """The unix time at which the condition holds."""
    deadline = time.monotonic() + _LIMIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TaskyardError(f"{otherwise} within {_LIMIT_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    return time.time()


EXEC = Case(
    name="exec",
    title="A command in a running machine",
    by_hand="ssh over a connection that is open, with ControlMaster (`benchmarks/by_hand/exec.sh`)",
    figures=(
        Figure("round-trip", f"`true` over an open connection, median of {_COMMANDS}", label="Command in a machine"),
    ),
    open=_open_exec,
    repeat=5,
)

PAUSE = Case(
    name="pause",
    title="Pause",
    by_hand="QEMU's savevm and quit (`benchmarks/by_hand/pause.sh`)",
    figures=(
        Figure("paused", "until the memory is saved and given back", ratio_limit=1.2, label="Pause"),
        Figure("durable", "the same, and no crash of the host loses it", beside="with fsync"),
        Figure("kept", "resident memory that is not given back", unit="%", limit=10),
    ),
    open=_open_pause,
    repeat=5,
)

RESUME = Case(
    name="resume",
    title="Resume",
    by_hand="qemu-system-x86_64 -loadvm, ssh (`benchmarks/by_hand/pause.sh`)",
    figures=(
        Figure("goes-on", "until the paused process goes on", label="Resume → process goes on"),
        Figure("first-command", "until the end of the first SSH command"),
        Figure("beside-restore", "until the paused process goes on", ratio_limit=1.3, beside="restore"),
    ),
    open=_open_resume,
    repeat=5,
)
