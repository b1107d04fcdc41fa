"""What a run's machine may reach and has asked for, whoever asks: as it stands, and after a change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from api.runs.core import Core, TaskView
from foundation.faults import Fault
from workflows.runs.messages import NetworkChange, NetworkUse
from workflows.specs.wire import NetworkMode, NetworkPolicy


@dataclass(frozen=True)
class RunNetwork:
    """The policy of a run and what its guest asked for; the latter is None before anything is known of it.

    A policy that is not ``in_force`` is one that the machine will start with, or that its host has not taken.
    """

    policy: NetworkPolicy
    in_force: bool
    use: NetworkUse | None
    live: bool


async def network(core: Core, task_id: str) -> RunNetwork:
    """The network of a run as it stands, or as it was at the run's end. Raises TaskNotFound."""
    return _network_of(await core.status(task_id, definition=True))


async def change_network(core: Core, task_id: str, change: NetworkChange) -> tuple[RunNetwork, list[Fault]]:
    """The network of a run once the change is in force, or kept for its machine; and what of the change is in vain.

    Raises TaskNotFound, TaskAlreadyTerminal, Conflict for what does not fit the policy there is, InvalidParameter,
    RateLimitExceeded, TimedOut when the run's host does not answer at once, ServiceUnavailable.
    """
    standing = await core.change_network(task_id, change)
    view = await core.status(task_id, definition=True)
    changed = RunNetwork(standing.policy, standing.in_force, view.status.network, live=view.live)
    return changed, list(_in_vain(change, standing.policy))


def _network_of(view: TaskView) -> RunNetwork:
    status = view.status
    # Runs of earlier versions do not say it.
    of_manifest = status.manifest.vm.network() if status.manifest else NetworkPolicy()
    policy = status.network_policy or of_manifest
    return RunNetwork(policy, status.network_in_force, status.network, live=view.live)


def _in_vain(change: NetworkChange, policy: NetworkPolicy) -> Iterator[Fault]:
    if change.allow and policy.mode is not NetworkMode.OUTBOUND:
        yield Fault("allow", f"opens nothing: the mode is '{policy.mode}', and only 'outbound' reads it", "unused")
