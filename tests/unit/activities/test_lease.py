"""Which host takes a machine, and when none can."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.machine.lease import Leases
from api.environments.core import Environments
from api.runs.admission import Admission
from foundation.errors import InsufficientResources
from foundation.settings import Settings
from machines.host import MachineHost, NoRoom, Reservation
from storage.bucket import Bucket
from storage.hosts import STALE, HostRoom, say_room
from tests.stand_ins.memory_bucket import MemoryBucket
from workflows.messages import Lease
from workflows.runs.requests import ReserveRequest
from workflows.specs.manifest import parse

GIB = 2**30


class SmallHost:
    """A host that never has room for the machine, or always."""

    def __init__(self, *, large_enough: bool = False) -> None:
        self.reserved: list[Reservation] = []
        self._large_enough = large_enough

    def reserve(self, request: Reservation) -> None:
        if not self._large_enough:
            raise InsufficientResources("This host can never give what the manifest asks for")
        self.reserved.append(request)


def a_manifest(cpus: int) -> Any:
    return parse(
        {
            "metadata": {"name": "a"},
            "repository": {"url": "https://git.invalid/a.git", "branch": "main"},
            "claude": {"prompt": "do it"},
            "vm": {"cpus": cpus, "memory": "8G", "disk": "40G"},
        }
    )


def admission_over(bucket: MemoryBucket) -> Admission:
    store = cast("Bucket", bucket)
    return Admission(store, Environments(Settings(), store))


def a_room(host: str, cpus: int, age: timedelta = timedelta()) -> HostRoom:
    return HostRoom(
        host=host,
        at=datetime.now(UTC) - age,
        cpus=cpus,
        memory_bytes=64 * GIB,
        disk_bytes=1024 * GIB,
        free_cpus=0,
        free_memory_bytes=0,
        free_disk_bytes=0,
    )


def ask(bucket: MemoryBucket, host: SmallHost, cpus: int, waited: timedelta) -> Lease:
    """What a host answers a run that has waited for so long."""
    now = datetime.now(UTC)
    leases = Leases(Settings(home="/nowhere", host_name="small"), cast("MachineHost", host), cast("Bucket", bucket))  # type: ignore[arg-type]
    request = ReserveRequest(
        task_id="a",
        workflow_id="task-a",
        run_id="run",
        machine_id="vm-0",
        vm=a_manifest(cpus).vm,
        deadline=now - waited + timedelta(hours=1),
    )
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, scheduled_time=now - waited, activity_type="reserve_host")
    return environment.run(leases.reserve_host, request)


@given(
    others=st.lists(st.tuples(st.integers(1, 64), st.booleans()), max_size=4),
    cpus=st.integers(2, 64),
    # Not at the limit itself: the time that the step takes counts too.
    waited=st.integers(0, 70) | st.integers(81, 600),
)
def test_a_host_that_is_too_small_fails_no_run_that_another_may_hold(
    others: list[tuple[int, bool]], cpus: int, waited: int
) -> None:
    bucket = MemoryBucket()
    say_room(bucket, a_room("small", 1))
    for number, (most, live) in enumerate(others):
        say_room(bucket, a_room(f"host-{number}", most, timedelta() if live else STALE * 2))
    another = any(live and most >= cpus for most, live in others)
    with pytest.raises(ApplicationError) as refused:
        ask(bucket, SmallHost(), cpus, timedelta(seconds=waited))
    # Before every live host must have spoken, none is judged by its silence.
    heard = waited > STALE.total_seconds() + 20
    assert refused.value.non_retryable is (heard and not another)
    if refused.value.non_retryable:
        assert refused.value.type == "insufficient_resources"
        assert refused.value.details[0]["requested_cpus"] == cpus
    else:
        assert refused.value.type == "no_room"


@pytest.mark.parametrize("waited", [timedelta(), timedelta(hours=5)])
def test_the_limits_of_a_machine_are_counted_from_its_lease_on(waited: timedelta) -> None:
    host = SmallHost(large_enough=True)
    lease = ask(MemoryBucket(), host, 1, waited)
    left = host.reserved[0].deadline - datetime.now(UTC)
    assert timedelta(minutes=59) < left < timedelta(minutes=61)
    assert lease.agent_queue != lease.task_queue


async def test_what_is_submitted_before_the_first_host_has_spoken_is_held_to_what_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("api.runs.admission._FIRST_LOOK_SECONDS", 0.0)
    bucket = MemoryBucket()
    admission = admission_over(bucket)
    checked = asyncio.create_task(admission.check(a_manifest(64)))
    await asyncio.sleep(0)
    say_room(bucket, a_room("small", 8))
    with pytest.raises(InsufficientResources) as refused:
        await checked
    assert (refused.value.details["requested_cpus"], refused.value.details["available_cpus"]) == (64, 8)
    await admission.check(a_manifest(8))


async def test_without_any_host_a_submission_is_taken_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.runs.admission.FIRST_SECONDS", 0.05)
    monkeypatch.setattr("api.runs.admission._FIRST_LOOK_SECONDS", 0.01)
    await admission_over(MemoryBucket()).check(a_manifest(64))


def test_a_run_waits_since_it_was_submitted_and_the_first_of_a_line_ask_more_often() -> None:
    class FullHost(SmallHost):
        def __init__(self, older: int) -> None:
            super().__init__()
            self._older = older

        def reserve(self, request: Reservation) -> None:
            self.reserved.append(request)
            raise NoRoom("No room for the machine now", older=self._older)

    delays = []
    for older in (0, 50):
        host = FullHost(older)
        with pytest.raises(ApplicationError) as refused:
            ask(MemoryBucket(), host, 1, timedelta(seconds=30))
        # Without a word of the run's own, it is when it came to the hosts, by Temporal's clock too.
        since = host.reserved[0].since
        assert since is not None
        assert timedelta(seconds=29) < datetime.now(UTC) - since < timedelta(minutes=5)
        delays.append(refused.value.next_retry_delay)
    assert None not in delays
    assert delays[0] < delays[1]
