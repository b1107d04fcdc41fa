"""The making of a template: a guest booted up to where it waits for its identity, its memory and disk left as files."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import psutil

from foundation.errors import MachineError
from foundation.units import format_seconds
from machines.hypervisor import qemu
from machines.hypervisor.hardware import Start, qemu_arguments
from machines.hypervisor.qmp import Monitor
from machines.identity import Introduction
from machines.paths import OVERLAY, MachinePaths
from machines.shape import Shape
from machines.snapshots.saved_state import save

MEMORY, STATE, DISK = "memory", "state", OVERLAY

_LIMIT_SECONDS = 300.0
_REPORT_SECONDS = 5.0
_LOOK_SECONDS = 0.05
# The guest has nothing left to do when it takes next to no time of its processors, twice in a row.
_WINDOW_SECONDS, _IDLE_SHARE, _SETTLE_SECONDS = 0.2, 0.1, 10.0


def make_template(paths: MachinePaths, shape: Shape, report: Callable[[str], None]) -> None:
    """Leave the files MEMORY, STATE and DISK in the directory of ``paths``. Raises MachineError with the console."""
    qemu.make_overlay(paths, shape.image, shape.image.virtual_size)
    start = Start(memory=paths.directory / MEMORY, template=True)
    report("no snapshot of this shape is there yet: booting one guest to make it")
    process = qemu.start_child(paths, qemu_arguments(paths, shape, start))
    try:
        watch = _Watch(process, report)
        with Monitor(paths.qmp, waiting=watch.look) as monitor:
            while not qemu.guest_is_listening(monitor):
                watch.look()
                time.sleep(_LOOK_SECONDS)
            # The guest waits for its host to speak, and not for it to come: whoever restores it is there already.
            with Introduction(paths.identity):
                _settle(process.pid)
                save(monitor, paths.directory / STATE, mapped_memory=True, look=watch.look)
    except MachineError as error:
        outputs = [qemu.tail(path) for path in (paths.output, paths.console)]
        raise MachineError("\n".join([f"The snapshot was not made: {error}", *filter(None, outputs)])) from error
    finally:
        process.terminate()
        try:
            process.wait(_REPORT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for path in (paths.output, paths.console, paths.pid_file):
        path.unlink(missing_ok=True)


def _settle(pid: int) -> None:
    process = psutil.Process(pid)
    end = time.monotonic() + _SETTLE_SECONDS
    idle = 0
    while idle < 2 and time.monotonic() < end:  # noqa: PLR2004 -- twice in a row
        before = _seconds_used(process)
        time.sleep(_WINDOW_SECONDS)
        idle = idle + 1 if _seconds_used(process) - before <= _IDLE_SHARE * _WINDOW_SECONDS else 0


def _seconds_used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


class _Watch:
    """Gives up on a guest that has ended or takes too long, and says that it is still booting."""

    def __init__(self, process: subprocess.Popen[bytes], report: Callable[[str], None]) -> None:
        self._process = process
        self._report = report
        self._begun = self._reported = time.monotonic()

    def look(self) -> None:
        now = time.monotonic()
        if self._process.poll() is not None:
            raise MachineError("QEMU ended while the guest was booting")
        if now - self._begun > _LIMIT_SECONDS:
            raise MachineError(f"The guest did not come up within {_LIMIT_SECONDS:g} s")
        if now - self._reported >= _REPORT_SECONDS:
            self._reported = now
            self._report(f"guest is booting ({format_seconds(now - self._begun)})")
