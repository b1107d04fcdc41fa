"""Detached processes through the host's service: real routes and sockets over a guest that is a directory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from foundation.errors import Conflict, InvalidBody, NotFound, RateLimitExceeded, SessionClosed, TaskyardError
from tests.stack_settings import isolated_settings
from tests.stand_ins.host_site import MACHINE, HostSite, host_site
from tests.stand_ins.local_guest import LocalGuest
from tests.waiting import until
from worker.service import processes

KEY = "work"


class Machine:
    """What is asked of the machine's processes."""

    def __init__(self, site: HostSite) -> None:
        self.site = site

    async def asked(self, method: str, *parts: str, content: bytes | None = None, **params: Any) -> Any:
        query = {name: str(value) for name, value in params.items()}
        path = ("processes", *parts)
        async with self.site.hosts.asked(
            self.site.found(), "processes", method, path, params=query, content=content
        ) as response:
            body = await response.aread()
        return json.loads(body) if "json" in response.headers.get("content-type", "") else body

    async def start(self, **spec: Any) -> Any:
        spec = {"key": KEY, "argv": ["agent"], "directory": "/"} | spec
        return await self.asked("POST", content=json.dumps(spec).encode())


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    guest = LocalGuest(tmp_path / "guest", KEY)
    async with host_site(isolated_settings(tmp_path / "home")) as site:
        site.machines.shells[MACHINE] = guest
        yield Machine(site)
    guest.close()


def program(machine: Machine, text: str) -> list[str]:
    guest: LocalGuest = machine.site.machines.shells[MACHINE]
    return guest.program(text)


async def test_a_process_is_started_once_fed_by_offset_and_read_by_offset(machine: Machine) -> None:
    argv = program(machine, 'echo "A=$A"; cat; echo bad >&2; exit 3')
    spec: dict[str, Any] = {"argv": argv, "environment": {"A": "b c"}, "stdin": True}
    assert (await machine.start(**spec))["state"] == "running"
    again = await machine.start(**spec)
    assert (again["key"], again["state"]) == (KEY, "running")
    with pytest.raises(Conflict, match="Another"):
        await machine.start(**spec | {"environment": {"A": "other"}})
    data = bytes(range(256)) * 10_000
    following = asyncio.create_task(machine.asked("GET", KEY, "output", follow="true"))
    assert await machine.asked("PUT", KEY, "stdin", content=data[:1_500_000]) == {"bytes": 1_500_000}
    fed = {"offset": 1_000_000, "close": "true"}
    assert await machine.asked("PUT", KEY, "stdin", content=data[1_000_000:], **fed) == {"bytes": len(data)}
    assert await machine.asked("PUT", KEY, "stdin", content=data[1_000_000:], **fed) == {"bytes": len(data)}
    with pytest.raises(SessionClosed):
        await machine.asked("PUT", KEY, "stdin", content=b"more", offset=len(data))
    assert await following == b"A=b c\n" + data
    record = await machine.asked("GET", KEY, wait=20)
    assert (record["state"], record["exit_code"], record["stdout_bytes"]) == ("exited", 3, len(data) + 6)
    assert await machine.asked("GET", KEY, "output", offset=len(data)) == data[-6:]
    assert await machine.asked("GET", KEY, "output", stream="stderr", follow="true") == b"bad\n"
    assert [each["key"] for each in (await machine.asked("GET"))["processes"]] == [KEY]


async def test_a_wait_ends_and_followers_are_limited(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    await machine.start(argv=program(machine, "echo begun; while :; do sleep 0.05; done"))
    assert (await machine.asked("GET", KEY, wait=0.2))["state"] == "running"
    monkeypatch.setattr(processes._FOLLOWERS, "most", 1)
    waiting = asyncio.create_task(machine.asked("GET", KEY, wait=30))
    await until(lambda: bool(processes._FOLLOWERS._open), "a follower")
    with pytest.raises(RateLimitExceeded):
        await machine.asked("GET", KEY, "output", follow="true")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # Who has left is followed for no more.
    await until(lambda: not processes._FOLLOWERS._open, "the end of it")


REFUSED: list[tuple[dict[str, Any], type[TaskyardError]]] = [
    ({"key": "agent"}, Conflict),
    ({"key": "../x"}, InvalidBody),
    ({"shell": "true"}, InvalidBody),
    ({"argv": None}, InvalidBody),
    ({"environment": {"A=": "b"}}, InvalidBody),
    ({"limits": {"timeout": -1}}, InvalidBody),
    ({"terminal": {}}, TaskyardError),
]


@pytest.mark.parametrize(("fields", "error"), REFUSED)
async def test_what_cannot_be_started_is_refused(
    machine: Machine, fields: dict[str, Any], error: type[TaskyardError]
) -> None:
    with pytest.raises(error):
        await machine.start(**fields)
    assert await machine.asked("GET") == {"processes": []}


@pytest.mark.parametrize(
    ("method", "parts"), [("GET", (KEY,)), ("GET", (KEY, "output")), ("GET", ("ü",)), ("GET", ("-", "output"))]
)
async def test_of_what_never_was_nothing_is_known(machine: Machine, method: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(NotFound):
        await machine.asked(method, *parts)
