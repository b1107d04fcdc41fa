"""The whole stack on one host, started and supervised as one: class Stack, and the command `sandbox up`."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, TYPE_CHECKING, Self

from cli.stack.supervisor import Part, PartEvent, Supervisor
from foundation import locks
from foundation.errors import EngineUnavailable, HostNotReady

if TYPE_CHECKING:
    from foundation.settings import Settings

ALL_PARTS = ("temporal", "bucket", "server", "worker")
_SERVICES = ("temporal", "bucket")
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WATCH_SECONDS = 0.2
_ORPHAN_SECONDS = 15.0


@dataclass(frozen=True)
class Holder:
    """The process that runs a stack on a home directory."""

    pid: int
    since: str
    command: str


class Stack:
    """Temporal, the bucket, the API server and the worker of one home directory, as child processes.

    ``parts`` names those to start; a service that the settings place elsewhere is checked instead of started. With
    ``restart`` a part that dies is started again. As a context manager it starts on entry and stops on exit; whatever
    happens to this process, its children end with it. One stack at a time runs on a home.

        with Stack(settings, parts=("temporal", "bucket")) as stack:
            stack.start_part("worker", restart=False)
            os.kill(stack.pids()["worker"], signal.SIGKILL)
            stack.stop_part("worker")
            stack.start_part("worker")
    """

    def __init__(
        self,
        settings: Settings,
        parts: Iterable[str] = ALL_PARTS,
        report: Callable[[PartEvent], None] = lambda _event: None,
        *,
        restart: bool = True,
    ) -> None:
        self.settings = settings
        self._wanted = [name for name in ALL_PARTS if name in set(parts)]
        self._restart = restart
        self._supervisor = Supervisor(settings.logs, report)
        self._lock: IO[str] | None = None
        self._died_before = False

    def start(self) -> None:
        """Start all parts, services first, and return when all answer.

        Raises HostNotReady when another stack holds the home, a port is taken or a part fails (its log's end is in the
        message); EngineUnavailable or BucketUnavailable when a service elsewhere does not answer. Nothing is left then.
        """
        self._take_lock()
        try:
            self._refuse_taken_ports()
            self._check_services_elsewhere()
            services = [self._part(name) for name in self._started_here() if name in _SERVICES]
            processes = [self._part(name) for name in self._started_here() if name not in _SERVICES]
            for group in (services, processes):
                self._supervisor.start(group, restart=self._restart)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop all parts in reverse order and let go of the home. Machines keep running."""
        for group in (("worker", "server"), ("bucket", "temporal")):
            self._supervisor.stop(group)
        if self._lock is not None:
            self._lock.truncate(0)
            self._lock.close()
            self._lock = None

    def watch(self) -> None:
        """Return never; raise HostNotReady when a part was given up."""
        while True:
            self._supervisor.check()
            time.sleep(_WATCH_SECONDS)

    def pids(self) -> dict[str, int]:
        """Process id of each running part."""
        return self._supervisor.pids()

    def start_part(self, name: str, *, restart: bool | None = None) -> int:
        """Start one part and wait until it answers; its process id."""
        self._supervisor.start([self._part(name)], restart=self._restart if restart is None else restart)
        return self.pids()[name]

    def stop_part(self, name: str, stop_signal: signal.Signals = signal.SIGTERM) -> None:
        """Stop one part (also one that has died) and wait for its end."""
        self._supervisor.stop([name], stop_signal)

    def log(self, name: str) -> Path:
        """The part's log file."""
        return self.settings.logs / f"{name}.log"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _started_here(self) -> list[str]:
        elsewhere = {
            "temporal": not self.settings.embedded_temporal,
            "bucket": not self.settings.embedded_bucket,
        }
        return [name for name in self._wanted if not elsewhere.get(name, False)]

    def _part(self, name: str) -> Part:
        from cli.stack.embedded import PARTS

        return PARTS[name](self.settings)

    def _take_lock(self) -> None:
        home = self.settings.home
        self.settings.make_home()
        lock = _lock_file(self.settings).open("a+")
        if not locks.take(lock, patience=0):
            lock.close()
            holder = stack_holder(self.settings)
            who = f"process {holder.pid} ({holder.command}), since {holder.since}" if holder else "another process"
            kill = f" or 'kill {holder.pid}'" if holder else ""
            raise HostNotReady(
                f"A stack already runs on {home}: {who}. Use it as it is, stop it with Ctrl-C in its terminal{kill}, "
                "or set TASKYARD_HOME and the ports to others."
            )
        self._died_before = lock.tell() > 0
        lock.truncate(0)
        words = Path("/proc/self/cmdline").read_bytes().decode(errors="replace").split("\0")
        held = {
            "pid": os.getpid(),
            "since": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            "command": " ".join([Path(words[0]).name, *(Path(word).name for word in words[1:])]).strip(),
        }
        json.dump(held, lock)
        lock.flush()
        self._lock = lock

    def _refuse_taken_ports(self) -> None:
        from cli.stack.embedded import port_conflict

        # A stack that was killed leaves children which are still ending: their ports become free in a moment.
        patience = time.monotonic() + (_ORPHAN_SECONDS if self._died_before else 0)
        while conflicts := [text for name in self._started_here() if (text := port_conflict(self.settings, name))]:
            if time.monotonic() < patience:
                time.sleep(_WATCH_SECONDS)
                continue
            raise HostNotReady("\n".join(conflicts))

    def _check_services_elsewhere(self) -> None:
        if "temporal" in self._wanted and not self.settings.embedded_temporal:
            prepare_engine(self.settings)
        if "bucket" in self._wanted and not self.settings.embedded_bucket:
            from storage.bucket import Bucket

            Bucket(self.settings).ensure()


