"""What a guest uses, by its own figures every few seconds over the connection that is open anyway; nothing is kept."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import paramiko

from foundation.errors import TaskyardError
from guest.contract import FIGURES_END
from guest.programs import shell_command
from machines.ssh import GuestShell
from workflows.runs.messages import MachineFigures

_END = f"\n{FIGURES_END}\n".encode()
# A guest may write whatever it likes here; this is more than any true block takes.
_MOST_BYTES = 16 * 1024
_READS_MOST = 4


class GuestFigures:
    """The latest figures of one guest. Without an answer there are none, and nothing else suffers."""

    def __init__(self, shell: GuestShell) -> None:
        self._channel: paramiko.Channel | None = None
        with suppress(TaskyardError, OSError, paramiko.SSHException):
            self._channel = shell.stream(shell_command("tell-figures"))
        self._reader = FiguresReader()

    def latest(self) -> MachineFigures | None:
        """The figures of the last sample; never waits."""
        if self._channel is not None:
            with suppress(OSError, paramiko.SSHException):
                # What a flood leaves behind is read, or not, at the next calls.
                for _ in range(_READS_MOST):
                    if not self._channel.recv_ready() or not (data := self._channel.recv(_MOST_BYTES)):
                        break
                    self._reader.feed(data, datetime.now(UTC))
        return self._reader.latest

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._channel is not None:
            self._channel.close()


class FiguresReader:
    """Figures from what the guest writes. The use of its CPUs is that between the last two samples."""

    def __init__(self) -> None:
        self.latest: MachineFigures | None = None
        self._pending = b""
        self._cpu: tuple[int, int] | None = None

    def feed(self, data: bytes, at: datetime) -> None:
        """Take the next bytes. What is no sample is passed over."""
        *blocks, self._pending = (self._pending + data).split(_END)
        self._pending = self._pending[-_MOST_BYTES:]
        for block in blocks:
            with suppress(ValueError, IndexError, KeyError, ArithmeticError):
                self.latest = self._read(block.decode("ascii").strip().splitlines(), at)

    def _read(self, lines: list[str], at: datetime) -> MachineFigures:
        load, cpu, *memory, disk = lines[-5:]
        one, five, fifteen = (float(number) for number in load.split()[:3])
        ticks = [int(number) for number in cpu.split()[1:9]]
        # Idle and waiting for a disk are the fourth and fifth of them.
        busy, total = sum(ticks) - ticks[3] - ticks[4], sum(ticks)
        before, self._cpu = self._cpu, (busy, total)
        spent = total - before[1] if before else total
        used = busy - before[0] if before else busy
        kilobytes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in memory)}
        _, disk_total, disk_used = disk.split()[:3]
        return MachineFigures(
            at=at,
            cpu_percent=round(min(100.0, max(0.0, 100 * used / spent)), 1) if spent > 0 else 0.0,
            memory_used_bytes=(kilobytes["MemTotal"] - kilobytes["MemAvailable"]) * 1024,
            memory_total_bytes=kilobytes["MemTotal"] * 1024,
            disk_used_bytes=int(disk_used) * 1024,
            disk_total_bytes=int(disk_total) * 1024,
            load_avg=(one, five, fifteen),
        )
