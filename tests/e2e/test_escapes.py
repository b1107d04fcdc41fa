"""Attempts of root in a real guest to get out: by the proxy, from one table, and by every other way, from another."""

from __future__ import annotations

import asyncio
import base64
import inspect
import json
import shlex
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.conftest import until
from tests.e2e.network_site import POLICY, Guest
from tests.escapes import attempts
from tests.escapes.attempts import Attempt, outcome, read_table
from tests.escapes.origin import PLACES, Origin, origin
from workflows.specs.wire import NetworkPolicy

TABLE: dict[str, Any] = yaml.safe_load((Path(attempts.__file__).parent / "root.yaml").read_text())
FLUSHED = "trap 'nft -f /usr/local/lib/taskyard/redirect.nft' EXIT; nft flush ruleset\n"

pytestmark = pytest.mark.timeout(1200)


class Loopback:
    """Servers at the host's loopback, by UDP and TCP, that nothing is to reach."""

    def __init__(self) -> None:
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.connections = socket.socket()
        for server in (self.datagrams, self.connections):
            server.bind(("127.0.0.1", 0))
            server.settimeout(0)
        self.connections.listen()
        self.udp, self.tcp = (server.getsockname()[1] for server in (self.datagrams, self.connections))

    def was_reached(self) -> bool:
        for take in (self.datagrams.recv, self.connections.accept):
            try:
                take(*([1] if take == self.datagrams.recv else []))
            except BlockingIOError:
                continue
            return True
        return False


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    servers = Loopback()
    with servers.datagrams, servers.connections:
        yield servers


@pytest.mark.parametrize("row", TABLE["rows"], ids=[row["name"] for row in TABLE["rows"]])
def test_what_a_guest_sends_goes_nowhere_and_is_told(guest: Guest, loopback: Loopback, row: dict[str, Any]) -> None:
    def filled(text: str) -> str:
        return text.replace("{udp}", str(loopback.udp)).replace("{tcp}", str(loopback.tcp))

    rules = FLUSHED if row.get("flushed") else ""
    printed = guest.as_root(filled(f"{rules}{TABLE['prelude']}\n{row['run']}"))
    assert row["prints"] in printed
    assert not loopback.was_reached()
    if words := [filled(word) for word in row.get("log", [])]:
        told: list[str] = []

        def is_told() -> bool:
            told[:] = [each.reason for each in guest.decisions() if each.verdict == "blocked"]
            return any(all(word in reason for word in words) for reason in told)

        with suppress(pytest.fail.Exception):
            until(is_told, 10, every=0.05)
        assert is_told(), told


# What a guest reads of the proxy, read there as the host reads it.
_IN_GUEST = """
import base64, json, re, socket, sys
GREETING, LOCATION, _ESTABLISHED = {greeting!r}, {location!r}, re.compile({established!r})
{outcome}
results = []
for sent, wanted in json.load(sys.stdin):
    connection = socket.create_connection(("10.0.2.101", 3128))
    connection.settimeout(20)
    read = b""
    try:
        connection.sendall(base64.b64decode(sent))
        while len(outcome(read)) < wanted or outcome(read) == ("closed",):
            data = connection.recv(65536)
            if not data:
                break
            read += data
    except OSError:
        pass
    connection.close()
    results.append(outcome(read))
print(json.dumps(results))
"""


def test_what_a_guest_sends_to_the_proxy_comes_to_what_the_table_says(guest: Guest) -> None:
    script = _IN_GUEST.format(
        greeting=attempts.GREETING,
        location=attempts.LOCATION,
        established=attempts._ESTABLISHED.pattern,
        outcome=inspect.getsource(outcome).replace("-> tuple[str, ...]", ""),
    )
    with origin_of(guest) as (reached, port):
        table = [each for each in read_table(**PLACES, port=str(port)).attempts if not each.slow]
        found, wanted = {}, {}
        for (policy, passes), rows in groupby(sorted(table, key=kind), key=kind):
            tried = list(rows)
            guest.egress.set_policy(guest.id, NetworkPolicy.model_validate(json.loads(policy)))
            before, got = guest.egress.use(guest.id).blocked, reached.got
            sent = json.dumps([[base64.b64encode(each.sent).decode(), len(each.answer)] for each in tried])
            said = guest.as_root(f"python3 -c {shlex.quote(script)}", sent.encode())
            found |= {each.name: tuple(read) for each, read in zip(tried, json.loads(said), strict=True)}
            wanted |= {each.name: each.answer for each in tried}
            if not passes:
                assert reached.got == got
            assert guest.egress.use(guest.id).blocked - before == sum(
                each.answer not in {("reached",), ("redirected",)} for each in tried
            )
    guest.egress.set_policy(guest.id, POLICY)
    assert found == wanted


def kind(attempt: Attempt) -> tuple[str, bool]:
    """Its policy, and whether a part of it reaches the origin."""
    passes = attempt.partly or bool({"reached", "redirected"} & set(attempt.answer))
    return json.dumps(attempt.policy, sort_keys=True), passes


@contextmanager
def origin_of(guest: Guest) -> Iterator[tuple[Origin, int]]:
    entered = origin()
    yield asyncio.run_coroutine_threadsafe(entered.__aenter__(), guest.loop).result(30)
    asyncio.run_coroutine_threadsafe(entered.__aexit__(None, None, None), guest.loop).result(30)
