"""What the agent's output says about progress and outcome."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from activities.agent_output import AgentOutput
from workflows.states import Cause

AT = datetime(2026, 1, 2, tzinfo=UTC)
GOOD = {"type": "result", "subtype": "success", "is_error": False, "result": "All done.", "num_turns": 3}
# Claude Code reports a refused request with the subtype of a success: is_error is what counts.
REFUSED = {"type": "result", "subtype": "success", "is_error": True, "result": "API Error: 400 bad"}
TURNS = {"type": "result", "subtype": "error_max_turns", "is_error": True}


def output_of(*events: object) -> AgentOutput:
    output = AgentOutput()
    for event in events:
        line = event if isinstance(event, str) else json.dumps(event)
        output.take(line, len(line) + 1, AT)
    return output


@pytest.mark.parametrize(
    ("events", "exit_code", "cause"),
    [
        ([GOOD], 0, None),
        ([GOOD], 1, Cause.AGENT_EXIT),
        ([REFUSED], 1, Cause.AGENT_ERROR),
        ([REFUSED], 0, Cause.AGENT_ERROR),
        ([TURNS], 1, Cause.AGENT_ERROR),
        ([REFUSED, GOOD], 0, None),
        ([GOOD, REFUSED], 1, Cause.AGENT_ERROR),
        ([], 0, Cause.AGENT_NO_RESULT),
        ([], 137, Cause.AGENT_EXIT),
        (["not json", "[1]", '{"type": "assistant", "message": 5}'], 0, Cause.AGENT_NO_RESULT),
    ],
)
def test_success_is_a_good_last_result_and_exit_code_0_and_nothing_less(events, exit_code, cause) -> None:
    result = output_of(*events).outcome(exit_code, None)
    assert result.cause is cause
    assert (result.error is None) == (cause is None)
    assert result.exit_code == exit_code


def test_the_error_of_a_crash_names_the_last_line_of_stderr() -> None:
    output = AgentOutput()
    output.take_error("setpriv: failed to execute claude", 34, AT)
    output.take_error("  ", 3, AT)
    assert output.outcome(127, None).error == "Claude Code exited with code 127: setpriv: failed to execute claude"


def test_progress_counts_tools_and_bytes_and_knows_when_the_agent_waits() -> None:
    call = {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": "Bash"}, {"type": "text"}]}}
    answer = {"type": "user", "message": {"content": [{"type": "tool_result"}]}}
    output = output_of(call)
    assert (output.progress.tool_calls, output.progress.current_tool, output.idle) == (1, "Bash", False)
    output.take(json.dumps(answer), 10, AT)
    assert output.progress.current_tool is None
    output.take(json.dumps(GOOD), 20, AT)
    assert output.idle
    assert output.progress.output_bytes == len(json.dumps(call)) + 1 + 30
    assert output.progress.last_activity_at == AT
