"""The place where cases run: a home of its own, scripts run to their end, and nothing left of either afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.stopwatch import Stopwatch
from foundation.errors import TaskyardError
from foundation.settings import Settings
from machines.host import MachineHost
from machines.hypervisor.acceleration import usable_acceleration
from machines.images.build import remove_build_directory
from machines.images.store import Image, build_image

Report = Callable[[str], None]

_SCRIPTS = Path(__file__).parent / "by_hand"
_POLL_SECONDS = 0.1
_SCRIPT_LIMIT_SECONDS = 1800.0
_GRACE_SECONDS = 5.0
_TAIL_LINES = 20
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FIRST_PORT, _LAST_PORT = 20000, 31000
_PORT_COUNT = 16


class Lab:
    """Settings of a stack of its own, below a new directory; the guest images are those of this host's home.

    Leaving the context ends whatever still runs and removes the directory, also when it is left by Ctrl-C.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        # The cases play a scenario: no key of this host may be spent, here or in a child process.
        for name in ("ANTHROPIC_API_KEY", "TASKYARD_ANTHROPIC_API_KEY"):
            os.environ.pop(name, None)
        self.own = Settings()
        self.directory = Path(tempfile.mkdtemp(prefix="taskyard-bench-"))
        first = _neighbouring_ports(_PORT_COUNT)
        self.settings = self.own.model_copy(
            update={
                "home": self.directory / "home",
                "image_dir": self.own.images,
                "api_port": first,
                "temporal_address": None,
                "temporal_port": first + 1,
                "temporal_ui_port": first + 2,
                "ws_port": first + 3,
                "worker_metrics_port": first + 14,
                "s3_endpoint": None,
                "s3_port": first + 4,
                "scenario": None,
            }
        )
        self._script: subprocess.Popen[bytes] | None = None

    def image(self, profile: str) -> Image:
        """The guest image of a profile, built if this host does not have it."""
        return build_image(self.settings, profile, self.report)

    def acceleration(self) -> str:
        """What machines run with here, probed once."""
        return usable_acceleration(self.settings, self.report)

    def by_hand(self, script: str, environment: Mapping[str, str]) -> Stopwatch:
        """Run a script of ``by_hand/`` in an empty directory; its marks as laps. Raises TaskyardError when it fails.

        A mark is a line in the file ``$MARKS``: a name and a unix time, the end of the lap of that name.
        """
        with self._place() as place:
            work, marks, log = place / "work", place / "marks", place / "log"
            work.mkdir()
            marks.touch()
            watch = Stopwatch()
            with log.open("wb") as output:
                # A session of its own: whatever the script has started ends with its process group.
                self._script = subprocess.Popen(
                    ["bash", str(_SCRIPTS / script)],
                    cwd=work,
                    env=_environment() | {"MARKS": str(marks)} | dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            try:
                self._follow(self._script, marks)
            finally:
                code = self._end_script()
            if code != 0:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
                raise TaskyardError(f"The script {script} ended with exit code {code} and these lines:\n{tail}")
            for line in marks.read_text().splitlines():
                name, at = line.split()
                watch.lap(name.replace("_", " "), float(at))
            return watch

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_script()
        host = MachineHost(self.settings)
        for record in host.records():
            host.destroy(record.id)
        shutil.rmtree(self.settings.sockets, ignore_errors=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    @contextlib.contextmanager
    def _place(self) -> Iterator[Path]:
        place = Path(tempfile.mkdtemp(prefix="by-hand-", dir=self.directory))
        try:
            yield place
        finally:
            remove_build_directory(place / "work")
            shutil.rmtree(place, ignore_errors=True)

    def _follow(self, process: subprocess.Popen[bytes], marks: Path) -> None:
        deadline = time.monotonic() + _SCRIPT_LIMIT_SECONDS
        seen = 0
        while not _has_ended(process):
            time.sleep(_POLL_SECONDS)
            lines = marks.read_text().splitlines()
            if len(lines) > seen:
                seen = len(lines)
                self.report(lines[-1].split()[0].replace("_", " "))
            if time.monotonic() > deadline:
                raise TaskyardError(f"A script did not end within {_SCRIPT_LIMIT_SECONDS:g} s")

    def _end_script(self) -> int:
        """End the script and what it has started, also what is left of its group after its own end; its exit code."""
        script, self._script = self._script, None
        if script is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGTERM)
        patience = time.monotonic() + _GRACE_SECONDS
        while not _has_ended(script) and time.monotonic() < patience:
            time.sleep(_POLL_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(script.pid, signal.SIGKILL)
        return script.wait()


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has, without reaping it: until then its process group cannot become another's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def free_port() -> int:
    """A port of loopback that is free now; the kernel gives one that it will not give again soon."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _neighbouring_ports(count: int) -> int:
    """The first of as many free ports of loopback, below those that the kernel gives."""
    starts = list(range(_FIRST_PORT, _LAST_PORT, count))
    random.shuffle(starts)
    for first in starts:
        with contextlib.ExitStack() as held:
            try:
                for port in range(first, first + count):
                    held.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise TaskyardError(f"No {count} neighbouring ports are free between {_FIRST_PORT} and {_LAST_PORT}")


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"}
