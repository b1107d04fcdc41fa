"""The ways into the machines of this host: one connection for each machine and process, and a command for people."""

from __future__ import annotations

import threading
from collections.abc import Callable

from foundation.errors import GuestUnreachable
from guest.contract import AGENT_USER
from machines.identity import CLIENT_KEY, KNOWN_HOSTS
from machines.paths import MachinePaths
from machines.records import MachineRecord
from machines.ssh import GuestAddress, GuestShell


class Entrances:
    """The connections that this process has into its host's machines, opened when they are used. Thread-safe.

    ``read`` gives a machine's record, and raises MachineNotFound; ``is_alive`` whether its process runs.
    """

    def __init__(
        self,
        read: Callable[[str], MachineRecord],
        paths: Callable[[str], MachinePaths],
        is_alive: Callable[[str], bool],
    ) -> None:
        self._read = read
        self._paths = paths
        self._is_alive = is_alive
        self._shells: dict[str, GuestShell] = {}
        self._lock = threading.Lock()

    def shell(self, machine_id: str) -> GuestShell:
        """The machine's, the same for every caller until it is forgotten."""
        with self._lock:
            if machine_id not in self._shells:
                self._shells[machine_id] = GuestShell(
                    lambda: self._address(machine_id), lambda: self._is_alive(machine_id)
                )
            return self._shells[machine_id]

    def forget(self, machine_id: str) -> None:
        """Close the machine's connection, if there is one; whoever asks again gets a new one."""
        with self._lock:
            shell = self._shells.pop(machine_id, None)
        if shell is not None:
            shell.close()

    def ssh_arguments(self, machine_id: str) -> list[str]:
        """The command with which a person enters the machine. Raises GuestUnreachable while it is starting."""
        address = self._address(machine_id)
        known_hosts = str(address.known_hosts)
        options = {
            # ssh splits this one at blanks by itself
            "UserKnownHostsFile": f'"{known_hosts}"' if " " in known_hosts else known_hosts,
            "HostKeyAlias": machine_id,
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
        }
        named = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        key, port = str(address.client_key), str(address.port)
        return ["ssh", "-i", key, "-p", port, *named, f"{AGENT_USER}@127.0.0.1"]

    def _address(self, machine_id: str) -> GuestAddress:
        record = self._read(machine_id)
        if record.ssh_port is None:
            raise GuestUnreachable(f"Machine {machine_id} is still starting; try again when it is up")
        directory = self._paths(machine_id).directory
        return GuestAddress(machine_id, record.ssh_port, directory / CLIENT_KEY, directory / KNOWN_HOSTS)
