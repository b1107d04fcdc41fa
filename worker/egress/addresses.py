"""From a host's name to an open connection: resolved here, checked to be public, and connected to as it was checked.

No name is looked up twice on its way: what was checked is what is connected to.
"""

from __future__ import annotations

import _thread
import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import psutil

from worker.egress.policy import OperatorRules, Target

Address = IPv4Address | IPv6Address
#: Gives the addresses of a name, in the order in which they are to be tried; may wait. Raises OSError.
Resolver = Callable[[str], Sequence[str]]

# What is no host of the internet, by the registries of special addresses (RFC 6890 and what has been added to it):
# this network, private, shared (CGNAT), loopback, link-local with the metadata services of clouds, protocol
# assignments, documentation, relays of 6to4, benchmarks, multicast, reserved, broadcast.
_NOT_PUBLIC_4 = tuple(
    map(
        IPv4Network,
        (
            *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
            *("192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16"),
            *("192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        ),
    )
)
# Of IPv6, only what is given out to hosts is public at all, and in it neither special assignments (Teredo among them),
# nor documentation, nor 6to4, in which an IPv4 address hides.
_PUBLIC_6 = IPv6Network("2000::/3")
_NOT_PUBLIC_6 = tuple(
    map(IPv6Network, ("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20", "3ffe::/16"))
)
# Where a network has IPv6 alone, its resolver gives IPv4 hosts addresses here: they are what is in their last bits.
_TRANSLATED = IPv6Network("64:ff9b::/96")
_LAST_32 = 2**32 - 1

_TRIED_MOST = 8
_LOOK_SECONDS = 10.0
_NO_SUCH_NAME = {socket.EAI_NONAME, socket.EAI_NODATA}


class Unreachable(Exception):
    """The target could not be connected to; its text is a sentence that begins with the host."""


class NotPublic(Exception):
    """The target's name leads to no public address; its text says where it leads instead."""


def is_public(address: Address) -> bool:
    """Whether the address is one of a host of the internet, and nothing else hides in it."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in _NOT_PUBLIC_4)
    if address.scope_id is not None:
        return False
    if address in _TRANSLATED:
        return is_public(IPv4Address(int(address) & _LAST_32))
    return address in _PUBLIC_6 and not any(address in network for network in _NOT_PUBLIC_6)


def is_own(address: Address) -> bool:
    """Whether the address is this host's, whose services may trust what comes from within."""
    return str(address) in _own_addresses(int(time.monotonic() // _LOOK_SECONDS))


@lru_cache(maxsize=1)
def _own_addresses(_: int) -> frozenset[str]:
    """The addresses of this host, looked at once in a while."""
    interfaces = psutil.net_if_addrs().values()
    return frozenset(each.address.partition("%")[0] for addresses in interfaces for each in addresses)


def resolve(name: str) -> list[str]:
    """The addresses of a name, by this host's own resolver. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


class Lookups:
    """Look-ups of names in threads: so many at once for each machine and in all.

    One that nobody waits for any more goes on, and counts, until the resolver gives up.
    """

    def __init__(self, resolver: Resolver, for_each_machine: int = 8, in_all: int = 64) -> None:
        self._resolver = resolver
        self._for_each = for_each_machine
        self._own: dict[str, asyncio.Semaphore] = {}
        self._all = asyncio.Semaphore(in_all)

    async def look_up(self, machine: str, name: str) -> Sequence[str]:
        """What the resolver gives for the name. Raises what it raises."""
        own = self._own.setdefault(machine, asyncio.Semaphore(self._for_each))
        await own.acquire()
        try:
            await self._all.acquire()
        except BaseException:
            own.release()
            raise
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Sequence[str]] = loop.create_future()

        def give(found: Sequence[str], fault: Exception | None) -> None:
            self._all.release()
            own.release()
            if answer.done():
                return
            if fault is None:
                answer.set_result(found)
            else:
                answer.set_exception(fault)

        def ask() -> None:
            found: Sequence[str] = ()
            fault: Exception | None = None
            try:
                found = self._resolver(name)
            except Exception as error:  # noqa: BLE001 -- whatever a resolver raises is the answer
                fault = error
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(give, found, fault)

        # Nobody waits for its end, nor for its start: a name server that does not answer does not hold up this process.
        try:
            _thread.start_new_thread(ask, ())
        except RuntimeError as fault:
            give((), fault)
        return await answer

    def forget(self, machine: str) -> None:
        """The machine is gone."""
        self._own.pop(machine, None)


class Dialer:
    """Connects to targets on behalf of machines, within so many seconds for the look-up, and again for connecting."""

    def __init__(
        self, operator: OperatorRules, lookups: Lookups, resolve_seconds: float, connect_seconds: float
    ) -> None:
        self._operator = operator
        self._lookups = lookups
        self._resolve_seconds = resolve_seconds
        self._connect_seconds = connect_seconds

    async def connect(self, machine: str, target: Target, *, named: bool) -> socket.socket:
        """An open connection to the target; ``named`` says that a rule names it. Raises NotPublic or Unreachable."""
        addresses = await self._permitted(machine, target, named=named)
        loop = asyncio.get_running_loop()
        end = loop.time() + self._connect_seconds
        fault = ""
        for tried, address in enumerate(addresses):
            # Those that come later have a part of the time too.
            share = (end - loop.time()) / (len(addresses) - tried)
            try:
                async with asyncio.timeout(share):
                    return await _connected(address, target.port)
            except TimeoutError:
                fault = f"{target} does not answer"
            except ConnectionRefusedError:
                fault = f"{target} refuses connections"
            except OSError as error:
                fault = f"{target} cannot be reached: {error.strerror or error}"
        raise Unreachable(fault)

    async def _permitted(self, machine: str, target: Target, *, named: bool) -> list[Address]:
        """The addresses of the target that may be connected to, in the resolver's order. Never none."""
        addresses = [ip_address(target.host)] if target.is_address else await self._resolved(machine, target.host)
        permitted = [each for each in addresses if self._permits(each, target.port, named=named)]
        if not permitted:
            listed = ", ".join(map(str, addresses[:3]))
            raise NotPublic(
                "it is no public address" if target.is_address else f"its address {listed} is not a public one"
            )
        return permitted[:_TRIED_MOST]

    async def _resolved(self, machine: str, name: str) -> list[Address]:
        try:
            async with asyncio.timeout(self._resolve_seconds):
                found = await self._lookups.look_up(machine, name)
        except TimeoutError:
            raise Unreachable(f"{name} was not found in time: no name server answers") from None
        except socket.gaierror as error:
            if error.errno in _NO_SUCH_NAME:
                raise Unreachable(f"{name} does not exist: no name server knows it") from None
            raise Unreachable(f"{name} was not found: {error.strerror}") from None
        except Exception as error:  # noqa: BLE001 -- names that no resolver can ask for end in errors of many kinds
            raise Unreachable(f"{name} was not found: {error}") from None
        addresses = []
        for text in found:
            with suppress(ValueError):
                addresses.append(ip_address(text))
        if not addresses:
            raise Unreachable(f"{name} has no address")
        return addresses

    def _permits(self, address: Address, port: int, *, named: bool) -> bool:
        if any(rule.allows(str(address), port) for rule in self._operator.denied):
            return False
        if named and any(address in network for network in self._operator.private):
            return True
        return is_public(address) and not is_own(address)


async def _connected(address: Address, port: int) -> socket.socket:
    family = socket.AF_INET if isinstance(address, IPv4Address) else socket.AF_INET6
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setblocking(False)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(opened, (str(address), port))
    except BaseException:
        opened.close()
        raise
    return opened
