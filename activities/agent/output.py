"""What the agent's stream-json output says: progress, the result, and with the exit code the outcome.

The output is the guest's word: whatever cannot be read is no event, and what is read is cut to the limits below before
it goes into messages. The run log keeps every byte all the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from activities.agent.control import AgentControl, says_nothing_of_the_turn
from activities.agent.structured_output import GAVE_UP, Unkept, keep
from workflows.messages import NAME_CHARS, RESULT_CHARS
from workflows.runs.messages import AgentProgress, TokenUsage
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause

# A longer line is no event. Claude Code's longest are files that it has read, of a few MB.
EVENT_BYTES_MAX = 16 * 2**20
# An event of more values than this is not read: each would cost the host many times what it costs the guest.
_EVENT_VALUES_MAX = 500_000

# Of Claude Code whose last turn was interrupted.
_EXIT_OF_INTERRUPTED = 1

COMPLAINT_CHARS = 500
CUT = " … [cut; the run's log has all of it]"
_COUNT_MAX = 2**63
_COST_MAX = 1e12


class LineSplitter:
    """Cuts one stream into lines, in linear time and bounded memory."""

    def __init__(self, most: int = EVENT_BYTES_MAX) -> None:
        self._most = most
        self._begun = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Each line that ``data`` completes, with its size in bytes; of a line above the limit only sizes come."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._skipping:
                yield b"", end + 1 - start
            elif len(self._begun) + end - start > self._most:
                yield b"", len(self._begun) + end + 1 - start
            else:
                line = bytes(self._begun) + data[start:end]
                yield line, len(line) + 1
            self._begun.clear()
            self._skipping = False
            start = end + 1
        if start == len(data):
            return
        if not self._skipping and len(self._begun) + len(data) - start <= self._most:
            self._begun += data[start:]
            return
        yield b"", len(self._begun) + len(data) - start
        self._begun = bytearray()
        self._skipping = True


@dataclass(frozen=True)
class _Result:
    """What is kept of a result event: nothing is longer than the limits."""

    failed: bool
    interrupted: bool
    subtype: str
    text: str | None
    complaint: str
    session_id: str | None
    num_turns: int | None
    total_cost_usd: float | None
    output: Any
    unkept: str | None


class AgentOutput:
    """Reads the agent's stdout line by line; the same lines give the same answer, so a new attempt reads them again.

    ``redact`` takes known secrets out of every text that is kept.
    """

    def __init__(self, redact: Callable[[str], str] = lambda text: text) -> None:
        self._redact = redact
        self.progress = AgentProgress()
        self.control = AgentControl(redact)
        self.results = 0
        self.last_error_line: str | None = None
        #: True between a result and the next output: the agent waits for input.
        self.idle = False
        self._result: _Result | None = None

    def take(self, line: str, size: int, at: datetime) -> None:
        """One line of stdout of ``size`` bytes, written at ``at``. Never raises, whatever the line is."""
        self._count(size, at)
        event = _event(line)
        if event is None:
            return
        kind = event.get("type")
        self.control.take(event, at, in_turn=not self.idle)
        if not says_nothing_of_the_turn(event):
            self.idle = kind == "result"
        if kind == "system":
            self._take_system(event)
        elif kind == "assistant":
            for block in _blocks(event):
                if block.get("type") == "tool_use":
                    self.progress.tool_calls += 1
                    self.progress.current_tool = self._text(block.get("name"), NAME_CHARS, cut="…")
        elif kind == "user":
            if any(block.get("type") == "tool_result" for block in _blocks(event)):
                self.progress.current_tool = None
        elif kind == "result":
            self.results += 1
            self._result = self._read_result(event)
            self.control.interrupted = False
            self.progress.current_tool = None

    @property
    def interrupted(self) -> bool:
        """Whether the last result is that of a turn which was interrupted."""
        return self._result is not None and self._result.interrupted

    def take_error(self, line: str, size: int, at: datetime) -> None:
        """One line of stderr."""
        self._count(size, at)
        if complaint := line.strip():
            self.last_error_line = self._text(complaint, COMPLAINT_CHARS, cut="…")

    @property
    def unkept(self) -> str | None:
        """Why the structured output of the last result is not kept; None where it is, or where there is none."""
        return self._result.unkept if self._result else None

    def outcome(self, exit_code: int | None, usage: TokenUsage | None) -> AgentResult:
        """The agent's end: success is a result that is no error *and* exit code 0, nothing less.

        ``exit_code`` is None when the agent left none. A success without one request to the model is none: the agent
        took what it was given for something else than a prompt.
        """
        result = self._result
        cause: Cause | None = None
        error: str | None = None
        interrupted = result is not None and result.interrupted
        unasked = usage is not None and usage.requests == 0
        if interrupted and exit_code in {0, _EXIT_OF_INTERRUPTED} and not unasked:
            # It did what it was told: nothing. That the model was asked is what the host itself has counted.
            pass
        elif result is not None and result.failed and not interrupted:
            cause = Cause.OUTPUT_INVALID if result.subtype == GAVE_UP else Cause.AGENT_ERROR
            kind = "" if result.subtype in {"", "success"} else f" ({result.subtype})"
            error = f"Claude Code ended with an error{kind}: {result.complaint}"
        elif exit_code is None:
            cause = Cause.AGENT_EXIT
            error = "Claude Code's process is gone without an exit code; the run's log shows how far it came."
        elif exit_code != 0:
            cause = Cause.AGENT_EXIT
            error = f"Claude Code exited with code {exit_code}"
            error += f": {self.last_error_line}" if self.last_error_line else "."
        elif result is None:
            cause = Cause.AGENT_NO_RESULT
            error = "Claude Code exited with code 0, but reported no result; its log shows how far it came."
        elif unasked:
            cause = Cause.MODEL_NOT_ASKED
            error = "Claude Code ended without one answer of the model; the run's log shows what it did instead."
        return AgentResult(
            exit_code=exit_code,
            cause=cause,
            error=error,
            result=result.text if result else None,
            session_id=result.session_id if result else None,
            num_turns=result.num_turns if result else None,
            total_cost_usd=result.total_cost_usd if result else None,
            output=result.output if result else None,
            usage=usage,
            progress=self.progress,
        )

    def _count(self, size: int, at: datetime) -> None:
        self.progress.output_bytes += size
        self.progress.last_activity_at = at

    def _take_system(self, event: dict[str, Any]) -> None:
        """Model and mode stand in the event that begins each turn, and in that of a change."""
        if event.get("subtype") in {"init", "status"}:
            self.progress.model = self._text(event.get("model"), NAME_CHARS, cut="…") or self.progress.model
            mode = self._text(event.get("permissionMode"), NAME_CHARS, cut="…")
            self.progress.permission_mode = mode or self.progress.permission_mode

    def _read_result(self, event: dict[str, Any]) -> _Result:
        subtype = self._text(event.get("subtype"), NAME_CHARS, cut="…") or ""
        answer = event.get("result")
        output, unkept = self._kept_output(event.get("structured_output"))
        turns, cost, session = event.get("num_turns"), event.get("total_cost_usd"), event.get("session_id")
        failed = bool(event.get("is_error")) or subtype != "success"
        return _Result(
            failed=failed,
            interrupted=failed and self.control.interrupted,
            subtype=subtype,
            text=self._text(answer, RESULT_CHARS, cut=CUT),
            complaint=self._complaint(answer or event.get("errors")),
            session_id=self._text(session, NAME_CHARS)
            if isinstance(session, str) and len(session) <= NAME_CHARS
            else None,
            num_turns=turns if isinstance(turns, int) and _is_number(turns, _COUNT_MAX) else None,
            total_cost_usd=float(cost) if isinstance(cost, int | float) and _is_number(cost, _COST_MAX) else None,
            output=output,
            unkept=unkept,
        )

    def _kept_output(self, value: Any) -> tuple[Any, str | None]:
        try:
            return keep(value, self._redact), None
        except Unkept as reason:
            return None, str(reason)

    def _complaint(self, value: Any) -> str:
        try:
            text = value if isinstance(value, str) else json.dumps(value)
        except (ValueError, RecursionError):
            text = "it cannot be read"
        return self._text(text, COMPLAINT_CHARS, cut="…") or ""

    def _text(self, value: Any, most: int, cut: str = "") -> str | None:
        """A text that passes through JSON, cut to ``most`` characters; None for what is no text.

        Known secrets are replaced.
        """
        if not isinstance(value, str):
            return None
        # Before the cut: of a value that is cut in two, no part is recognised.
        text = self._redact(value)
        kept = text if len(text) <= most else text[: most - len(cut)] + cut
        # Halves of characters, which JSON can name and no encoding can write.
        return kept.encode(errors="replace").decode()


def _event(line: str) -> dict[str, Any] | None:
    if not line.lstrip(" \t\r").startswith("{") or line.count(",") + line.count("[") > _EVENT_VALUES_MAX:
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) else None


def _is_number(value: float, below: float) -> bool:
    # Comparisons are false for NaN.
    return not isinstance(value, bool) and 0 <= value < below


def _blocks(event: dict[str, Any]) -> list[dict[str, Any]]:
    message = event.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []
