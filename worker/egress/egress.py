"""The face of the proxy: one for a host, with a policy in force for each machine, what it was asked, and what it said.

It fails closed: a machine without a policy, one whose policy cannot be read, and one that is gone reach nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path

import structlog

from foundation.durable import ORDINARY, write_durably, write_whole
from foundation.errors import MachineError, MachineNotFound
from foundation.machine_ids import MACHINE_ID
from foundation.settings import Settings
from foundation.units import parse_size
from machines.network import EGRESS_SOCKET
from worker.egress.addresses import Dialer, Lookups, Resolver, resolve
from worker.egress.connection import Connection
from worker.egress.decisions import Decision
from worker.egress.guest_http import HttpServer
from worker.egress.injection.injections import Injections
from worker.egress.machine import Machine
from worker.egress.passage import EgressLimits, Passage
from worker.egress.policy import REGISTRIES, PolicyInForce, operator_rules
from worker.egress.refusals import OVERLOADED, Refusal
from worker.egress.registries import registry_rules
from worker.gateway.guest_connection import share
from worker.gateway.handed_connections import HandedConnections
from worker.metrics import WorkerMetrics
from workflows.runs.messages import NetworkUse
from workflows.specs.wire import NetworkPolicy

_POLICY_FILE = "network.json"
_USE_FILE = "network-use.json"
_SAVE_SECONDS = 5.0
_CUT_SECONDS = 5.0

_log = structlog.get_logger(__name__)


class Egress:
    """The proxy of one host, at ``<sockets>/egress.sock``.

    ``set_policy``, ``policy``, ``use`` and ``drain`` work from any thread. ``resolver`` stands in for the host's own.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: WorkerMetrics | None = None,
        limits: EgressLimits | None = None,
        resolver: Resolver = resolve,
    ) -> None:
        self._settings = settings
        self._directory = settings.machines
        self._socket = settings.sockets / EGRESS_SOCKET
        self._metrics = metrics or WorkerMetrics()
        self._limits = limits or EgressLimits()
        self._byte_limit = parse_size(settings.egress_byte_limit)
        self._operator = operator_rules(settings)
        self._lookups = Lookups(resolver)
        self._dialer = Dialer(self._operator, self._lookups, self._limits.resolve_seconds, self._limits.connect_seconds)
        self._server = HttpServer(self._limits)
        self._machines: dict[str, Machine] = {}
        self._lock = threading.Lock()
        self._changing = threading.Lock()
        self._handed: HandedConnections | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        # What this host trusts: its own store, or what SSL_CERT_FILE and SSL_CERT_DIR name.
        self._host_trust: ssl.SSLContext | None = None
        self._saver: asyncio.Task[None] | None = None
        self._registries: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Take connections, on this event loop."""
        # Read once for each proxy, off the loop, for it takes a while; until then no machine is known.
        self._host_trust = await asyncio.to_thread(ssl.create_default_context)
        self._loop = asyncio.get_running_loop()
        self._handed = HandedConnections(self._socket, self._directory, self._take)
        self._handed.start()
        self._saver = asyncio.create_task(self._keep_saving())
        if REGISTRIES in self._settings.egress_allowed_hosts:
            self._registries = asyncio.create_task(self._allow_registries())

    async def stop(self) -> None:
        """Close every connection; what was counted is kept."""
        if self._handed is not None:
            await self._handed.stop()
            self._handed = None
        tasks = set(self._ending)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._registries is not None:
            self._registries.cancel()
        if self._saver is not None:
            self._saver.cancel()
            await asyncio.gather(self._saver, return_exceptions=True)
            self._saver = None
            await asyncio.to_thread(self._save)
        self._loop = None

    # --- from any thread

    def set_policy(self, machine_id: str, policy: NetworkPolicy) -> None:
        """Put the policy in force, for this worker and the next; returns when what it refuses has been cut.

        Raises MachineNotFound for a machine that is not here, and MachineError when the policy cannot be kept, and the
        one before stays in force, or when it is kept and the proxy is too busy to take it now.
        """
        directory = self._machine_directory(machine_id)
        # Of two that come at once, the one that is written last is in force last.
        with self._changing:
            try:
                write_durably(directory / _POLICY_FILE, policy.model_dump_json())
            except OSError as error:
                raise MachineError(
                    f"The network policy of {machine_id} cannot be written ({error.strerror}); free some disk"
                ) from error
            self._put_in_force(machine_id, PolicyInForce(policy, self._operator))

    def _put_in_force(self, machine_id: str, in_force: PolicyInForce) -> None:
        done = threading.Event()

        def change() -> None:
            machine = self._machine(machine_id)
            machine.in_force = in_force
            machine.cut_refused()
            done.set()

        loop = self._loop
        if loop is None:
            return
        if loop is _running_loop():
            change()
            return
        with suppress(RuntimeError):  # the proxy is stopping, and cuts all
            loop.call_soon_threadsafe(change)
            if not done.wait(_CUT_SECONDS):
                raise MachineError(
                    f"The network policy of {machine_id} is kept, and the egress proxy has not taken it in time; "
                    "set it again"
                )

    def policy(self, machine_id: str) -> NetworkPolicy | None:
        """The policy in force; None when the machine has none, or is not here, and so reaches nothing."""
        try:
            return NetworkPolicy.model_validate_json((self._machine_directory(machine_id) / _POLICY_FILE).read_bytes())
        except (FileNotFoundError, MachineNotFound):
            return None
        except (OSError, ValueError) as error:
            _log.warning("a network policy cannot be read: its machine reaches nothing", error=str(error))
            return None

    def use(self, machine_id: str) -> NetworkUse:
        """What the machine has asked for so far; nothing for one that is gone."""
        with self._lock:
            machine = self._machines.get(machine_id)
        return machine.traffic.use() if machine else self._stored_use(machine_id)

    def drain(self, machine_id: str, *, last: bool = False) -> list[Decision]:
        """The decisions since the last call, for the log. ``last``: the rest of them, as no call is to follow."""
        with self._lock:
            machine = self._machines.get(machine_id)
        return machine.traffic.drain(last=last) if machine else []

    # --- on the loop

    async def _take(self, guest: socket.socket, machine_id: str) -> None:
        machine = self._machine(machine_id)
        counts = [len(each.connections) for each in self._machines.values() if each.connections]
        if len(machine.connections) >= share(self._limits.for_each_machine, counts):
            refusal = Refusal(OVERLOADED, "this machine has too many connections open", "blocked")
            machine.note(refusal)
            with guest, suppress(OSError):
                guest.send(refusal.answer())
            return
        passage = Passage(machine)
        task = asyncio.create_task(self._serve(passage, guest))
        machine.connections[passage] = task
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _serve(self, passage: Passage, guest: socket.socket) -> None:
        try:
            await Connection(passage, guest, self._limits, self._server).serve()
        except Exception as error:  # noqa: BLE001 -- whatever one connection ends in, it is no other's
            _log.exception("a guest's connection ended in a fault", machine=passage.machine.id, error=str(error))
        finally:
            passage.machine.connections.pop(passage, None)
            guest.close()

    def _machine(self, machine_id: str) -> Machine:
        assert self._host_trust is not None  # noqa: S101 -- the proxy has started
        with self._lock:
            machine = self._machines.get(machine_id)
            if machine is None:
                in_force = PolicyInForce(self.policy(machine_id), self._operator)
                machine = Machine(
                    machine_id,
                    self._dialer,
                    self._byte_limit,
                    in_force,
                    self._metrics,
                    Injections(self._settings, machine_id, self._host_trust),
                )
                machine.restore(self._stored_use(machine_id))
                self._machines[machine_id] = machine
        return machine

    async def _allow_registries(self) -> None:
        """Find out what the word stands for; until then, and when that fails, it names nothing."""
        self._operator.allowed += await asyncio.to_thread(registry_rules, self._settings)

    async def _keep_saving(self) -> None:
        while True:
            await asyncio.sleep(_SAVE_SECONDS)
            await asyncio.to_thread(self._save)
            self._forget_gone()

    def _forget_gone(self) -> None:
        with self._lock:
            gone = [each for each in self._machines.values() if not (self._directory / each.id).is_dir()]
            for machine in gone:
                del self._machines[machine.id]
        for machine in gone:
            self._lookups.forget(machine.id)
            for task in machine.connections.values():
                task.cancel()

    # --- files

    def _save(self) -> None:
        """Write down what has been counted since the last time. A crash takes the counts of the last seconds along."""
        with self._lock:
            changed = [each for each in self._machines.values() if each.traffic.changed]
        for machine in changed:
            machine.traffic.changed = False
            machine.tell_metrics()
            try:
                write_whole(self._directory / machine.id / _USE_FILE, machine.traffic.use().model_dump_json(), ORDINARY)
            except OSError as error:
                # The machine is gone, or the disk is full: what was let through is worth more than its count.
                machine.traffic.changed = True
                _log.warning("what a machine asked for was not written down", machine=machine.id, error=str(error))

    def _stored_use(self, machine_id: str) -> NetworkUse:
        with suppress(OSError, ValueError, MachineNotFound):
            stored = json.loads((self._machine_directory(machine_id) / _USE_FILE).read_bytes())
            return NetworkUse.model_validate(stored)
        return NetworkUse()

    def _machine_directory(self, machine_id: str) -> Path:
        directory = self._directory / machine_id
        if not MACHINE_ID.fullmatch(machine_id) or not directory.is_dir():
            raise MachineNotFound(f"No machine {machine_id} is on this host")
        return directory


def _running_loop() -> asyncio.AbstractEventLoop | None:
    with suppress(RuntimeError):
        return asyncio.get_running_loop()
    return None