def stack_holder(settings: Settings) -> Holder | None:
    """The process whose stack runs on the home of the settings; None when none does."""
    path = _lock_file(settings)
    if not path.exists():
        return None
    with path.open("r") as lock:
        if not locks.take(lock, shared=True, patience=0):
            with suppress(ValueError, KeyError, TypeError):
                return Holder(**json.loads(lock.read()))
            return Holder(0, "an unknown time", "unknown")
    return None


def prepare_engine(settings: Settings) -> None:
    """Make sure that Temporal answers and has the search attributes.

    Raises EngineUnavailable when it does not answer, HostNotReady when attributes are missing and may not be added.
    """
    import asyncio

    from cli.stack.search_attributes import register_attributes

    try:
        asyncio.run(asyncio.wait_for(register_attributes(settings), 15))
    except HostNotReady:
        raise
    except Exception as error:
        raise EngineUnavailable(
            f"Temporal at {settings.temporal_target} does not answer ({error}); check TASKYARD_TEMPORAL_ADDRESS, "
            "TASKYARD_TEMPORAL_NAMESPACE, TASKYARD_TEMPORAL_TLS and TASKYARD_TEMPORAL_API_KEY."
        ) from error


def up() -> None:
    """Run the whole stack in the foreground until Ctrl-C.

    Temporal and the S3 server (unless the settings name others), the API server and the worker. State survives: the
    next `sandbox up` goes on where this one stopped.
    """
    from rich.console import Console

    from cli.stack.view import StackView, machines_left
    from foundation.settings import Settings

    console = Console(highlight=False)
    settings = Settings()
    for number in _STOP_SIGNALS:
        signal.signal(number, _interrupt_once)
    with StackView(console) as view:
        stack = Stack(settings, report=view.report)
        began = time.monotonic()
        try:
            stack.start()
            view.settled(settings, time.monotonic() - began)
            stack.watch()
        except KeyboardInterrupt:
            view.stopping()
        finally:
            stack.stop()
    console.print(f"Stopped. State stays in {settings.home}; 'sandbox up' goes on with it.", soft_wrap=True)
    for line in machines_left(settings):
        console.print(line, soft_wrap=True)


def _interrupt_once(_number: int, _frame: FrameType | None) -> None:
    # A second Ctrl-C would break the orderly stop, which is bounded in time anyway.
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _lock_file(settings: Settings) -> Path:
    return settings.home / "stack.lock"
