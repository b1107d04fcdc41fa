"""Snapshots: the memory and disk of a guest that waits for its identity, one for each shape, shared by its machines.

A snapshot is named by the digest of all that shapes it. Its facts are written last, with a digest of each file, so
that one that is unfinished, damaged or another shape's is known as such; it is removed then, and made anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from foundation import locks
from foundation.durable import ORDINARY, write_durably, write_whole
from foundation.errors import MachineError
from foundation.settings import Settings
from foundation.units import format_size, parse_size
from machines.hypervisor.acceleration import qemu_version
from machines.hypervisor.hardware import Start, qemu_arguments
from machines.paths import MachinePaths
from machines.shape import Shape
from machines.snapshots.template import DISK, MEMORY, STATE, make_template

Report = Callable[[str], None]

_FILES = (MEMORY, STATE, DISK)
_FACTS = "snapshot.json"
_USED = "used"
_CHECKED = "checked.json"
_BUILD_PREFIX, _LOCK_PREFIX, _REMOVED_PREFIX = ".build-", ".lock-", ".removed-"
# Raised when snapshots of the same inputs come to differ.
_FORMAT = 1
_CHUNK = 2**20
_ZEROS = bytes(_CHUNK)
_ATTEMPTS = 3


@dataclass(frozen=True)
class Snapshot:
    """A finished snapshot. ``bytes`` is what it takes of the disk."""

    key: str
    directory: Path
    image_digest: str
    cpus: int
    memory_bytes: int
    acceleration: str
    bytes: int
    made_at: datetime
    used_at: datetime

    @property
    def memory(self) -> Path:
        """The guest's memory, to be mapped privately."""
        return self.directory / MEMORY

    @property
    def state(self) -> Path:
        """The state of the devices."""
        return self.directory / STATE

    @property
    def disk(self) -> Path:
        """The root disk, an overlay on the image: to be copied."""
        return self.directory / DISK


def snapshot_key(shape: Shape) -> str:
    """32 hex digits that stand for everything that a snapshot of the shape depends on."""
    canonical = json.dumps(_inputs(shape), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:32]


@contextmanager
def held_snapshot(settings: Settings, shape: Shape, report: Report) -> Iterator[Snapshot]:
    """The snapshot of a shape, made if need be; it stays while the context is held.

    Of several callers that want the same one, one makes it and the others wait. Raises MachineError when the template
    does not come up.
    """
    key = snapshot_key(shape)
    root = settings.snapshots
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (root / f"{_LOCK_PREFIX}{key}").open("w") as lock:
        for _ in range(_ATTEMPTS):
            locks.take(lock, shared=True)
            snapshot = _whole(root / key, shape)
            if snapshot is not None:
                (snapshot.directory / _USED).touch()
                yield snapshot
                return
            # Only one can hold it exclusively, and whoever comes next finds what the first one made.
            locks.take(lock, busy=lambda: report("another process makes the snapshot of this shape; waiting for it"))
            if _whole(root / key, shape) is None:
                _make(settings, key, shape, report)
    raise MachineError(f"The snapshot {key} was made and removed by others {_ATTEMPTS} times; free some disk")


def list_snapshots(settings: Settings) -> list[Snapshot]:
    """All finished snapshots on this host, the last used first."""
    if not settings.snapshots.is_dir():
        return []
    found = [snapshot for path in settings.snapshots.iterdir() if (snapshot := _read(path))]
    return sorted(found, key=lambda snapshot: snapshot.used_at, reverse=True)


def discard_snapshot(settings: Settings, key: str) -> bool:
    """Remove a snapshot unless somebody is restoring a machine from it. Machines that came from it go on."""
    with locks.held(settings.snapshots / f"{_LOCK_PREFIX}{key}", patience=0) as alone:
        if alone:
            _remove(settings.snapshots / key)
        return alone


def discard_snapshots_of(settings: Settings, image_digest: str) -> None:
    """Remove the snapshots of an image."""
    for snapshot in list_snapshots(settings):
        if snapshot.image_digest == image_digest:
            discard_snapshot(settings, snapshot.key)


def sweep_snapshots(settings: Settings) -> list[str]:
    """Remove what interrupted makers left, and keep all within the limit; gives a line for each thing done."""
    root = settings.snapshots
    if not root.is_dir():
        return []
    done = []
    for path in (*root.glob(f"{_BUILD_PREFIX}*"), *root.glob(f"{_REMOVED_PREFIX}*")):
        key = path.name.split("-")[1]
        with locks.held(root / f"{_LOCK_PREFIX}{key}", patience=0) as alone:
            if not alone:
                continue
            if path.exists():
                shutil.rmtree(path, ignore_errors=True)
                done.append(f"removed the unfinished snapshot {path.name}")
            _remove_sockets(settings, key)
    return done + _evict(settings, keep=None)


def _inputs(shape: Shape) -> dict[str, Any]:
    # The arguments with made-up paths, so that they describe the hardware and nothing else.
    nowhere = Path("/-")
    image = replace(shape.image, directory=nowhere)
    arguments = qemu_arguments(MachinePaths(nowhere, nowhere, "-"), replace(shape, image=image), Start())
    return {
        "format": _FORMAT,
        "image": shape.image.digest,
        "cpus": shape.cpus,
        "memory_bytes": shape.memory_bytes,
        "acceleration": shape.acceleration,
        "qemu": qemu_version(),
        # The guest has seen this processor's features and measured its clock.
        "processor": _processor(),
        "arguments": arguments,
    }


