"""Where the services of VM hosts are, as the hosts say in the bucket, read through a cache of seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime

from foundation.errors import BucketUnavailable, HostUnreachable
from foundation.service.paths import SOCKET
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.hosts import ServiceAddress, live_host

_KNOWN_SECONDS = 5.0
_KNOWN_MOST = 1024


class HostAddresses:
    """The addresses of hosts by name. For the event loop alone."""

    def __init__(self, settings: Settings, bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._clock = clock
        self._own_name = settings.host_name
        self._own_socket = settings.sockets / SOCKET
        self._known: dict[str, tuple[float, asyncio.Future[ServiceAddress]]] = {}
        self._last: dict[str, ServiceAddress] = {}

    async def of(self, host: str) -> ServiceAddress:
        """Where this server reaches the host: ``socket`` for one of its own home, else ``address``.

        Raises HostUnreachable for a host that has not said so lately. While the bucket is away, what was known before
        counts; when nothing was, BucketUnavailable.
        """
        if host == self._own_name and self._own_socket.exists():
            return self._near
        known = self._known.get(host)
        if known is None or self._clock() - known[0] > _KNOWN_SECONDS:
            if len(self._known) >= _KNOWN_MOST:
                self._known.clear()
                self._last.clear()
            # Those that ask meanwhile wait for the same answer.
            known = self._known[host] = (self._clock(), asyncio.ensure_future(self._look(host)))
        try:
            return await asyncio.shield(known[1])
        except BaseException:
            # An error is no answer for those that ask later; one who left is none either.
            if known[1].done() and self._known.get(host) is known:
                del self._known[host]
            raise

    def forget(self, host: str) -> None:
        """Look anew next time: it does not answer where it was."""
        known = self._known.get(host)
        if known is not None and known[1].done():
            del self._known[host]

    def is_near(self, host: str, found: ServiceAddress) -> bool:
        """Whether the host is of this server's own home, and answers on its socket."""
        return host == self._own_name and found.socket == str(self._own_socket)

    @property
    def _near(self) -> ServiceAddress:
        """Of the host of this very home nobody has to be asked: its socket is there as long as its worker is."""
        return ServiceAddress(since=datetime.now(UTC), socket=str(self._own_socket))

    async def _look(self, host: str) -> ServiceAddress:
        try:
            room = await asyncio.to_thread(live_host, self._bucket, host)
        except BucketUnavailable:
            if host not in self._last:
                raise
            return self._last[host]
        if room is None:
            raise HostUnreachable(
                f"The worker of host {host} is away; its runs and machines go on, and can be reached when it is back",
                host=host,
            )
        if room.service is None:
            raise HostUnreachable(
                f"The worker of host {host} is of a version that nobody can enter machines through", host=host
            )
        if not self.is_near(host, room.service) and not room.service.address:
            raise HostUnreachable(
                f"Host {host} does not say where this server reaches it; set TASKYARD_HOST_LISTEN for its worker",
                host=host,
            )
        self._last[host] = room.service
        return room.service
