"""Following a process of a guest: its bytes from an offset on, as they are written, and how it ended.

Whoever is root in the guest may forge, fill, freeze or remove all that is read here, and end the program that sends it.
There is an end all the same: what cannot be read is no record, a unit that is gone has ended, a program that has ended
or says nonsense is begun anew.
"""

from __future__ import annotations

import re
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from signal import Signals
from typing import Literal

import paramiko

from foundation.errors import GuestUnreachable
from guest.programs import perl_command
from machines.processes.places import Places
from machines.ssh import GuestShell, wake

#: The streams of a process.
Stream = Literal["stdout", "stderr"]
STREAMS: tuple[Stream, ...] = ("stdout", "stderr")

# Long enough to cost little with hundreds of followers; shorter while bytes come, which are stored as they come.
_QUIET_TICK_SECONDS = 1.0
_BUSY_TICK_SECONDS = 0.2
_CHUNK_BYTES = 128 * 1024
# Reads that bring nothing but heads and records, before the caller is asked again.
_READS_MOST = 16
# How long a follower waits for bytes that the exit record promises but the files do not give (a tampered file), and
# how long it reads on after the end in all.
_DRAIN_SECONDS = 20.0
_DRAIN_SECONDS_MOST = 600.0
_OPEN_AGAIN_SECONDS = 2.0
# What comes after a unit has gone without a record was written before.
_GONE_SECONDS = 5.0

_HEAD = re.compile(rb"(stdout|stderr|exit|gone|end) ([0-9]{1,6})\n")
_HEAD_BYTES_MOST = 16
_CODES = re.compile(rb"^([0-9]{1,3}) ([0-9]{1,18}) ([0-9]{1,18})$", re.MULTILINE)
_ENDED = re.compile(rb"^ended ([0-9]{1,12}) ([0-9]{1,3}) ([a-z-]{1,16})$", re.MULTILINE)
_RECORD_BYTES_MOST = 4096


@dataclass(frozen=True)
class Chunk:
    """Bytes that the process wrote, from byte ``offset`` of the stream's file on."""

    stream: Stream
    offset: int
    data: bytes


@dataclass(frozen=True)
class Ended:
    """The process is gone; 137 when it had to be killed, None when it left no exit code that can be read."""

    exit_code: int | None


class ExitRecord:
    """What the guest says of a process's end: the exit record, or that the unit is gone."""

    def __init__(self) -> None:
        self.exit_code: int | None = None
        #: What the record promises to be in the files.
        self.sizes: dict[Stream, int] | None = None
        #: The name of the signal that ended it, without SIG.
        self.signal: str | None = None
        self.ended_at: datetime | None = None
        #: Why it was stopped: ``timeout``, ``output`` or ``memory``.
        self.reason: str | None = None
        self.gone = False
        self._lines = bytearray()

    @property
    def known(self) -> bool:
        return self.sizes is not None or self.gone

    def take(self, data: bytes) -> None:
        """Read what has come of the record's file."""
        if self.known:
            return
        self._lines += data
        # Up to the last newline: the rest is not complete yet.
        lines = bytes(self._lines[: self._lines.rfind(b"\n") + 1])
        if found := _ENDED.search(lines):
            self.ended_at = _time_of(int(found[1]))
            self.signal = _signal_of(int(found[2]))
            self.reason = None if found[3] == b"-" else found[3].decode()
        if found := _CODES.search(lines):
            code, out_bytes, err_bytes = (int(number) for number in found.groups())
            self.exit_code, self.sizes = code, {"stdout": out_bytes, "stderr": err_bytes}
        # Lines that are neither are forgotten, and the beginning of one that is too long.
        del self._lines[: max(len(lines), len(self._lines) - _RECORD_BYTES_MOST)]


