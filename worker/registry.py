"""What this host's worker can do: the workflows, and the steps by the task queue that their table names for each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from temporalio.client import Client

from activities.agent.steps import Agent
from activities.artifacts.steps import Artifacts
from activities.finish import Finish
from activities.machine.lease import Leases
from activities.machine.network import Egress, MachineNetworks, NetworkChanges
from activities.machine.pausing import Sleep
from activities.machine.provisioning import Machines
from activities.machine.secrets import Secrets
from activities.push.steps import Pushes
from activities.repository.staging import Repositories
from foundation.settings import Settings
from machines.host import MachineHost
from storage.bucket import Bucket
from worker.gateway.model_gateway import Gateway
from worker.metrics import WorkerMetrics
from workflows import steps
from workflows.names import LOCAL_RUNS, PARENTS, RUNS, WorkflowKind
from workflows.parents.workflow import ParentWorkflow
from workflows.runs.workflow import TaskWorkflow
from workflows.steps import Queue
from workflows.told.workflow import LocalRunWorkflow

Activity = Callable[..., Any]

WORKFLOWS: dict[WorkflowKind, type] = {RUNS: TaskWorkflow, PARENTS: ParentWorkflow, LOCAL_RUNS: LocalRunWorkflow}


@dataclass(frozen=True)
class Placed:
    """Activities by queue: what any host can do, what only the host of a lease can, and the agents that it follows."""

    shared: list[Activity] = field(default_factory=list)
    host: list[Activity] = field(default_factory=list)
    agents: list[Activity] = field(default_factory=list)


def implementations(
    settings: Settings,
    client: Client,
    host: MachineHost,
    bucket: Bucket,
    gateway: Gateway,
    egress: Egress,
    metrics: WorkerMetrics,
) -> dict[str, Activity]:
    """What carries out each step, by the step's name."""
    leases = Leases(settings, host, bucket)
    networks = MachineNetworks(egress)
    agent = Agent(settings, host, bucket, gateway, networks, client, asyncio.get_running_loop(), metrics.take_result)
    machines = Machines(settings, host, bucket, networks)
    sleep = Sleep(host, bucket, gateway)
    finish = Finish(bucket)
    return {
        steps.RESERVE.name: leases.reserve_host,
        steps.STAGE.name: Repositories(settings, bucket, machines.start_early).stage_repository,
        steps.PROVISION.name: machines.provision_machine,
        steps.SECRETS.name: Secrets(settings, host, bucket).inject_secrets,
        steps.RUN_AGENT.name: agent.run_agent,
        steps.DELIVER.name: agent.deliver_message,
        steps.STEER.name: agent.steer_agent,
        steps.CLOSE.name: agent.close_session,
        steps.STOP_AGENT.name: agent.stop_agent,
        steps.NETWORK.name: NetworkChanges(networks, bucket).set_network,
        steps.PAUSE.name: sleep.pause_machine,
        steps.RESUME.name: sleep.resume_machine,
        steps.COLLECT.name: Artifacts(settings, host, bucket, networks).collect_artifacts,
        steps.PUSH.name: Pushes(settings, bucket).push_changes,
        steps.RELEASE.name: leases.release_machine,
        steps.FINISH.name: finish.finish_run,
        steps.FINISH_LOCAL.name: finish.finish_local_run,
    }


def placed(activities: Mapping[str, Activity]) -> Placed:
    """Activities, by the names of their steps, on the queues of their steps. Raises KeyError for one without a row."""
    found = Placed()
    for name, activity in activities.items():
        step = steps.BY_NAME[name]
        if step.queue is Queue.SHARED:
            found.shared.append(activity)
            continue
        # A run whose host was leased by an earlier version knows of one queue of the host, on which all is done.
        found.host.append(activity)
        if step.follows:
            found.agents.append(activity)
    return found
