"""What the agent's stream-json output tells: progress, the result, and with the exit code the outcome."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from workflows.messages import AgentProgress, AgentResult, TokenUsage
from workflows.states import Cause


class AgentOutput:
    """Reads the agent's stdout line by line; the same lines give the same answer, so a new attempt reads them again."""

    def __init__(self) -> None:
        self.progress = AgentProgress()
        self.results = 0
        self.last_result: dict[str, Any] | None = None
        self.last_error_line: str | None = None
        #: True between a result and the next output: the agent waits for input.
        self.idle = False

    def take(self, line: str, size: int, at: datetime) -> None:
        """One line of stdout of ``size`` bytes, written at ``at``."""
        self.progress.output_bytes += size
        self.progress.last_activity_at = at
        try:
            event = json.loads(line)
        except ValueError:
            return
        if not isinstance(event, dict):
            return
        self.idle = event.get("type") == "result"
        match event.get("type"):
            case "assistant":
                for block in _blocks(event):
                    if block.get("type") == "tool_use":
                        self.progress.tool_calls += 1
                        self.progress.current_tool = str(block.get("name"))
            case "user":
                if any(block.get("type") == "tool_result" for block in _blocks(event)):
                    self.progress.current_tool = None
            case "result":
                self.results += 1
                self.last_result = event
                self.progress.current_tool = None

    def take_error(self, line: str, size: int, at: datetime) -> None:
        """One line of stderr."""
        self.progress.output_bytes += size
        self.progress.last_activity_at = at
        if line.strip():
            self.last_error_line = line.strip()[:500]

    def outcome(self, exit_code: int, usage: TokenUsage | None) -> AgentResult:
        """The agent's end: success is a result that is no error *and* exit code 0, nothing less."""
        result = self.last_result or {}
        text = result.get("result")
        subtype = str(result.get("subtype", ""))
        failed = self.last_result is not None and (bool(result.get("is_error")) or subtype != "success")
        cause: Cause | None = None
        error: str | None = None
        if failed:
            cause = Cause.AGENT_ERROR
            error = f"Claude Code ended with an error ({subtype}): {_shortened(text or result.get('errors'))}"
        elif exit_code != 0:
            cause = Cause.AGENT_EXIT
            error = f"Claude Code exited with code {exit_code}"
            error += f": {self.last_error_line}" if self.last_error_line else "."
        elif self.last_result is None:
            cause = Cause.AGENT_NO_RESULT
            error = "Claude Code exited with code 0, but reported no result; its log shows how far it came."
        return AgentResult(
            exit_code=exit_code,
            cause=cause,
            error=error,
            result=text if isinstance(text, str) else None,
            session_id=result.get("session_id"),
            num_turns=result.get("num_turns"),
            total_cost_usd=result.get("total_cost_usd"),
            usage=usage,
            progress=self.progress,
        )


def _blocks(event: dict[str, Any]) -> list[dict[str, Any]]:
    message = event.get("message")
    content = message.get("content") if isinstance(message, dict) else None
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _shortened(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 500 else text[:499] + "…"  # noqa: PLR2004 -- a sentence, not a log
