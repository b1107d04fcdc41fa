"""The steps that speak to an agent: what it has got is done, whatever becomes of the run's log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest.mock import Mock

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from activities.agent.steps import Agent
from foundation.errors import BucketUnavailable
from foundation.settings import Settings
from machines.ssh import Completed
from storage.bucket import Bucket
from storage.runlog import read_entries
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from workflows.runs.requests import DeliverRequest, SteerRequest

SAID = "Look at the tests too."
SPOKEN: dict[str, Callable[[Agent], None]] = {
    "deliver": lambda agent: agent.deliver_message(
        DeliverRequest(task_id=TASK.id, machine_id="m", message_id="1", text=SAID)
    ),
    "steer": lambda agent: agent.steer_agent(
        SteerRequest(task_id=TASK.id, machine_id="m", control_id="answer-a", line={}, event={"message": SAID})
    ),
}


def an_agent(home: Path, bucket: MemoryBucket, *, heard: bool = True) -> Agent:
    shell = Mock(run=lambda *_words, **_more: Completed(exit_code=0 if heard else 1, stdout=b"", stderr=b""))
    parts: dict[str, Any] = {name: Mock() for name in ("gateway", "networks", "client")}
    return Agent(
        Settings(home=home),
        Mock(connect=lambda _: shell),
        cast("Bucket", bucket),
        loop=Mock(spec=asyncio.AbstractEventLoop),
        **parts,
    )


@pytest.mark.parametrize("spoken", SPOKEN)
@pytest.mark.parametrize(
    ("heard", "stored", "attempt", "fails"),
    [
        (True, True, 1, None),
        (True, False, 1, "bucket_unavailable"),
        (True, False, 5, None),
        (False, True, 5, "guest_unreachable"),
    ],
)
def test_a_step_fails_for_good_only_when_the_agent_has_not_got_it(
    spoken: str, heard: bool, stored: bool, attempt: int, fails: str | None, tmp_path: Path
) -> None:
    bucket = MemoryBucket()

    def away(_action: str, _key: str) -> None:
        raise BucketUnavailable("away")

    if not stored:
        bucket.before = away
    agent = an_agent(tmp_path, bucket, heard=heard)
    environment = ActivityEnvironment()
    environment.info = replace(environment.info, attempt=attempt)
    if fails is None:
        environment.run(SPOKEN[spoken], agent)
    else:
        with pytest.raises(ApplicationError) as failure:
            environment.run(SPOKEN[spoken], agent)
        assert failure.value.type == fails
    bucket.before = lambda _action, _key: None
    assert [SAID in entry.data for entry in read_entries(bucket, TASK)] == [True] * (heard and stored)
