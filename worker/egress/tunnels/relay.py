"""Bytes between two connections, both ways until both sides have ended: half-closes, a bounded buffer, a share each."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from time import monotonic
from typing import Any, Self, TypeVar

# What one connection moves before others have their turn. All of a thread's read into one place.
_TURN_BYTES = 128 * 1024
_TURN = threading.local()

T = TypeVar("T")


def _place() -> memoryview:
    if not hasattr(_TURN, "place"):
        _TURN.place = memoryview(bytearray(_TURN_BYTES))
    place: memoryview = _TURN.place
    return place


class _Way:
    """One direction: what has been read from one side and not yet been taken by the other."""

    def __init__(self, source: socket.socket, sink: socket.socket, count: Callable[[int], None]) -> None:
        self.source = source
        self.sink = sink
        # The event loop knows a descriptor at once; of a socket it makes a text before it does.
        self.from_descriptor = source.fileno()
        self.to_descriptor = sink.fileno()
        self.count = count
        self.unsent = memoryview(b"")
        self.ended = False
        self.moved = False


class Relay:
    """Moves bytes between a guest and what it is connected to. The sockets stay the caller's to close.

    It begins with what comes from afar; what comes from the guest waits until ``run``.
    A side that does not read costs what one turn has read for it, and stops the other side from being read.
    ``sent`` and ``received`` count the bytes that the guest has sent, and that have been passed on to it.
    """

    def __init__(
        self,
        guest: socket.socket,
        remote: socket.socket,
        sent: Callable[[int], None],
        received: Callable[[int], None],
        idle_seconds: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._ways = (_Way(guest, remote, sent), _Way(remote, guest, received))
        self._idle_seconds = idle_seconds
        self._turn = _place()
        self._moved = monotonic()
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        _, receiving = self._ways
        self._loop.add_reader(receiving.from_descriptor, self._read, receiving)
        self._look()
        return self

    def __exit__(self, *_: object) -> None:
        """Move nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        self._done.cancel()
        for way in self._ways:
            self._loop.remove_reader(way.from_descriptor)
            self._loop.remove_writer(way.to_descriptor)

    @property
    def received(self) -> bool:
        """Whether anything has come from afar."""
        return self._ways[1].moved

    async def unless_idle(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``. Raises TimeoutError when nothing has moved for the idle time."""
        task = asyncio.ensure_future(work)
        either: set[asyncio.Future[Any]] = {task, self._done}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self._done.result()
            return await task
        finally:
            task.cancel()

    async def run(self, first: bytes = b"") -> None:
        """Move bytes until both sides have ended or broken off, beginning with ``first`` from the guest.

        Raises TimeoutError when nothing has moved for the idle time.
        """
        sending, _ = self._ways
        sending.unsent = memoryview(first)
        if first:
            self._loop.add_writer(sending.to_descriptor, self._send_rest, sending)
        else:
            self._loop.add_reader(sending.from_descriptor, self._read, sending)
        await self._done

    def _read(self, way: _Way) -> None:
        try:
            size = way.source.recv_into(self._turn)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        self._moved = monotonic()
        if not size:
            with suppress(OSError):
                way.sink.shutdown(socket.SHUT_WR)
            self._end(way)
            return
        way.unsent = self._turn[:size]
        self._send(way)
        if way.unsent:
            # Only what is left is kept: the place is another connection's next.
            way.unsent = memoryview(bytes(way.unsent))
            self._loop.remove_reader(way.from_descriptor)
            self._loop.add_writer(way.to_descriptor, self._send_rest, way)

    def _send_rest(self, way: _Way) -> None:
        self._send(way)
        if not way.unsent and not way.ended:
            self._loop.remove_writer(way.to_descriptor)
            self._loop.add_reader(way.from_descriptor, self._read, way)

    def _send(self, way: _Way) -> None:
        try:
            taken = way.sink.send(way.unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Nobody takes it any more; what comes the other way may still be of use.
            self._end(way)
            return
        self._moved = monotonic()
        way.moved = True
        way.count(taken)
        way.unsent = way.unsent[taken:]

    def _end(self, way: _Way) -> None:
        way.ended = True
        way.unsent = memoryview(b"")
        self._loop.remove_reader(way.from_descriptor)
        self._loop.remove_writer(way.to_descriptor)
        if all(each.ended for each in self._ways) and not self._done.done():
            self._done.set_result(None)

    def _look(self) -> None:
        idle = monotonic() - self._moved
        if idle < self._idle_seconds:
            self._timer = self._loop.call_later(self._idle_seconds - idle, self._look)
        elif not self._done.done():
            self._done.set_exception(TimeoutError("nothing has moved"))
