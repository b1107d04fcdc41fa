"""What a guest remembers, as a file: saved from a running QEMU, and taken up by another that was started for it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from foundation.errors import MachineError
from machines.hypervisor.qmp import Monitor

# Under this name QEMU keeps the file, which it reads and writes itself: no other process passes on what is in it.
_NAME = "saved-state"
_POLL_SECONDS = 0.005
_LIMIT_SECONDS = 600.0


def save(monitor: Monitor, file: Path, *, mapped_memory: bool, look: Callable[[], object] | None = None) -> None:
    """Stop the guest and write its state; the QEMU can end then, or go on with ``cont``. ``look`` raises to give up."""
    with file.open("wb") as opened:
        monitor.give(_NAME, opened)
    monitor.execute("stop")
    _set_memory(monitor, mapped_memory)
    # The default is made for networks between hosts.
    monitor.execute("migrate-set-parameters", {"max-bandwidth": 0})
    monitor.execute("migrate", {"uri": f"fd:{_NAME}"})
    _wait(monitor, "saved", look)


def load(monitor: Monitor, file: Path, *, mapped_memory: bool, look: Callable[[], object] | None = None) -> None:
    """Have a QEMU that was started to wait for it take up a state; its guest goes on at ``cont``."""
    _set_memory(monitor, mapped_memory)
    with file.open("rb") as opened:
        monitor.give(_NAME, opened)
    monitor.execute("migrate-incoming", {"uri": f"fd:{_NAME}"})
    _wait(monitor, "restored", look)


def _set_memory(monitor: Monitor, mapped: bool) -> None:
    """Leave memory out where it is a file of its own that QEMU maps: nothing needs to be copied then."""
    capability = {"capability": "x-ignore-shared", "state": mapped}
    monitor.execute("migrate-set-capabilities", {"capabilities": [capability]})


def _wait(monitor: Monitor, what: str, look: Callable[[], object] | None) -> None:
    end = time.monotonic() + _LIMIT_SECONDS
    while True:
        answer = monitor.execute("query-migrate")
        status = answer.get("status")
        if status == "completed":
            return
        if status in {"failed", "cancelled"}:
            reason = answer.get("error-desc", "QEMU gives no reason")
            raise MachineError(f"The guest's memory could not be {what}: {reason}")
        if time.monotonic() > end:
            raise MachineError(f"The guest's memory was not {what} within {_LIMIT_SECONDS:g} s")
        if look is not None:
            look()
        time.sleep(_POLL_SECONDS)
