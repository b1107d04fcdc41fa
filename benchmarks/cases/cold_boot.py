"""Cold boot: from a finished image to the end of the first command over SSH, beside plain QEMU and ssh."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import USUAL, Stand, script_environment
from benchmarks.lab import Lab

__all__ = ["CASE", "cold_boot", "script_environment"]


def cold_boot(lab: Lab) -> Run:
    """Boot a machine of the usual size, enter it, and destroy it."""
    stand = Stand(lab, USUAL, use_snapshots=False)
    machine_id, watch = stand.first_command()
    stand.host.destroy(machine_id)
    return Run({"first-command": sum(watch.laps.values())}, watch.laps)


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    stand = Stand(lab, USUAL)

    def by_hand() -> Run:
        watch = stand.by_hand("boot.sh")
        return Run({"first-command": sum(watch.laps.values())}, watch.laps)

    yield Sides(lambda: cold_boot(lab), by_hand)


CASE = Case(
    name="cold-boot",
    title="Cold boot",
    by_hand="ssh-keygen, qemu-img, qemu-system-x86_64, ssh (`benchmarks/by_hand/boot.sh`)",
    figures=(Figure("first-command", "from the image to the end of the first SSH command"),),
    open=_open,
    warm_up=True,
)
