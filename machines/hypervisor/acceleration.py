"""Which acceleration really works on this host, found out by starting guests: KVM that opens may still run nothing.

On some hosts (nested, paravirtual KVM) ``/dev/kvm`` opens and a guest's firmware even runs, some fifty times slower
than emulated, and a kernel never prints a line. So KVM must start a boot sector about as fast as emulation does,
and then, as soon as a guest image is there, start that image's kernel.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Literal

from foundation.child_environment import child_environment
from foundation.durable import ORDINARY, write_whole
from foundation.errors import HostNotReady
from foundation.settings import Settings
from foundation.units import format_seconds

Acceleration = Literal["kvm", "tcg"]

QEMU = "qemu-system-x86_64"
KVM_DEVICE = Path("/dev/kvm")
PROBE_LIMIT_SECONDS = 10.0
_MEMORY = "acceleration.json"
# Firmware and boot sector take about 0.15 s emulated and less with KVM; a KVM slower than this is no help.
_SLOWER_THAN_EMULATION = 3.0
_ALLOWANCE_SECONDS = 0.5
# mov al, 0x21; out 0xf4, al; hlt; jmp to the hlt: QEMU's exit device ends it with (0x21 << 1) | 1.
_BOOT_SECTOR = bytes.fromhex("b021e6f4f4ebfd").ljust(510, b"\0") + b"\x55\xaa"
_SECTOR_EXIT_CODE = (0x21 << 1) | 1

_probing = threading.Lock()


def usable_acceleration(settings: Settings, report: Callable[[str], None]) -> Acceleration:
    """``kvm`` when guests really run with it, else ``tcg`` (emulation); the setting ``acceleration`` overrides it.

    Probes once for each boot of the host and version of QEMU (and, while the answer is kvm, for each new guest
    kernel), and remembers the answer below home. ``report`` gets one line about a probe's outcome. Raises HostNotReady
    when QEMU is missing, or when KVM is demanded and does not work.
    """
    version = qemu_version()
    if settings.acceleration == "tcg":
        return "tcg"
    memory = settings.home / _MEMORY
    key = f"{_boot_id()} {version} {os.access(KVM_DEVICE, os.R_OK | os.W_OK)}"
    with _probing:
        kernel = _newest_kernel(settings)
        answer = _recall(memory, key, kernel)
        if answer is None:
            answer, reason = _probe(kernel)
            report(reason)
            _remember(memory, {"key": key, "kernel": str(kernel), "answer": answer})
    if settings.acceleration == "kvm" and answer != "kvm":
        raise HostNotReady("TASKYARD_ACCELERATION is kvm, but no guest starts with KVM here; set it to auto or tcg")
    return answer


def expected_acceleration(settings: Settings) -> Acceleration:
    """What machines will run with, as far as it is known without starting a guest: emulated, if it is not."""
    if settings.acceleration != "auto":
        return settings.acceleration
    try:
        answer = json.loads((settings.home / _MEMORY).read_text()).get("answer")
    except (OSError, ValueError, AttributeError):
        return "tcg"
    return "kvm" if answer == "kvm" else "tcg"


@cache
def qemu_version() -> str:
    """The version line of the installed QEMU. Raises HostNotReady when there is none."""
    if shutil.which(QEMU) is None:
        raise HostNotReady(f"{QEMU} is not installed; `sandbox doctor` says which packages are missing")
    completed = subprocess.run(
        [QEMU, "--version"], env=child_environment(), capture_output=True, text=True, check=True, timeout=30
    )
    return completed.stdout.partition("\n")[0].strip()


def seconds_to_start_sector(acceleration: Acceleration) -> float | None:
    """Seconds from QEMU's start until the firmware has run a boot sector; None when that failed or took too long."""
    with tempfile.TemporaryDirectory(prefix="taskyard-probe-") as directory:
        sector = Path(directory) / "sector"
        sector.write_bytes(_BOOT_SECTOR)
        arguments = ["-m", "32", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"]
        arguments += ["-drive", f"file={sector},format=raw,if=ide,snapshot=on"]
        return _run(acceleration, arguments, _SECTOR_EXIT_CODE)


def seconds_to_start_kernel(acceleration: Acceleration, kernel: Path) -> float | None:
    """Seconds until the kernel has started and found no disk, which ends it; None when that failed or took too long."""
    arguments = ["-m", "256", "-no-reboot", "-kernel", str(kernel), "-append", "panic=-1 quiet"]
    return _run(acceleration, arguments, 0)


def _probe(kernel: Path | None) -> tuple[Acceleration, str]:
    emulated = "machines are emulated (TCG), which is slower"
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        problem = "may not be opened" if KVM_DEVICE.exists() else "does not exist"
        return "tcg", f"{KVM_DEVICE} {problem}: {emulated}"
    tcg, kvm = seconds_to_start_sector("tcg"), seconds_to_start_sector("kvm")
    if tcg is None:
        raise HostNotReady(f"{QEMU} does not start even an emulated boot sector; run it by hand to see why")
    if kvm is None:
        return "tcg", f"{KVM_DEVICE} opens, but no guest starts with it: {emulated}"
    if kvm > tcg * _SLOWER_THAN_EMULATION + _ALLOWANCE_SECONDS:
        took = f"{format_seconds(kvm)} for a boot sector that takes {format_seconds(tcg)} emulated"
        return "tcg", f"{KVM_DEVICE} opens, but its guests crawl ({took}): {emulated}"
    if kernel is not None and seconds_to_start_kernel("kvm", kernel) is None:
        return "tcg", f"{KVM_DEVICE} opens, but no kernel starts with it: {emulated}"
    return "kvm", "machines run with KVM"


def _run(acceleration: Acceleration, arguments: list[str], expected: int) -> float | None:
    command = [QEMU, "-accel", acceleration, "-cpu", "host" if acceleration == "kvm" else "max"]
    command += ["-nodefaults", "-no-user-config", "-display", "none", *arguments]
    begun = time.monotonic()
    try:
        ended = subprocess.run(
            command, env=child_environment(), capture_output=True, check=False, timeout=PROBE_LIMIT_SECONDS
        )
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - begun if ended.returncode == expected else None


def _newest_kernel(settings: Settings) -> Path | None:
    kernels = [(path.stat().st_mtime, path) for path in settings.images.glob("[!.]*/kernel")]
    return max(kernels)[1] if kernels else None


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _recall(memory: Path, key: str, kernel: Path | None) -> Acceleration | None:
    try:
        remembered = json.loads(memory.read_text())
    except (OSError, ValueError):
        return None
    if remembered.get("key") != key:
        return None
    if remembered.get("answer") == "kvm" and remembered.get("kernel") == str(kernel):
        return "kvm"
    return "tcg" if remembered.get("answer") == "tcg" else None


def _remember(memory: Path, fact: dict[str, str]) -> None:
    memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    write_whole(memory, json.dumps(fact), ORDINARY)
