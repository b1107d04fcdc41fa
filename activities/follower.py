"""Follows an agent: its bytes into the run log, its events into progress, its silence into a verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta

from activities.agent_output import AgentOutput
from activities.agent_session import KILLED, AgentSession, Chunk, Ended
from storage.runlog import RunLogWriter
from storage.segments import GuestStream, LogEntry


class Follower:
    """One attempt's look at the agent. A later attempt goes on where the run log ends.

    An agent that writes more than ``most_bytes`` is killed, and the rest of its output stays in the guest.
    ``on_turn_end`` is called with the count of results when the agent waits for input, and says whether to close its
    session; ``on_tick`` often, with nothing, and may raise to leave.
    """

    def __init__(
        self,
        writer: RunLogWriter,
        output: AgentOutput,
        hang_timeout: timedelta,
        most_bytes: int,
        on_turn_end: Callable[[int], bool],
        on_tick: Callable[[], None],
    ) -> None:
        self._output = output
        self.hung = False
        self.overflowed = False
        self._writer = writer
        self._most_bytes = most_bytes
        self._hang_seconds = hang_timeout.total_seconds()
        self._on_turn_end = on_turn_end
        self._on_tick = on_tick
        self._partial: dict[GuestStream, bytes] = {"stdout": b"", "stderr": b""}
        self._told_results = 0

    def read_back(self, entries: Iterable[LogEntry]) -> None:
        """Take what earlier attempts stored, so that progress and result are known without the guest."""
        for entry in entries:
            if entry.stream != "event":
                self._take(entry.stream, entry.data.encode(), entry.ts)

    def silent_for(self) -> float:
        """Seconds since the agent last wrote, as far as the run log knows; 0 when it never did."""
        last = self._output.progress.last_activity_at
        return (datetime.now(UTC) - last).total_seconds() if last else 0.0

    def follow(self, session: AgentSession, offsets: Mapping[GuestStream, int]) -> Ended:
        """Follow to the end. Raises what the connection to the guest or the bucket raises; nothing is lost then."""
        last_bytes = time.monotonic()
        written = dict(offsets)
        for piece in session.follow(offsets):
            match piece:
                case Chunk(stream, offset, data):
                    last_bytes = time.monotonic()
                    self._writer.feed(stream, data, offset)
                    written[stream] = offset + len(data)
                    self._take(stream, data, datetime.now(UTC))
                case Ended():
                    self._writer.close()
                    return piece
                case None:
                    pass
            self._writer.flush()
            self._tell_turn_end(session)
            self._on_tick()
            if sum(written.values()) > self._most_bytes:
                self.overflowed = True
                session.stop(force=True)
                self._writer.close()
                return Ended(KILLED)
            silent = time.monotonic() - last_bytes
            if silent > self._hang_seconds and not self._output.idle and not self.hung:
                self.hung = True
                session.stop(force=False)
        raise AssertionError("a session is followed until it has ended")

    def _take(self, stream: GuestStream, data: bytes, at: datetime) -> None:
        *lines, self._partial[stream] = (self._partial[stream] + data).split(b"\n")
        take = self._output.take if stream == "stdout" else self._output.take_error
        for line in lines:
            take(line.decode(errors="replace"), len(line) + 1, at)

    def _tell_turn_end(self, session: AgentSession) -> None:
        results = self._output.results
        if self._output.idle and results > self._told_results:
            if self._on_turn_end(results):
                session.close()
            self._told_results = results
