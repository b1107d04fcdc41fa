"""Programs of a real guest, unconfigured: what they print towards hosts that its policy names, and towards others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.e2e.network_site import ALLOWED, OTHER, Guest, Origins

PROGRAMS: list[dict[str, str]] = yaml.safe_load((Path(__file__).parent / "programs.yaml").read_text())
Printed = dict[tuple[str, str], Future[str]]

pytestmark = pytest.mark.timeout(1200)
each_program = pytest.mark.parametrize("row", PROGRAMS, ids=[row["name"] for row in PROGRAMS])


@pytest.fixture(scope="module")
def printed(guest: Guest) -> Iterator[Printed]:
    """What they print, by name and host; all of them run beside one another, as many at once as it has processors."""

    def wanted(row: dict[str, str], host: str) -> bool:
        return host == OTHER or guest.has_registries or "registries" not in row

    with ThreadPoolExecutor(2) as pool:
        yield {
            (row["name"], host): pool.submit(guest.as_agent, command(row, host, guest.origins))
            for row in PROGRAMS
            for host in (ALLOWED, OTHER)
            if wanted(row, host)
        }


def command(row: dict[str, str], host: str, servers: Origins) -> str:
    return filled(row.get("other", row["run"]) if host == OTHER else row["run"], host, servers)


def filled(text: str, host: str, servers: Origins) -> str:
    ports = {name: str(getattr(servers, name)) for name in ("http", "https", "line")}
    for name, value in {"host": host, **ports}.items():
        text = text.replace(f"{{{name}}}", value)
    return text


@each_program
def test_program_reaches_what_the_policy_names(guest: Guest, printed: Printed, row: dict[str, str]) -> None:
    if (row["name"], ALLOWED) not in printed:
        pytest.skip("this host does not reach its package registries")
    wanted, found = filled(row["prints"], ALLOWED, guest.origins), printed[row["name"], ALLOWED].result()
    assert wanted in found


@each_program
def test_program_is_told_when_the_policy_does_not_name_the_host(
    guest: Guest, printed: Printed, row: dict[str, str]
) -> None:
    wanted, found = filled(row["refused"], OTHER, guest.origins), printed[row["name"], OTHER].result()
    assert wanted in found


def test_what_was_refused_is_in_the_log_and_what_was_let_through_too(guest: Guest, printed: Printed) -> None:
    for each in printed.values():
        each.result()
    servers = guest.origins
    ports = {servers.http, servers.https, servers.line}
    told = {(each.host, each.port, each.verdict) for each in guest.decisions() if each.port in ports}
    assert told == {(host, port, say) for host, say in ((ALLOWED, "allowed"), (OTHER, "blocked")) for port in ports}
