"""New machines up to their first command: restored, from the warm pool, and many at once, beside plain ``-loadvm``."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.cold_boot import cold_boot
from benchmarks.cases.machine_stand import SMALL, USUAL, Stand, restoring
from benchmarks.lab import Lab, free_port
from benchmarks.stopwatch import Stopwatch

_ONE_AFTER_ANOTHER = 4
_AT_ONCE = 8
_STAGGER_SECONDS = 0.2
_BY_HAND = "cp of a disk with a `savevm` in it, qemu-system-x86_64 -loadvm, ssh"


@contextmanager
def _open_restore(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL) as stand:

        def ours() -> Run:
            machine_id, watch = stand.first_command()
            stand.host.destroy(machine_id)
            seconds = sum(watch.laps.values())
            return Run({"first-command": seconds, "beside-boot": seconds}, watch.laps)

        def other() -> Run:
            restored, booted = stand.by_hand("restore.sh"), cold_boot(lab)
            figures = {"first-command": sum(restored.laps.values()), "beside-boot": booted.figures["first-command"]}
            return Run(figures, restored.laps)

        yield Sides(ours, other)


@contextmanager
def _open_pool(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, USUAL, warm_pool=1) as stand:

        def ours() -> Run:
            stand.host.keep_pool(lab.report)
            machine_id, watch = stand.first_command()
            stand.host.destroy(machine_id)
            return Run({"first-command": sum(watch.laps.values())}, watch.laps)

        def by_hand() -> Run:
            watch = stand.by_hand("restore.sh")
            return Run({"first-command": sum(watch.laps.values())}, watch.laps)

        try:
            yield Sides(ours, by_hand)
        finally:
            stand.host.drain_pool()


@contextmanager
def _open_create(lab: Lab) -> Iterator[Sides]:
    with restoring(lab, SMALL) as stand:
        yield Sides(
            lambda: _create(_ours_in_turn(stand), _ours_together(stand, _STAGGER_SECONDS), _ours_together(stand, 0)),
            lambda: _create(
                _by_hand(stand, _ONE_AFTER_ANOTHER, ""),
                _by_hand(stand, _AT_ONCE, str(_STAGGER_SECONDS)),
                _by_hand(stand, _AT_ONCE, "0"),
            ),
        )


def _create(in_turn: list[float], staggered: list[float], burst: list[float]) -> Run:
    """The figures from the seconds of each machine, from its creation to its first command."""
    return Run(
        {
            "in-turn": statistics.median(in_turn),
            "staggered": statistics.median(staggered),
            "burst": statistics.median(burst),
            "burst-last": max(burst),
        }
    )


def _ours_in_turn(stand: Stand) -> list[float]:
    seconds = []
    for _ in range(_ONE_AFTER_ANOTHER):
        machine_id, watch = stand.first_command()
        stand.host.destroy(machine_id)
        seconds.append(sum(watch.laps.values()))
    return seconds


def _ours_together(stand: Stand, gap: float) -> list[float]:
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        begun: list[Future[tuple[str, Stopwatch]]] = []
        try:
            for _ in range(_AT_ONCE):
                begun.append(threads.submit(stand.first_command))
                time.sleep(gap)
            return [sum(each.result()[1].laps.values()) for each in begun]
        finally:
            made = [each.result()[0] for each in begun if each.exception() is None]
            list(threads.map(stand.host.destroy, made))


def _by_hand(stand: Stand, count: int, gap: str) -> list[float]:
    ports = [str(free_port()) for _ in range(count)]
    moments = stand.by_hand("create.sh", PORTS=" ".join(ports), GAP=gap).moments
    return [moments[f"entered {port}"] - moments[f"began {port}"] for port in ports]


RESTORE = Case(
    name="restore",
    title="Restore",
    by_hand=f"{_BY_HAND} (`benchmarks/by_hand/restore.sh`)",
    figures=(
        Figure(
            "first-command",
            "from the image and its snapshot to the end of the first SSH command",
            ratio_limit=1.25,
            label="Restore → first command",
        ),
        Figure("beside-boot", "the same", ratio_limit=0.12, beside="cold boot"),
    ),
    open=_open_restore,
    repeat=5,
    warm_up=True,
)

POOL = Case(
    name="pool",
    title="Hand-over from the warm pool",
    by_hand=f"{_BY_HAND} (`benchmarks/by_hand/restore.sh`)",
    figures=(
        Figure(
            "first-command",
            "from the reservation to the end of the first SSH command",
            limit=0.5,
            label="Warm pool → first command",
        ),
    ),
    open=_open_pool,
    repeat=5,
)

CREATE = Case(
    name="create",
    title="Create",
    by_hand=f"{_BY_HAND}, in the same pattern (`benchmarks/by_hand/create.sh`)",
    figures=(
        Figure("in-turn", f"{_ONE_AFTER_ANOTHER} machines one after another, median to the first command"),
        Figure("staggered", f"{_AT_ONCE} machines, one every {_STAGGER_SECONDS:g} s, median to the first command"),
        Figure(
            "burst",
            f"{_AT_ONCE} machines at once, median to the first command",
            label=f"Burst of {_AT_ONCE} → first command",
        ),
        Figure("burst-last", f"{_AT_ONCE} machines at once, the last one to its first command"),
    ),
    open=_open_create,
)