@cache
def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(("vendor_id", "model", "flags")))


def _make(settings: Settings, key: str, shape: Shape, report: Report) -> None:
    root = settings.snapshots
    for stale in root.glob(f"{_BUILD_PREFIX}{key}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    _remove(root / key)
    begun = time.monotonic()
    work = root / f"{_BUILD_PREFIX}{key}-{secrets.token_hex(4)}"
    work.mkdir(mode=0o700)
    try:
        make_template(MachinePaths(work, settings.sockets.absolute(), _template_name(key)), shape, report)
        size = _disk_use(work)
        facts = {
            "key": key,
            "inputs": _inputs(shape),
            "made_at": datetime.now(UTC).isoformat(),
            "make_seconds": round(time.monotonic() - begun, 2),
            "bytes": size,
            "files": {name: {"bytes": (work / name).stat().st_size, "digest": digest(work / name)} for name in _FILES},
        }
        (work / _USED).touch()
        write_durably(work / _FACTS, json.dumps(facts, indent=1), ORDINARY)
        _remember_checked(work)
        work.rename(root / key)
    finally:
        _remove_sockets(settings, key)
        shutil.rmtree(work, ignore_errors=True)
    report(
        f"snapshot {key[:12]} is made: {shape.cpus} CPUs, {format_size(shape.memory_bytes)} of memory, "
        f"{format_size(size)} on disk"
    )
    _evict(settings, keep=key)


def _evict(settings: Settings, keep: str | None) -> list[str]:
    """Remove the longest unused until the rest is within the limit; one that somebody restores from stays."""
    limit = parse_size(settings.snapshot_limit)
    snapshots = list_snapshots(settings)
    total = sum(snapshot.bytes for snapshot in snapshots)
    done = []
    for snapshot in reversed(snapshots):
        if total <= limit:
            break
        if snapshot.key != keep and discard_snapshot(settings, snapshot.key):
            total -= snapshot.bytes
            done.append(f"removed the snapshot {snapshot.key}, the longest unused, to stay below {format_size(limit)}")
    return done


def _whole(directory: Path, shape: Shape) -> Snapshot | None:
    """The snapshot in a directory, if it is the shape's and each byte is the one that was written."""
    snapshot = _read(directory)
    if snapshot is None:
        return None
    facts = json.loads((directory / _FACTS).read_text())
    if facts["inputs"] != _inputs(shape):
        return None
    try:
        signature = _signature(directory)
        if _checked(directory) == signature:
            return snapshot
        for name, known in facts["files"].items():
            if signature[name][2] != known["bytes"] or digest(directory / name) != known["digest"]:
                return None
        _remember_checked(directory)
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return snapshot


def _read(directory: Path) -> Snapshot | None:
    """What a directory says it is; None for one without readable facts."""
    if directory.name.startswith("."):
        return None
    try:
        facts = json.loads((directory / _FACTS).read_text())
        inputs = facts["inputs"]
        return Snapshot(
            key=directory.name,
            directory=directory.resolve(),
            image_digest=inputs["image"],
            cpus=inputs["cpus"],
            memory_bytes=inputs["memory_bytes"],
            acceleration=inputs["acceleration"],
            bytes=facts["bytes"],
            made_at=datetime.fromisoformat(facts["made_at"]),
            used_at=datetime.fromtimestamp((directory / _USED).stat().st_mtime, UTC),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def digest(path: Path) -> str:
    """Digest of a sparse file's content: holes and written zeros are the same."""
    whole = hashlib.sha256()
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        at = 0
        while at < end:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA) // _CHUNK * _CHUNK
            except OSError:
                break  # nothing but a hole up to the end
            chunk = os.pread(file.fileno(), _CHUNK, at)
            if chunk != _ZEROS[: len(chunk)]:
                whole.update(at.to_bytes(8) + chunk)
            at += _CHUNK
        whole.update(end.to_bytes(8))
    return whole.hexdigest()


def _signature(directory: Path) -> dict[str, list[int]]:
    """What changes whenever somebody writes to a file or puts another in its place."""
    found = {}
    for name in _FILES:
        stat = (directory / name).stat()
        found[name] = [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return found


def _checked(directory: Path) -> dict[str, list[int]] | None:
    """The signature of the files when they were last read whole, during this boot of the host."""
    try:
        known = json.loads((directory / _CHECKED).read_text())
        return known["files"] if known["boot_id"] == _boot_id() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember_checked(directory: Path) -> None:
    write_whole(directory / _CHECKED, json.dumps({"boot_id": _boot_id(), "files": _signature(directory)}), ORDINARY)


@cache
def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _remove(directory: Path) -> None:
    """Take a snapshot out of sight in one step, then remove it."""
    aside = directory.with_name(f"{_REMOVED_PREFIX}{directory.name}-{secrets.token_hex(4)}")
    try:
        directory.rename(aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside, ignore_errors=True)


def _remove_sockets(settings: Settings, key: str) -> None:
    for path in settings.sockets.glob(f"{_template_name(key)}.*"):
        path.unlink(missing_ok=True)


def _template_name(key: str) -> str:
    return f"template-{key[:12]}"


def _disk_use(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())
