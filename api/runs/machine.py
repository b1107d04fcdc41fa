"""The machine of a run, for those who want to enter it: where it is, and why there is none to enter."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

from api.machines.hosts import Find, MachineReference
from api.runs.core import Core
from foundation.errors import MachineUnavailable
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState

# A command in a machine is to cost no question to Temporal; what changes meanwhile is noticed by the host.
_KNOWN_SECONDS = 2.0
_KNOWN_MOST = 1024


class RunMachines:
    """Machines by run, as the runs' statuses name them, known for two seconds. For the event loop alone."""

    def __init__(self, core: Core, clock: Callable[[], float] = time.monotonic) -> None:
        self._core = core
        self._clock = clock
        self._known: OrderedDict[str, tuple[float, MachineReference]] = OrderedDict()

    def finder(self, task_id: str) -> Find:
        """What finds the run's machine; it raises TaskNotFound, MachineUnavailable and EngineUnavailable."""

        async def find(anew: bool) -> MachineReference:
            return await self.of(task_id, anew=anew)

        return find

    async def is_gone(self, task_id: str) -> bool:
        """Whether the run has ended and left no machine. Raises TaskNotFound and EngineUnavailable."""
        try:
            await self.of(task_id)
        except MachineUnavailable as error:
            state = error.details.get("task_state")
            return state is not None and TaskState(state).terminal
        return False

    async def of(self, task_id: str, *, anew: bool = False) -> MachineReference:
        """The machine of a run that has one to be entered: it is running, or it failed and its machine is kept."""
        known = self._known.get(task_id)
        if known is not None and not anew and self._clock() - known[0] <= _KNOWN_SECONDS:
            return known[1]
        self._known.pop(task_id, None)
        found = _machine((await self._core.status(task_id)).status)
        self._known[task_id] = (self._clock(), found)
        while len(self._known) > _KNOWN_MOST:
            self._known.popitem(last=False)
        return found


def _machine(status: TaskStatus) -> MachineReference:
    run = f"Task '{status.id}'"
    if status.state.terminal and status.state is not TaskState.FAILED_PRESERVED:
        raise MachineUnavailable(
            f"{run} has ended ({status.state}); its machine is gone.", task_state=status.state.value
        )
    if status.state is TaskState.AWAITING_DECISION:
        raise MachineUnavailable(
            f"{run} has used up its budget: its machine is paused until 'sandbox task continue {status.id}'.",
            task_state=status.state.value,
        )
    if status.vm_name is None or status.host is None:
        raise MachineUnavailable(f"{run} has no machine yet: it is {status.state}.", task_state=status.state.value)
    return MachineReference(status.host, status.vm_name, status.machine_epoch)