class Following:
    """One look at a process, from offsets on. ``news`` is set whenever ``read`` may have something to give."""

    def __init__(
        self,
        shell: GuestShell,
        places: Places,
        offsets: Mapping[Stream, int],
        news: threading.Event,
        *,
        follow: bool = True,
    ) -> None:
        """Raises GuestUnreachable or MachineLost when the guest does not take the command."""
        self.position: dict[Stream, int] = dict(offsets)
        self.record = ExitRecord()
        self._shell = shell
        self._places = places
        self._news = news
        self._follow = follow
        self._end = DrainEnd(time.monotonic)
        self._over = False
        self._open_at: float | None = None
        self._buffer = bytearray()
        #: Of the frame that is being received: its name, and how much of it is still to come.
        self._name, self._left = "", 0
        self._channel = self._opened()

    def read(self) -> list[Chunk | Ended]:
        """What has come, and at last how it ended; empty when nothing has. Does not wait, but for a new beginning.

        Raises GuestUnreachable or MachineLost when the connection has broken.
        """
        if self._over:
            return []
        known = self.record.known
        pieces: list[Chunk | Ended] = self._received()
        busy = bool(pieces) or (self.record.known and not known)
        if self._over or self._end.reached(self.record, self.position, busy=busy):
            self._over = True
            pieces.append(Ended(self.record.exit_code))
        return pieces

    def tick(self) -> float:
        """Seconds to wait for news before the next ``read``."""
        return self._end.tick()

    def close(self) -> None:
        """Follow no more."""
        self._channel.close()

    def _received(self) -> list[Chunk | Ended]:
        chunks: list[Chunk | Ended] = []
        # Asked first: what came before the end is read below.
        over = self._channel.eof_received or self._channel.closed
        ready = False
        for _ in range(_READS_MOST):
            if chunks or self._over or not self._channel.recv_ready():
                break
            ready = True
            self._buffer += self._channel.recv(_CHUNK_BYTES)
            chunks += self._frames()
        if over and not ready and not self._over:
            self._begin_again()
        return chunks

    def _frames(self) -> Iterator[Chunk]:
        buffer = self._buffer
        while buffer and not self._over:
            if self._left:
                part = bytes(buffer[: self._left])
                del buffer[: len(part)]
                self._left -= len(part)
                if self._name == "exit":
                    self.record.take(part)
                elif self._name in self.position:
                    stream: Stream = "stdout" if self._name == "stdout" else "stderr"
                    yield Chunk(stream, self.position[stream], part)
                    self.position[stream] += len(part)
                continue
            head = _HEAD.match(bytes(buffer[:_HEAD_BYTES_MOST]))
            if head is None:
                if len(buffer) >= _HEAD_BYTES_MOST or b"\n" in buffer:
                    # Somebody wrote into it who is root there.
                    self._channel.close()
                return
            del buffer[: head.end()]
            self._name, self._left = head[1].decode(), int(head[2])
            if self._name == "gone" and not self.record.known:
                self.record.gone = True
            elif self._name == "end":
                self._over = True

    def _begin_again(self) -> None:
        """Begin the program anew that has ended in a guest that is there."""
        now = time.monotonic()
        self._open_at = self._open_at or now + _OPEN_AGAIN_SECONDS
        if not self._channel.get_transport().is_active():
            raise GuestUnreachable("The connection to the guest broke while a process was followed.")
        if now >= self._open_at:
            self.close()
            self._open_at = None
            self._buffer.clear()
            self._name, self._left = "", 0
            if not self.record.known:
                self.record = ExitRecord()
            self._channel = self._opened()

    def _opened(self) -> paramiko.Channel:
        places = self._places
        offsets = [word for stream, offset in self.position.items() for word in (stream, str(offset))]
        words = [places.directory, places.volatile, places.cgroup, "1" if self._follow else "0", *offsets]
        channel = self._shell.stream(f"{perl_command('follow-process')} {shlex.join(words)}")
        wake(channel, self._news)
        return channel


class DrainEnd:
    """When a follower has read what the process wrote before its end."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last_bytes = clock()
        self._since: float | None = None

    def reached(self, record: ExitRecord, position: Mapping[Stream, int], *, busy: bool) -> bool:
        """Whether the process has ended and all of its output is read; ``busy``: some of it came just now."""
        now = self._clock()
        if busy:
            self._last_bytes = now
        if not record.known:
            return False
        self._since = self._since or now
        if record.sizes is not None and all(offset >= record.sizes[stream] for stream, offset in position.items()):
            return True
        patience = _GONE_SECONDS if record.sizes is None else _DRAIN_SECONDS
        return now - self._last_bytes > patience or now - self._since > _DRAIN_SECONDS_MOST

    def tick(self) -> float:
        """Seconds to wait for more."""
        quiet = self._clock() - self._last_bytes > _QUIET_TICK_SECONDS
        return _QUIET_TICK_SECONDS if quiet else _BUSY_TICK_SECONDS


def follow(shell: GuestShell, places: Places, offsets: Mapping[Stream, int]) -> Iterator[Chunk | Ended | None]:
    """What the process writes from the given offsets on, as it writes it, and at last how it ended.

    Gives None on every quiet moment (a second at most), so that the caller can look after other things.
    Raises GuestUnreachable or MachineLost when the connection breaks.
    """
    news = threading.Event()
    following = Following(shell, places, offsets, news)
    try:
        while True:
            # Before the look: what comes after it wakes the wait below.
            news.clear()
            pieces = following.read()
            for piece in pieces:
                yield piece
                if isinstance(piece, Ended):
                    return
            if not pieces:
                yield None
                news.wait(following.tick())
    finally:
        following.close()


def _time_of(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC) if seconds < 2**36 else datetime.max.replace(tzinfo=UTC)


def _signal_of(number: int) -> str | None:
    if number == 0:
        return None
    try:
        return Signals(number).name.removeprefix("SIG")
    except ValueError:
        return str(number)
