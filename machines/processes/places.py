"""Where a process of a guest is, by its key: its directories, its unit and the unit's control group."""

from __future__ import annotations

from dataclasses import dataclass

from foundation.service.processes import KEY
from guest.contract import (
    AGENT_KEY,
    AGENT_UNIT,
    PROCESS_UNIT,
    PROCESSES_DIR,
    SESSION_DIR,
    UNIT_CGROUPS,
    VOLATILE_DIR,
    VOLATILE_PROCESSES_DIR,
)


@dataclass(frozen=True)
class Places:
    """The places of one process: ``directory`` on the disk, ``volatile`` in memory."""

    key: str
    directory: str
    volatile: str
    unit: str

    @property
    def cgroup(self) -> str:
        return f"{UNIT_CGROUPS}/{self.unit}.service"

    @property
    def programs(self) -> str:
        return f"{self.directory}/bin"


def places_of(key: str) -> Places:
    """Those of the process with the key. Raises ValueError for what is no key."""
    if not KEY.fullmatch(key):
        raise ValueError(f"not the key of a process: '{key[:80]}'")
    if key == AGENT_KEY:
        return Places(key, SESSION_DIR, VOLATILE_DIR, AGENT_UNIT)
    return _others(key)


#: Stands for all but the agent.
EVERY_OTHER = "*"


def _others(key: str) -> Places:
    return Places(key, f"{PROCESSES_DIR}/{key}", f"{VOLATILE_PROCESSES_DIR}/{key}", f"{PROCESS_UNIT}{key}")


def list_arguments(keys: list[str] | None = None) -> list[str]:
    """What guest/commands/list-processes.pl takes: for the processes with these keys, or for all."""
    if keys is not None:
        named = [places_of(key) for key in keys]
        return [word for each in named for word in (each.key, each.directory, each.volatile, each.cgroup)]
    every = _others(EVERY_OTHER)
    return [*list_arguments([AGENT_KEY]), EVERY_OTHER, PROCESSES_DIR, VOLATILE_PROCESSES_DIR, every.cgroup]
