"""Follows an agent: its bytes into the run log, its events into progress, its silence into a verdict."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from activities.agent.control import REQUEST, RESOLVED
from activities.agent.output import AgentOutput, LineSplitter
from activities.agent.session import AgentSession, Chunk, Ended
from activities.machine.network import DECISION
from activities.step.announcements import USER_MESSAGE
from foundation.errors import SessionClosed
from foundation.units import format_seconds
from storage.runlog import RunLogWriter
from storage.segments import GUEST_STREAMS, GuestStream, LogEntry
from workflows.runs.states import Cause, TaskState
from workflows.runs.steering.control import denial
from workflows.runs.steering.messages import AgentSaid

VERDICT = "verdict"
#: The id of the run's first message.
PROMPT = "prompt"

# A follower that has just come looks at least this long before it judges the silence of before.
_FIRST_LOOK_SECONDS = 30.0
# What an agent whose request was refused for good may take to say so and leave.
_LAST_WORDS_SECONDS = 5.0
# Turns of one run that are reported to its workflow: each stays in a history whose size is limited.
_TURNS_MOST = 1000
_ASKS_TOO_MUCH = "This run has asked too often; nothing more is permitted."


class Follower:
    """One attempt's look at the agent. A later attempt goes on where the run log ends.

    An agent that is silent for ``hang_timeout`` or writes more than ``most_bytes`` gets a ``verdict``, which is in the
    run log for later attempts and for readers. The follower leaves with it: stopping is the workflow's.
    ``on_turn_end`` is called with the count of results, and whether the last is that of an interrupted turn, when the
    agent waits for input, and says whether to close its session; ``on_control`` with what it asks and confirms;
    ``on_tick`` often, with nothing, and may raise to leave. An agent is not silent that waits for an answer, which it
    gets within ``permission_timeout``.

    ``used_up`` gives a sentence once the agent was refused what its budget does not hold. That is a verdict too; with
    ``may_sleep`` it is one of this attempt only, as the agent may be continued.
    """

    def __init__(
        self,
        writer: RunLogWriter,
        output: AgentOutput,
        hang_timeout: timedelta,
        most_bytes: int,
        on_turn_end: Callable[[int, bool], bool],
        on_tick: Callable[[], None],
        *,
        on_control: Callable[[AgentSaid], None] = lambda _: None,
        permission_timeout: timedelta = timedelta(),
        used_up: Callable[[], str | None] = lambda: None,
        may_sleep: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self.verdict: Cause | None = None
        #: The sentence of the verdict.
        self.judgement: str | None = None
        #: Decisions about the guest's network that earlier attempts have logged.
        self.decisions = 0
        self._writer = writer
        self._most_bytes = most_bytes
        self._hang_seconds = hang_timeout.total_seconds()
        self._on_turn_end = on_turn_end
        self._on_tick = on_tick
        self._on_control = on_control
        self._patience = permission_timeout.total_seconds()
        self._asked_at = 0.0
        # Ids of requests that are in the log, and of those of which it says what became of them.
        self._logged: dict[str, set[str]] = {REQUEST: set(), RESOLVED: set()}
        self._clock = clock
        self._used_up = used_up
        self._may_sleep = may_sleep
        self._refused_at: float | None = None
        self._spent = ""
        self._lines = {stream: LineSplitter() for stream in GUEST_STREAMS}
        self._reported_results = 0
        self._closed = False
        self._began: datetime | None = None
        self._prompt_logged = False
        self._attached = self._last_bytes = clock()

    def read_back(self, entries: Iterable[LogEntry]) -> None:
        """Take what earlier attempts stored, so that progress, result and verdict are known without the guest."""
        for entry in entries:
            if entry.stream == "event":
                self._recall(entry)
            elif entry.stream != "told":
                self._take(entry.stream, entry.data.encode(), entry.ts)

    def open_log(self, message: str, prompt: str) -> None:
        """Log that the agent runs, and what it was asked, unless an earlier attempt did."""
        if self._began is None:
            self._writer.event({"type": "state_change", "message": message, "state": TaskState.RUNNING.value})
            self._began = datetime.now(UTC)
        if not self._prompt_logged:
            self._writer.event({"type": USER_MESSAGE, "message": prompt, "message_id": PROMPT})
        self._writer.flush(force=True)

    def silent_for(self) -> float:
        """Seconds since the agent last wrote, as far as the run log knows, or else since it was to be started."""
        # While its machine slept it could write nothing: the later of the two counts.
        known = [at for at in (self._output.progress.last_activity_at, self._began) if at is not None]
        return max(0.0, (datetime.now(UTC) - max(known)).total_seconds()) if known else 0.0

    def give_up(self) -> None:
        """Judge that the guest has not answered for as long as its agent may be silent."""
        self._judge(Cause.MACHINE_LOST, f"its guest has not answered for {format_seconds(self.silent_for())}")

    def follow(self, session: AgentSession, offsets: Mapping[GuestStream, int]) -> Ended | None:
        """Follow to the end, or to a verdict (None). Raises what the connection to the guest or the bucket raises.

        Nothing is lost then.
        """
        self._attached = self._clock()
        self._last_bytes = self._attached - self.silent_for()
        written = dict(offsets)
        for piece in session.follow(offsets):
            match piece:
                case Chunk(stream, offset, data):
                    self._last_bytes = self._clock()
                    self._writer.feed(stream, data, offset)
                    written[stream] = offset + len(data)
                    self._take(stream, data, datetime.now(UTC))
                case Ended():
                    self._writer.close()
                    return piece
                case None:
                    pass
            self._tell(session)
            self._writer.flush()
            self._report_turn_end(session)
            self._on_tick()
            if sum(written.values()) > self._most_bytes:
                self._judge(Cause.LOG_LIMIT, "it wrote more than its host's log takes (TASKYARD_LOG_LIMIT)")
                return None
            if self._has_spent_all():
                return None
            if self._is_silent():
                silence = format_seconds(self._hang_seconds)
                self._judge(Cause.NO_OUTPUT_TIMEOUT, f"it wrote nothing for {silence} (lifecycle.hang_timeout)")
                return None
        raise AssertionError("a session is followed until it has ended")

    def _tell(self, session: AgentSession) -> None:
        """Log and report what the agent asks, takes back and confirms, and deny what it asks too often."""
        while (said := self._output.control.news()) != AgentSaid():
            if said.asked:
                self._asked_at = self._clock()
            for request in said.asked:
                facts = request.model_dump(mode="json", exclude={"expires_at"})
                about = f": {request.description}" if request.description else ""
                self._log(REQUEST, request.request_id, f"Claude Code asks for permission: {request.tool}{about}", facts)
            for request_id in said.withdrawn:
                self._log(RESOLVED, request_id, "Claude Code asks for this no more.", {"decision": "withdrawn"})
            self._on_control(said)
        if excess := self._output.control.excess():
            # Whoever follows next may find the same requests together with others, which are another message then.
            digest = hashlib.sha256("\n".join(excess).encode()).hexdigest()
            # An agent that takes no more has nothing left to wait for.
            with suppress(SessionClosed):
                session.steer(f"denied-{digest}", [denial(request_id, _ASKS_TOO_MUCH) for request_id in excess])

    def _log(self, kind: str, request_id: str, message: str, facts: Mapping[str, object]) -> None:
        if request_id not in self._logged[kind]:
            self._logged[kind].add(request_id)
            self._writer.event({"type": kind, "message": message, "request_id": request_id, **facts})

    def _has_spent_all(self) -> bool:
        """Whether the agent was refused for want of budget, and has had a moment to end by itself if it can do so."""
        if self._closed:
            # It has answered all that it was asked and is leaving.
            return False
        now = self._clock()
        if self._refused_at is None:
            if (sentence := self._used_up()) is None:
                return False
            self._refused_at, self._spent = now, sentence
        if self._may_sleep:
            self.verdict, self.judgement = Cause.BUDGET_EXCEEDED, self._spent
            self._writer.close()
        elif now - self._refused_at > _LAST_WORDS_SECONDS:
            self._judge(Cause.BUDGET_EXCEEDED, self._spent)
        else:
            return False
        return True

    def _is_silent(self) -> bool:
        """Whether the agent has said nothing for too long, and does not wait for input.

        Once its session is closed, nothing comes that it could wait for: it has only to leave.
        """
        now = self._clock()
        quiet_since = self._last_bytes
        if self._output.control.open:
            quiet_since = max(quiet_since, self._asked_at + self._patience)
        return (
            now - quiet_since > self._hang_seconds
            and now - self._attached > min(_FIRST_LOOK_SECONDS, self._hang_seconds)
            and (self._closed or not self._output.idle)
        )

    def _judge(self, cause: Cause, reason: str) -> None:
        spent = cause is Cause.BUDGET_EXCEEDED
        self.verdict, self.judgement = cause, reason if spent else f"The agent was stopped: {reason}."
        self._writer.event({"type": VERDICT, "message": self.judgement, "cause": cause.value})
        self._writer.close()

    def _recall(self, entry: LogEntry) -> None:
        event = json.loads(entry.data)
        if event.get("type") == VERDICT:
            self.verdict, self.judgement = Cause(event["cause"]), event["message"]
        elif event.get("type") == "state_change" and event.get("state") == TaskState.RUNNING:
            self._began = entry.ts
        elif event.get("type") == USER_MESSAGE and event.get("message_id") == PROMPT:
            self._prompt_logged = True
        elif event.get("type") == DECISION:
            self.decisions += 1
        elif (kind := event.get("type")) in self._logged:
            self._logged[kind].add(str(event.get("request_id")))

    def _take(self, stream: GuestStream, data: bytes, at: datetime) -> None:
        take = self._output.take if stream == "stdout" else self._output.take_error
        for line, size in self._lines[stream].feed(data):
            take(line.decode(errors="replace"), size, at)

    def _report_turn_end(self, session: AgentSession) -> None:
        results = self._output.results
        if self._output.idle and not self._closed and self._reported_results < results <= _TURNS_MOST:
            if self._on_turn_end(results, self._output.interrupted):
                session.close()
                self._closed = True
            self._reported_results = results
