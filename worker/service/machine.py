"""A machine as a request to the host's service has it: let in by its token, of the epoch asked for, and entered."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.requests import HTTPConnection

from foundation.errors import MachineLost, MachineUnavailable, RateLimitExceeded, StaleEpoch
from foundation.service.paths import EPOCH
from foundation.service.tokens import Purpose, check_authorization
from foundation.settings import Settings
from machines.host import MachineHost
from machines.records import MachineRecord
from machines.ssh import GuestShell
from storage.bucket import Bucket
from worker.service.access import AccessLog
from worker.service.keeping import OutputKeeper

_T = TypeVar("_T")
_Arguments = TypeVarTuple("_Arguments")

# Blocking calls into one machine at once: a guest that hangs takes no threads of the others. Those that last as long as
# a client likes have threads of their own.
_THREADS_FOR_EACH = 16


class Threads:
    """How many threads the calls into one machine have."""

    def __init__(self) -> None:
        self.short = CapacityLimiter(_THREADS_FOR_EACH)
        self.lasting = CapacityLimiter(_THREADS_FOR_EACH)
        self._left: set[asyncio.Future[Any]] = set()

    async def abandonable(self, limiter: CapacityLimiter, function: Callable[[], _T]) -> _T:
        """Call it in a thread of the limiter's. Who is cancelled does not wait for it; its thread is counted on."""
        begun = threading.Event()

        def call() -> _T:
            begun.set()
            return function()

        work = asyncio.ensure_future(to_thread.run_sync(call, limiter=limiter))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if begun.is_set():
                # A guest that takes nothing holds its caller's thread for as long as it likes: no more than these.
                self._left.add(work)
                work.add_done_callback(self._forget)
            else:
                work.cancel()
            raise

    def _forget(self, work: asyncio.Future[Any]) -> None:
        self._left.discard(work)
        if not work.cancelled():
            work.exception()


@dataclass(frozen=True)
class Machine:
    """A machine that the request may use. ``shell`` is open."""

    record: MachineRecord
    shell: GuestShell
    threads: Threads
    accesses: AccessLog

    @property
    def id(self) -> str:
        return self.record.id

    async def run(
        self,
        function: Callable[[*_Arguments], _T],
        *arguments: *_Arguments,
        abandoned: bool = False,
        lasting: bool = False,
    ) -> _T:
        """Call what blocks in a thread, of which each machine has a limited number.

        A request that is cancelled waits for the call to end, unless it may be ``abandoned``. A ``lasting`` call, which
        waits for its client, holds up others of its kind alone.
        """
        limiter = self.threads.lasting if lasting else self.threads.short
        if abandoned:
            return await self.threads.abandonable(limiter, partial(function, *arguments))
        return await to_thread.run_sync(function, *arguments, limiter=limiter)

    def note_access(self, kind: str, message: str) -> None:
        """Have the use in the run's log: ``kind`` is one of exec, shell, files and port, ``message`` a sentence."""
        self.accesses.note(self.record, kind, message)


class Share:
    """How many of something each machine has open, ``most`` at once. ``what`` ends the sentence of its refusal."""

    def __init__(self, most: int, what: str) -> None:
        self.most = most
        self._what = what
        self._open = Counter[str]()

    @contextmanager
    def one(self, machine_id: str) -> Iterator[None]:
        """Count one while the block runs. Raises RateLimitExceeded."""
        if self._open[machine_id] >= self.most:
            raise RateLimitExceeded(f"{self.most} {self._what}", limit=self.most)
        self._open[machine_id] += 1
        try:
            yield
        finally:
            self._open[machine_id] -= 1
            if not self._open[machine_id]:
                del self._open[machine_id]


class Admission:
    """Lets requests to the machines of this host in. ``key`` is that of the tokens."""

    def __init__(
        self, settings: Settings, host: MachineHost, bucket: Bucket, accesses: AccessLog, keeper: OutputKeeper
    ) -> None:
        self.settings = settings
        self.host = host
        self.bucket = bucket
        self.accesses = accesses
        self.keeper = keeper
        self._key = settings.service_key()
        self._threads: WeakValueDictionary[str, Threads] = WeakValueDictionary()

    def check_token(self, connection: HTTPConnection, subject: str, purpose: Purpose) -> None:
        """Return when the request brings a token for this. Raises Unauthorized."""
        given = connection.headers.get("authorization")
        check_authorization(self._key, given, host=self.settings.host_name, subject=subject, purpose=purpose)

    async def machine(self, connection: HTTPConnection, purpose: Purpose) -> Machine:
        """The machine of the path (``machine_id``), its guest entered.

        Raises Unauthorized, MachineNotFound, StaleEpoch when it was started anew since, MachineUnavailable while it is
        paused, MachineLost when its process has ended, GuestUnreachable.
        """
        machine_id = str(connection.path_params["machine_id"])
        self.check_token(connection, machine_id, purpose)
        threads = self._threads_of(machine_id)
        record, shell = await to_thread.run_sync(
            self._enter, machine_id, connection.headers.get(EPOCH), limiter=threads.short, abandon_on_cancel=True
        )
        return Machine(record, shell, threads, self.accesses)

    async def look(self, connection: HTTPConnection) -> MachineRecord:
        """The record of the machine of the path, whatever state it is in. Raises as ``machine`` does before it enters.

        A token for any use of the machine would do no harm; the one asked for is that of purpose ``machine``.
        """
        machine_id = str(connection.path_params["machine_id"])
        self.check_token(connection, machine_id, "machine")
        return await to_thread.run_sync(
            self._record, machine_id, connection.headers.get(EPOCH), limiter=self._threads_of(machine_id).short
        )

    def _enter(self, machine_id: str, epoch: str | None) -> tuple[MachineRecord, GuestShell]:
        record = self._record(machine_id, epoch)
        return record, self.host.connect(machine_id)

    def _record(self, machine_id: str, epoch: str | None) -> MachineRecord:
        record = self.host.record(machine_id)
        if epoch and epoch != record.epoch:
            raise StaleEpoch(f"Machine {machine_id} was started anew since it was looked up; look again")
        if record.state == "paused":
            raise MachineUnavailable(f"Machine {machine_id} is paused: nobody can enter it before it goes on")
        if record.state == "destroying" or not self.host.is_alive(machine_id):
            raise MachineLost(f"The process of machine {machine_id} has ended")
        return record

    def _threads_of(self, machine_id: str) -> Threads:
        threads = self._threads.get(machine_id)
        if threads is None:
            threads = self._threads[machine_id] = Threads()
        return threads


def admission_of(connection: HTTPConnection) -> Admission:
    """What lets requests in, for the routes of the service."""
    admission: Admission = connection.app.state.admission
    return admission


async def machine_of(connection: HTTPConnection, purpose: Purpose) -> Machine:
    """``Admission.machine`` for a route: the first thing that each does."""
    return await admission_of(connection).machine(connection, purpose)
