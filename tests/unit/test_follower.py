"""What the follower of an agent keeps, and when it ends the agent itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import cast

import pytest

from activities.agent_output import AgentOutput
from activities.agent_session import AgentSession, Chunk, Ended
from activities.follower import Follower
from storage.redaction import Redactor
from storage.runlog import RunLogWriter
from storage.segments import GuestStream
from tests.memory_bucket import TASK, MemoryBucket, stored

LINE = b"x" * 99 + b"\n"


class Endless:
    """An agent that writes line after line, until it is killed and beyond."""

    def __init__(self) -> None:
        self.stopped: list[bool] = []

    def stop(self, *, force: bool) -> None:
        self.stopped.append(force)

    def follow(self, offsets: Mapping[GuestStream, int]) -> Iterator[Chunk | Ended | None]:
        position = offsets.get("stdout", 0)
        yield None
        while position < 100 * len(LINE):
            yield Chunk("stdout", position, LINE)
            position += len(LINE)
        yield Ended(0)


def follow(bucket: MemoryBucket, agent: Endless, most_bytes: int) -> tuple[Ended, Follower]:
    writer = RunLogWriter(bucket, TASK, Redactor({}))
    follower = Follower(
        writer, AgentOutput(), timedelta(hours=1), most_bytes, on_turn_end=lambda _: False, on_tick=lambda: None
    )
    return follower.follow(cast("AgentSession", agent), writer.resume()), follower


def test_an_agent_that_writes_without_end_is_killed_and_its_log_stays_within_the_limit() -> None:
    bucket, agent = MemoryBucket(), Endless()
    ended, follower = follow(bucket, agent, 1000)
    assert (ended.exit_code, follower.overflowed, agent.stopped) == (137, True, [True])
    assert len(stored(bucket, "stdout")) == 1000 + len(LINE)
    # A further attempt, on another worker, takes nothing more.
    ended, follower = follow(bucket, agent, 1000)
    assert (ended.exit_code, follower.overflowed) == (137, True)
    assert len(stored(bucket, "stdout")) == 1000 + len(LINE)


@pytest.mark.parametrize("most", [100 * len(LINE), 10**9])
def test_an_agent_within_the_limit_is_left_alone(most: int) -> None:
    bucket, agent = MemoryBucket(), Endless()
    ended, follower = follow(bucket, agent, most)
    assert (ended.exit_code, follower.overflowed, agent.stopped) == (0, False, [])
    assert len(stored(bucket, "stdout")) == 100 * len(LINE)
