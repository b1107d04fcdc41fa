"""What is asked of machines: requests and WebSockets to the hosts that have them, with their tokens and epochs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx
from websockets.asyncio.client import ClientConnection

from api.machines.addresses import HostAddresses
from api.machines.connection import HostConnection
from foundation.errors import (
    HostUnreachable,
    MachineLost,
    MachineNotFound,
    MachineUnavailable,
    StaleEpoch,
    TaskyardError,
)
from foundation.service.paths import EPOCH, machine_path
from foundation.service.refusals import error_from
from foundation.service.tokens import Purpose, authorization, make_token
from foundation.settings import Settings
from storage.bucket import Bucket

_T = TypeVar("_T")
Params = Mapping[str, str] | tuple[tuple[str, str], ...] | None

_ERROR_BYTES = 64 * 1024
_CLOSE_SECONDS = 1.0


@dataclass(frozen=True)
class MachineReference:
    """A machine as its owner's status names it. Without an ``epoch``, whichever start of it answers."""

    host: str
    id: str
    epoch: str | None = None


#: Gives the machine that is meant; with True, as it is now, whatever was known a moment ago.
Find = Callable[[bool], Awaitable[MachineReference]]


class Hosts:
    """The VM hosts as this server reaches them. For the event loop alone.

    Every method raises errors of the one tree: what the host answers; HostUnreachable when it does not answer in a few
    seconds; MachineLost for a machine that is not there any more. One that was started anew is looked up again, once.
    """

    def __init__(self, settings: Settings, bucket: Bucket) -> None:
        self._settings = settings
        self._addresses = HostAddresses(settings, bucket)
        self._connections: dict[tuple[str | None, ...], HostConnection] = {}
        self._key: bytes | None = None

    async def close(self) -> None:
        """Close all connections."""
        connections, self._connections = list(self._connections.values()), {}
        for connection in connections:
            await connection.close()

    @asynccontextmanager
    async def asked(
        self,
        find: Find,
        purpose: Purpose,
        method: str,
        parts: Sequence[str],
        *,
        params: Params = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterable[bytes] | bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The host's answer to a request for ``parts`` of the machine's path, with its body still to be read.

        Enter and leave it in one task. ``content`` that is a stream is begun once it is known that the machine is
        there, and sent once.
        """
        if content is not None and not isinstance(content, bytes):
            find = _just(await self.confirmed(find))
        async with AsyncExitStack() as stack:

            async def ask(machine: MachineReference) -> httpx.Response:
                return await stack.enter_async_context(
                    self.request(
                        machine.host,
                        machine.id,
                        purpose,
                        method,
                        machine_path(machine.id, *parts),
                        params=params,
                        headers={**(headers or {}), **_epoch(machine)},
                        content=content,
                    )
                )

            yield await self._looking_again(find, ask)

    async def confirmed(self, find: Find) -> MachineReference:
        """The machine, which its host has just said is there and can be entered."""

        async def ask(machine: MachineReference) -> MachineReference:
            path = machine_path(machine.id)
            async with self.request(machine.host, machine.id, "machine", "GET", path, headers=_epoch(machine)):
                return machine

        return await self._looking_again(find, ask)

    @asynccontextmanager
    async def socket(
        self,
        find: Find,
        purpose: Purpose,
        parts: Sequence[str],
        *,
        params: Params = None,
        subprotocols: Sequence[str] = (),
    ) -> AsyncIterator[ClientConnection]:
        """A WebSocket to ``parts`` of the machine's path, open while the block runs. Enter and leave it in one task.

        What its reading raises at its end (ConnectionClosed) is left to whoever reads.
        """
        query = f"?{httpx.QueryParams(params)}" if params else ""

        async def ask(machine: MachineReference) -> tuple[HostConnection, ClientConnection]:
            connection = await self._connection(machine.host)
            headers = self._authorized(machine.host, machine.id, purpose) | _epoch(machine)
            with self._forgetting(machine.host):
                path = machine_path(machine.id, *parts) + query
                return connection, await connection.open_socket(path, headers, list(subprotocols))

        connection, opened = await self._looking_again(find, ask)
        try:
            async with connection.watched() as watched:
                watched.answered()
                yield opened
        finally:
            await _closed(opened)

    @asynccontextmanager
    async def request(
        self,
        host: str,
        subject: str,
        purpose: Purpose,
        method: str,
        path: str,
        *,
        params: Params = None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterable[bytes] | bytes | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The same for one host and any path; ``subject`` is what the token is for. Nothing is asked twice."""
        connection = await self._connection(host)
        request = connection.http.build_request(
            method,
            path,
            params=params,
            headers={**(headers or {}), **self._authorized(host, subject, purpose)},
            content=content,
        )
        with self._forgetting(host):
            async with connection.watched() as watched:
                try:
                    response = await connection.http.send(request, stream=True)
                except httpx.PoolTimeout:
                    raise connection.unreachable("has as many streams open as this server may have with it") from None
                except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                    raise connection.unreachable("cannot be reached") from error
                except httpx.TransportError as error:
                    raise connection.unreachable("went away") from error
                try:
                    watched.answered()
                    if response.is_error:
                        raise error_from(await _beginning(response), response.status_code)
                    yield response
                except httpx.TransportError as error:
                    raise connection.unreachable("went away") from error
                finally:
                    await response.aclose()

    async def _connection(self, host: str) -> HostConnection:
        found = await self._addresses.of(host)
        near = found.socket if self._addresses.is_near(host, found) else None
        far, certificate = (None, None) if near else (found.address, found.certificate)
        place = (host, near, far, certificate)
        if place not in self._connections:
            # What is open with one that has moved stays open until this server ends, if it does not end by itself.
            self._connections[place] = HostConnection(host, near=near, far=far, certificate=certificate)
        return self._connections[place]

    def _authorized(self, host: str, subject: str, purpose: Purpose) -> dict[str, str]:
        if self._key is None:
            self._key = self._settings.service_key()
        return {"Authorization": authorization(make_token(self._key, host=host, subject=subject, purpose=purpose))}

    async def _looking_again(self, find: Find, ask: Callable[[MachineReference], Awaitable[_T]]) -> _T:
        machine = await find(False)
        try:
            return await ask(machine)
        except (StaleEpoch, MachineLost, MachineNotFound, MachineUnavailable) as error:
            first = error
        again = await find(True)
        if again == machine:
            raise _told(first, machine)
        try:
            return await ask(again)
        except MachineNotFound as error:
            raise _told(error, again) from None

    @contextmanager
    def _forgetting(self, host: str) -> Iterator[None]:
        """Look for the host anew when it is not where it was."""
        try:
            yield
        except HostUnreachable:
            self._addresses.forget(host)
            raise


def _just(machine: MachineReference) -> Find:
    async def find(_: bool) -> MachineReference:
        return machine

    return find


def _epoch(machine: MachineReference) -> dict[str, str]:
    return {EPOCH: machine.epoch} if machine.epoch else {}


def _told(error: TaskyardError, machine: MachineReference) -> TaskyardError:
    if isinstance(error, MachineNotFound):
        return MachineLost(f"Machine {machine.id} is gone from host {machine.host}")
    return error


async def _beginning(response: httpx.Response) -> bytes:
    body = b""
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > _ERROR_BYTES:
            break
    return body


async def _closed(connection: ClientConnection) -> None:
    """Close it, within a moment: what is still to be read is of no interest any more."""
    closing = asyncio.ensure_future(connection.close())
    try:
        await asyncio.wait({closing}, timeout=_CLOSE_SECONDS)
    finally:
        if not closing.done():
            closing.cancel()
            connection.transport.abort()
