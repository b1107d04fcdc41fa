"""Cold boot: from a finished image to the end of the first command over SSH, beside plain QEMU and ssh."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from benchmarks.case import Case, Figure, Run, Sides, Stopwatch
from benchmarks.lab import Lab, free_port
from foundation.units import parse_size
from machines.host import MachineHost, Reservation
from machines.image import Image

PROFILE = "agentic-dev"
CPUS, MEMORY, DISK = 2, "2G", "8G"


def script_environment(image: Image, acceleration: str, *, cpus: int, memory: str, disk: str) -> dict[str, str]:
    """What ``by_hand/machine.sh`` takes for a machine of this shape."""
    accel, cpu = ("kvm", "host") if acceleration == "kvm" else ("tcg,thread=multi", "max")
    return {
        "BASE": str(image.base),
        "KERNEL": str(image.kernel),
        "INITRD": str(image.initrd),
        "COMMAND_LINE": image.command_line,
        "ACCEL": accel,
        "CPU": cpu,
        "CPUS": str(cpus),
        "MEMORY": memory,
        "DISK": disk,
        "PORT": str(free_port()),
    }


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    image = lab.image(PROFILE)
    acceleration = lab.acceleration()

    def ours() -> Run:
        host = MachineHost(lab.settings.model_copy(update={"use_snapshots": False}))
        wanted = Reservation(
            machine_id=f"vm-{secrets.token_hex(8)}",
            owner_workflow="benchmark",
            owner_run="benchmark",
            cpus=CPUS,
            memory_bytes=parse_size(MEMORY),
            disk_bytes=parse_size(DISK),
            deadline=datetime.now(UTC) + timedelta(hours=1),
        )
        watch = Stopwatch()
        try:
            host.reserve(wanted)
            watch.lap("reserved")
            host.ensure_running(wanted.machine_id, image, lab.report)
            watch.lap("made, booted and entered")
            host.connect(wanted.machine_id).run("true")
            return Run({"first-command": watch.lap("first command")}, watch.laps)
        finally:
            host.destroy(wanted.machine_id)

    def by_hand() -> Run:
        shape = script_environment(image, acceleration, cpus=CPUS, memory=MEMORY, disk=DISK)
        watch = lab.by_hand("boot.sh", shape)
        return Run({"first-command": sum(watch.laps.values())}, watch.laps)

    yield Sides(ours, by_hand)


CASE = Case(
    name="cold-boot",
    title="Cold boot",
    by_hand="ssh-keygen, qemu-img, qemu-system-x86_64, ssh (`benchmarks/by_hand/boot.sh`)",
    figures=(Figure("first-command", "from the image to the end of the first SSH command"),),
    open=_open,
    warm_up=True,
)
