"""Properties of what the egress proxy reads and decides by: addresses, first messages of TLS, targets, counts."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address

import httpcore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.escapes.attempts import client_hello as made_hello
from tests.waiting import until
from worker.egress import addresses, decisions
from worker.egress.addresses import Lookups, is_own, is_public
from worker.egress.decisions import MachineTraffic
from worker.egress.policy import NotNamed, target_of
from worker.egress.tunnels.opening import Kind, Opening, opening
from worker.egress.tunnels.server_name import ClientHello, Malformed, client_hello
from worker.egress.upstream import CheckedBackend

NOT_PUBLIC = st.ip_addresses(v=4).filter(lambda each: not is_public(each))


@given(st.ip_addresses(v=4))
def test_no_address_that_python_takes_for_special_is_public(address):
    assert not (is_public(address) and (not address.is_global or address.is_multicast or address.is_reserved))


@given(st.ip_addresses(v=6))
def test_no_address_of_ipv6_that_python_takes_for_special_is_public(address):
    special = not address.is_global or address.is_multicast or address.is_site_local or address.is_link_local
    assert not (is_public(address) and special)


@given(NOT_PUBLIC)
@example(IPv4Address("127.0.0.1"))
@example(IPv4Address("169.254.169.254"))
@example(IPv4Address("255.255.255.255"))
def test_no_address_hides_in_another_one(address):
    number = int(address)
    for hidden in (
        f"::ffff:{address}",
        f"::ffff:0:{address}",
        f"::{address}",
        f"64:ff9b::{address}",
        f"64:ff9b:1::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
        f"2001:0:{number >> 16:x}:{number & 0xFFFF:x}::",
        f"2001::{number ^ 0xFFFFFFFF:x}"[:15].rstrip(":"),
        f"fe80::{address}",
    ):
        with suppress(ValueError):
            assert not is_public(IPv6Address(hidden)), hidden


def test_what_is_given_out_to_hosts_is_public():
    assert is_public(IPv4Address("1.0.0.1"))
    assert is_public(IPv6Address("2a00::1"))
    assert is_public(IPv6Address("64:ff9b::1.0.0.1"))
    assert not is_public(IPv6Address("2a00::1%1"))


def test_an_address_of_this_host_is_known_as_its_own():
    assert is_own(IPv4Address("127.0.0.1"))
    assert not is_own(IPv4Address("1.0.0.1"))


def real_hello(name: str) -> bytes:
    """What this host's own TLS begins with."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


REAL = real_hello("allowed.example.org")


@given(st.integers(1, 40))
def test_first_message_is_read_in_whatever_records_and_pieces_it_comes(size):
    head, message = REAL[:3], REAL[5:]
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    sent = b"".join(head + len(piece).to_bytes(2) + piece for piece in pieces)
    for written, step in ((sent, 97), (REAL, size)):
        for end in range(0, len(written), step):
            assert client_hello(written[:end]) is None
        assert client_hello(written + b"\x17\x03\x03") == ClientHello(("allowed.example.org",))


@given(st.integers(0, len(REAL) - 1), st.integers(0, 255))
def test_first_message_with_another_byte_in_it_is_read_or_malformed_and_nothing_else(place, value):
    changed = REAL[:place] + bytes([value]) + REAL[place + 1 :]
    with suppress(Malformed):
        found = opening(changed)
        assert found is None or found.kind in {Kind.TLS, Kind.OTHER}


@given(st.binary(max_size=300))
def test_whatever_begins_a_tunnel_is_told_in_the_end(data):
    with suppress(Malformed):
        found = opening(data)
        assert found is None or opening(data + b"more") == found or found.kind is Kind.OTHER


ENDLESS = {
    "space": b" " * 2**15,
    "empty lines": b"\r\n" * 2**15,
    "a word": b"GET " * 2**13,
    "records of a byte": b"\x16\x03\x01\x00\x01\x01" + b"\x16\x03\x01\x00\x01\x00" * 2**12,
    "a large message": b"\x16\x03\x01\x40\x00\x01\x01\x00\x00",
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_does_not_say_what_it_is_has_an_end(what):
    with pytest.raises(Malformed):
        opening(ENDLESS[what])


def test_a_line_is_looked_into_once_whatever_is_in_it():
    # With another look for each version in it, this would take minutes.
    assert opening(b"GET " + b"HTTP/1" * 2**17 + b"\0\n") == Opening(Kind.OTHER)


async def test_a_thread_that_cannot_be_started_takes_no_place_of_a_look_up(monkeypatch):
    def fail(*_):
        raise RuntimeError("can't start new thread")

    lookups = Lookups(lambda _: ["192.0.2.1"], for_each_machine=1, in_all=1)
    with monkeypatch.context() as patched:
        patched.setattr(addresses._thread, "start_new_thread", fail)
        with pytest.raises(RuntimeError):
            await lookups.look_up("vm-1", "a.example.org")
    assert await asyncio.wait_for(lookups.look_up("vm-1", "a.example.org"), 10) == ["192.0.2.1"]


async def test_a_connection_to_a_host_that_takes_nothing_is_closed_at_once():
    mine, theirs = socket.socketpair()
    mine.setblocking(False)

    async def connect(*_: object) -> socket.socket:
        return mine

    with theirs:
        stream = await CheckedBackend(connect, lambda _: None, lambda _: None).connect_tcp("a.example.org", 80)
        with pytest.raises(httpcore.WriteTimeout):
            await stream.write(bytes(2**22), 0.01)
        await stream.aclose()
        await until(lambda: mine.fileno() < 0, "its end")


@given(st.lists(st.text("abc.-", min_size=1, max_size=20), max_size=3))
def test_every_server_that_is_named_is_found(names):
    assert client_hello(made_hello(names)) == ClientHello(tuple(names))


@given(st.text(max_size=40))
def test_target_is_read_as_one_or_refused(text):
    with suppress(NotNamed):
        target = target_of(text)
        assert target_of(str(target)) == target


@given(st.lists(st.tuples(st.integers(0, 400), st.sampled_from(["allowed", "blocked", "failed"])), max_size=900))
def test_whatever_is_asked_for_decisions_and_counts_are_bounded_and_add_up(asked):
    traffic = MachineTraffic()
    for host, verdict in asked:
        traffic.record(f"h{host}.example.org", 443, verdict, "a sentence")
    told = [*traffic.drain(), *traffic.drain(last=True)]
    assert len(told) <= 2 * decisions.TOLD_MOST + 1
    assert sum(each.count for each in told) == len(asked)
    use = traffic.use()
    assert len(use.hosts) <= decisions.NAMED_MOST
    assert use.allowed == sum(verdict == "allowed" for _, verdict in asked)
    assert use.blocked == sum(verdict == "blocked" for _, verdict in asked)


def test_one_host_is_told_once_a_minute_with_what_came_up_in_it(monkeypatch):
    now = 100.0
    monkeypatch.setattr(decisions.time, "monotonic", lambda: now)
    traffic = MachineTraffic()
    for _ in range(5):
        traffic.record("a.example.org", 443, "blocked", "a sentence")
    assert [each.count for each in traffic.drain()] == [1]
    assert traffic.drain() == []
    now += decisions.TOLD_SECONDS
    assert [each.count for each in traffic.drain()] == [4]
    now += decisions.TOLD_SECONDS
    assert traffic.drain() == []
    traffic.record("a.example.org", 443, "blocked", "a sentence")
    assert [each.count for each in traffic.drain()] == [1]
