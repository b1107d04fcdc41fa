"""Attempts to get out through the egress proxy, from the table, with a real proxy and an origin of several names."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from tests.egress_site import MACHINE, connect, serving
from tests.escapes.attempts import Attempt, outcome, read_table
from tests.escapes.origin import PLACES, origin
from worker.egress.passage import EgressLimits
from workflows.specs.wire import NetworkPolicy

QUICK = EgressLimits(head_seconds=0.05)
PATIENCE = 30


async def attempted(home, attempt: Attempt) -> tuple[str, ...]:
    """What a guest reads that makes the attempt."""
    reader, writer = await connect(home, MACHINE)
    read = b""
    writer.write(attempt.sent)
    with suppress(ConnectionError):
        async with asyncio.timeout(PATIENCE):
            while (data := await reader.read(65536)) and len(outcome(read := read + data)) < len(attempt.answer):
                pass
            while outcome(read) == ("closed",) and (data := await reader.read(65536)):
                read += data
    writer.close()
    return outcome(read)


@pytest.mark.parametrize("name", [each.name for each in read_table(**PLACES, port="1").attempts])
async def test_attempt_comes_to_what_the_table_says_and_is_told_in_the_log(home, name):
    async with origin() as (reached, port):
        table = read_table(**PLACES, port=str(port))
        attempt = next(each for each in table.attempts if each.name == name)
        limits = QUICK if attempt.slow else None
        async with serving(home, limits, names=table.names, egress_denied_hosts=table.denied) as egress:
            egress.set_policy(MACHINE, NetworkPolicy.model_validate(attempt.policy))
            assert await attempted(home, attempt) == attempt.answer
            told = [each.reason for each in egress.drain(MACHINE, last=True)]
            blocked = egress.use(MACHINE).blocked
    assert any(all(word in reason for word in attempt.log) for reason in told), told
    gets_through = bool({"reached", "redirected"} & set(attempt.answer))
    assert gets_through or attempt.partly or reached.got == b""
    assert blocked == (0 if attempt.answer in {("reached",), ("redirected",)} else 1) or attempt.slow
    for word in attempt.without:
        assert word.encode() not in reached.got.lower()
