"""Machines of one size for the cases about machines: Taskyard's own, and those that the scripts restore by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from benchmarks.lab import Lab, free_port
from benchmarks.stopwatch import Stopwatch
from foundation.machine_ids import new_machine_id
from foundation.units import parse_size
from machines.host import MachineHost, Reservation
from machines.images.store import Image

PROFILE = "agentic-dev"


@dataclass(frozen=True)
class Size:
    """What a machine has."""

    cpus: int
    memory: str
    disk: str


USUAL = Size(2, "2G", "8G")
SMALL = Size(1, "512M", "4G")


class Stand:
    """Machines of one size on both sides. ``kept`` is where the scripts find the machine that they restore."""

    def __init__(self, lab: Lab, size: Size, **settings: object) -> None:
        """``settings`` are those in which Taskyard's side differs from the lab's."""
        self.lab = lab
        self.size = size
        self.image = lab.image(PROFILE)
        self.host = MachineHost(lab.settings.model_copy(update=settings))
        self.kept = lab.directory / f"kept-{size.cpus}-{size.memory}"

    def first_command(self) -> tuple[str, Stopwatch]:
        """A new machine, entered, and how long that took; whoever calls destroys it."""
        machine_id = new_machine_id()
        watch = Stopwatch()
        try:
            self.host.reserve(self._reservation(machine_id))
            watch.lap("reserved")
            self.host.ensure_running(machine_id, self.image, self.lab.report)
            watch.lap("made, running and entered")
            self.host.connect(machine_id).run("true")
            watch.lap("first command")
        except BaseException:
            self.host.destroy(machine_id)
            raise
        return machine_id, watch

    @contextmanager
    def machine(self) -> Iterator[str]:
        """A running machine, for the time of the block."""
        machine_id, _ = self.first_command()
        try:
            yield machine_id
        finally:
            self.host.destroy(machine_id)

    def by_hand(self, script: str, **environment: str) -> Stopwatch:
        """Run a script that takes what ``by_hand/machine.sh`` does; it enters machines as root, as Taskyard does."""
        shape = script_environment(self.image, self.lab.acceleration(), **asdict(self.size))
        return self.lab.by_hand(script, shape | {"KEPT": str(self.kept), "GUEST_USER": "root"} | environment)

    def _reservation(self, machine_id: str) -> Reservation:
        return Reservation(
            machine_id=machine_id,
            owner_workflow="benchmark",
            owner_run="benchmark",
            cpus=self.size.cpus,
            memory_bytes=parse_size(self.size.memory),
            disk_bytes=parse_size(self.size.disk),
            deadline=datetime.now(UTC) + timedelta(hours=1),
        )


@contextmanager
def restoring(lab: Lab, size: Size, **settings: object) -> Iterator[Stand]:
    """A stand where both sides have what they restore from, which cases of one size share."""
    stand = Stand(lab, size, **settings)
    if not stand.kept.exists():
        lab.report("booting the machine that is restored by hand")
        stand.by_hand("keep.sh")
    with stand.machine():
        pass  # the first one makes the snapshot
    yield stand


def script_environment(image: Image, acceleration: str, *, cpus: int, memory: str, disk: str) -> dict[str, str]:
    """What ``by_hand/machine.sh`` takes for a machine of this size."""
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
