"""Workspaces into machines and artifacts out of them: as disk images, beside tar through ssh."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from activities.artifacts.quiescence import quiesced
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import USUAL, Stand, restoring
from benchmarks.lab import Lab
from benchmarks.sample_tree import make_tree
from benchmarks.stopwatch import Stopwatch
from foundation.errors import TaskyardError
from foundation.units import parse_size
from machines.disks.workspace import build_workspace, opened

_MEGABYTE = 10**6
_SMALL, _LARGE = 10, 200
_ARTIFACTS, _FILES = 100, 10
_WRITING = f"""mkdir -p /workspace/out
for number in $(seq {_FILES}); do
    head -c {_ARTIFACTS // _FILES * _MEGABYTE} </dev/urandom >/workspace/out/file$number
done"""


@contextmanager
def _open_workspace(lab: Lab) -> Iterator[Sides]:
    trees = {f"{size}-mb": lab.directory / f"tree-{size}" for size in (_LARGE, _SMALL)}
    for size, tree in zip((_LARGE, _SMALL), trees.values(), strict=True):
        make_tree(tree, size * _MEGABYTE)
    try:
        with restoring(lab, USUAL) as stand:

            def by_hand() -> Run:
                laps = {name: stand.by_hand("workspace.sh", TREE=str(tree)).laps for name, tree in trees.items()}
                return Run({name: each["copied"] for name, each in laps.items()})

            yield Sides(lambda: _bring_in(stand, trees), by_hand)
    finally:
        for tree in trees.values():
            shutil.rmtree(tree)


def _bring_in(stand: Stand, trees: dict[str, Path]) -> Run:
    figures = {}
    phases = Stopwatch()
    image = stand.lab.directory / "workspace.raw"
    for name, tree in trees.items():
        with stand.machine() as machine_id:
            phases = Stopwatch()
            build_workspace(tree, image, parse_size(stand.size.disk))
            phases.lap("built")
            stand.host.attach_workspace(machine_id, image)
            figures[name] = phases.lap("attached")
    return Run(figures, phases.laps)


@contextmanager
def _open_artifacts(lab: Lab) -> Iterator[Sides]:
    tree = lab.directory / "tree"
    make_tree(tree, _SMALL * _MEGABYTE)
    try:
        with restoring(lab, USUAL) as stand:

            def by_hand() -> Run:
                environment = {"WRITING": _WRITING, "BYTES": str(_ARTIFACTS * _MEGABYTE)}
                return Run({"fetched": stand.by_hand("artifacts.sh", **environment).laps["fetched"]})

            yield Sides(lambda: _take_out(stand, tree), by_hand)
    finally:
        shutil.rmtree(tree)


def _take_out(stand: Stand, tree: Path) -> Run:
    """What the step that collects artifacts does up to where the files are on the host: the whole workspace is read."""
    image, into = stand.lab.directory / "workspace.raw", stand.lab.directory / "collected"
    build_workspace(tree, image, parse_size(stand.size.disk))
    with stand.machine() as machine_id:
        stand.host.attach_workspace(machine_id, image)
        stand.host.connect(machine_id).run(_WRITING)
        watch = Stopwatch()
        notes: list[str] = []
        try:
            with quiesced(stand.host, machine_id, notes) as dirty:
                watch.lap("at rest")
                with opened(stand.host.workspace(machine_id), into.parent, dirty=dirty) as disk:
                    disk.list_entries()
                    disk.read(disk.entries, into)
                watch.lap("read")
            seconds = watch.lap("going on")
            size = sum(path.stat().st_size for path in (into / "out").iterdir())
        finally:
            shutil.rmtree(into, ignore_errors=True)
    if notes or size != _ARTIFACTS * _MEGABYTE:
        raise TaskyardError(f"{size} bytes came out of the machine. {' '.join(notes)}")
    return Run({"fetched": seconds}, watch.laps)


WORKSPACE = Case(
    name="workspace",
    title="Workspace into a machine",
    by_hand="tar through ssh (`benchmarks/by_hand/workspace.sh`)",
    figures=(
        Figure(f"{_LARGE}-mb", f"{_LARGE} MB in many files", ratio_limit=0.1, label=f"Workspace of {_LARGE} MB in"),
        Figure(f"{_SMALL}-mb", f"{_SMALL} MB in many files"),
    ),
    open=_open_workspace,
)

ARTIFACTS = Case(
    name="artifacts",
    title="Artifacts out of a machine",
    by_hand="tar through ssh (`benchmarks/by_hand/artifacts.sh`)",
    figures=(
        Figure(
            "fetched",
            f"{_ARTIFACTS} MB that the guest has just written, beside a repository of {_SMALL} MB",
            ratio_limit=0.33,
            label=f"Artifacts of {_ARTIFACTS} MB out",
        ),
    ),
    open=_open_artifacts,
    repeat=5,
)
