"""A reader of a followed log who leaves: what it is read from is let go of at once, not when memory is tidied up."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from api.http.streams import LogResponse
from api.native.log_formats import JsonLines, written
from api.runs.core import Core
from api.runs.log import LogQuery
from storage.bucket import Bucket
from storage.follower import RunLogFollowers
from tests.stand_ins.memory_bucket import TASK, MemoryBucket, fill


async def left_while(sending: bool, bucket: MemoryBucket) -> RunLogFollowers:
    """The followers after a client has left, while the server was sending to it or waiting for the run."""
    followers = RunLogFollowers(bucket, poll_seconds=0.001)
    at_rest = asyncio.Event()

    async def send(message: dict[str, Any]) -> None:
        if message.get("body", b"").count(b'"id": 5,') or (sending and message.get("body")):
            at_rest.set()
        if sending and message.get("body"):
            await asyncio.Event().wait()

    query = LogQuery(follow=True)
    content = written(query, JsonLines(), TASK.id, cast("Core", None), cast("Bucket", bucket), followers)
    answering = asyncio.create_task(LogResponse(content, "text/plain").stream_response(cast("Any", send)))
    await at_rest.wait()
    assert followers.followed == {TASK: 1}
    answering.cancel()
    await asyncio.wait({answering})
    return followers


@pytest.mark.parametrize("sending", [True, False])
async def test_a_client_that_leaves_releases_its_follower_at_once(sending: bool) -> None:
    bucket = MemoryBucket()
    fill(bucket, 5)
    followers = await left_while(sending, bucket)
    assert followers.followed == {}
    assert followers._followers == {}
