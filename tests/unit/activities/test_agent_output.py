"""What the agent's output says about progress and outcome."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.agent.output import COMPLAINT_CHARS, CUT, AgentOutput, LineSplitter
from activities.agent.structured_output import GAVE_UP, judge
from storage.redaction import Redactor
from workflows.messages import NAME_CHARS, RESULT_CHARS
from workflows.runs.messages import LiveProgress, TokenUsage
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause

AT = datetime(2026, 1, 2, tzinfo=UTC)
GOOD = {"type": "result", "subtype": "success", "is_error": False, "result": "All done.", "num_turns": 3}
# Claude Code reports a refused request with the subtype of a success: is_error is what counts.
REFUSED = {"type": "result", "subtype": "success", "is_error": True, "result": "API Error: 400 bad"}
CONFIRMED = {"type": "control_response", "response": {"subtype": "success", "request_id": "interrupt-1"}}
ABORTED = {"type": "result", "subtype": "error_during_execution", "is_error": True}
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
        ([CONFIRMED, ABORTED], 1, None),
        ([CONFIRMED, ABORTED], 137, Cause.AGENT_EXIT),
        ([CONFIRMED, ABORTED, REFUSED], 1, Cause.AGENT_ERROR),
        ([ABORTED, CONFIRMED], 1, Cause.AGENT_ERROR),
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


DEEP = json.loads("[" * 200 + "]" * 200)


@pytest.mark.parametrize(
    ("event", "output", "said"),
    [
        ({**GOOD, "structured_output": {"answer": 42}}, {"answer": 42}, None),
        ({**GOOD, "structured_output": {"why": "hunter2!"}}, {"why": "[redacted:TOKEN]"}, None),
        ({**GOOD, "structured_output": {"answer": 1, "why": "a\ud800b"}}, {"answer": 1, "why": "a?b"}, None),
        (GOOD, None, "is missing"),
        ({**GOOD, "structured_output": None}, None, "is missing"),
        ({**GOOD, "structured_output": {"answer": "hunter2!"}}, None, '"[redacted:TOKEN]" is not of type "integer"'),
        ({**GOOD, "structured_output": {"answer": 1, "why": DEEP}}, None, "nested deeper"),
        ({**GOOD, "structured_output": {"answer": 2**70}}, None, "63 bits"),
        ({**GOOD, "structured_output": {"answer": float("nan")}}, None, "JSON has not"),
        ({**GOOD, "structured_output": {"answer": 1, "why": "x" * 70_000}}, None, "bytes as JSON"),
        ({"type": "result", "subtype": GAVE_UP, "is_error": True}, None, GAVE_UP),
    ],
)
def test_a_run_with_a_schema_ends_with_an_output_that_fits_or_for_the_want_of_one(event, output, said) -> None:
    taken = AgentOutput(Redactor({"TOKEN": "hunter2!"}).redact_text)
    line = json.dumps(event)
    taken.take(line, len(line) + 1, AT)
    result = taken.outcome(0, None)
    judge(result, {"type": "object", "properties": {"answer": {"type": "integer"}}}, taken.unkept)
    assert AgentResult.model_validate_json(result.model_dump_json()).output == output
    assert (result.cause, result.error) == (None, None) if said is None else result.cause is Cause.OUTPUT_INVALID
    assert said is None or (result.error and said in result.error)


def test_what_nobody_asked_for_is_no_output() -> None:
    result = output_of({**GOOD, "structured_output": {"answer": 42}}).outcome(0, None)
    judge(result, None, None)
    assert (result.cause, result.output) == (None, None)


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


# --- a guest that says anything


BYTES_MOST = 256 * 1024  # of a result in the history of its run
FIELDS = ["type", "subtype", "is_error", "result", "errors", "session_id", "num_turns", "total_cost_usd", "message"]
FIELDS += ["content", "name"]
words = st.sampled_from(["result", "assistant", "user", "success", "tool_use", "tool_result", "\ud800", "x" * 100_000])
numbers = st.sampled_from([0, -1, 2**63, 10**30, float("nan"), float("inf"), -0.5, True, 10**4000])
values = st.recursive(
    st.none() | st.text(max_size=5) | words | numbers,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=6),
    max_leaves=12,
)
events = st.dictionaries(st.sampled_from(FIELDS), values, max_size=8).map(lambda event: json.dumps(event).encode())
DEEP = [b"[" * 200_000, b'{"a":' * 100_000, b'{"type":"result","errors":' + b"[" * 900 + b"]" * 900 + b"}"]
LONG = [
    b'{"type":"result","subtype":"success","' + field + b'":"' + b"A" * 10_000_000 + b'"}'
    for field in (b"result", b"session_id", b"name", b"errors")
]
NUMBERS = [
    b'{"type":"result","subtype":"success","num_turns":' + number + b"}" for number in (b"9" * 5000, b"1e999", b"-1")
]


def guest_says(data: bytes, exit_code: int | None = 0) -> AgentResult:
    output = AgentOutput()
    for take, lines in ((output.take, LineSplitter()), (output.take_error, LineSplitter())):
        for line, size in lines.feed(data):
            take(line.decode(errors="replace"), size, AT)
    LiveProgress.model_validate_json(LiveProgress(**output.progress.model_dump()).model_dump_json())
    result = output.outcome(exit_code, TokenUsage(requests=1))
    written = result.model_dump_json()
    assert len(written.encode()) < BYTES_MOST
    return AgentResult.model_validate_json(written)


@given(st.lists(st.binary(max_size=300) | events | st.sampled_from([*DEEP, *NUMBERS]), max_size=6))
def test_whatever_a_guest_writes_is_read_and_stays_small(pieces: list[bytes]) -> None:
    guest_says(b"\n".join([*pieces, b""]), exit_code=None)


@pytest.mark.parametrize("line", [*DEEP, *LONG, *NUMBERS], ids=lambda line: line[:40].decode())
def test_lines_too_deep_and_too_long(line: bytes) -> None:
    result = guest_says(line + b"\n" + json.dumps(GOOD).encode() + b"\n")
    assert (result.cause, result.result, result.num_turns) == (None, "All done.", 3)


def test_a_long_result_is_cut_with_a_sign_and_is_a_success_all_the_same() -> None:
    result = guest_says(LONG[0] + b"\n")
    assert result.cause is None
    assert result.result is not None
    assert len(result.result) == RESULT_CHARS
    assert result.result.endswith(CUT)


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"\n", b"long" * 20]), max_size=30))
def test_lines_are_whole_or_left_out_and_every_byte_is_counted(pieces: list[bytes]) -> None:
    data, splitter = b"".join(pieces), LineSplitter(most=16)
    taken = [line for piece in pieces for line in splitter.feed(piece)] + list(splitter.feed(b"\n"))
    assert [line for line, _ in taken if line] == [line for line in data.split(b"\n") if 0 < len(line) <= 16]
    assert sum(size for _, size in taken) == len(data) + 1


def test_a_line_without_an_end_costs_no_memory() -> None:
    splitter = LineSplitter(most=1000)
    counted = sum(size for _ in range(10_000) for line, size in splitter.feed(b"A" * 500) if not line)
    assert counted == 10_000 * 500
    assert len(splitter._begun) == 0


@pytest.mark.parametrize(("requests", "cause"), [(0, Cause.MODEL_NOT_ASKED), (1, None)])
def test_a_success_without_the_model_is_none(requests: int, cause: Cause | None) -> None:
    assert output_of(GOOD).outcome(0, TokenUsage(requests=requests)).cause is cause


def test_an_agent_that_is_gone_without_an_exit_code_did_not_succeed() -> None:
    result = output_of(GOOD).outcome(None, None)
    assert (result.exit_code, result.cause, result.result) == (None, Cause.AGENT_EXIT, "All done.")


@given(padding=st.integers(0, 40), limit=st.sampled_from([NAME_CHARS, COMPLAINT_CHARS, RESULT_CHARS]))
def test_no_part_of_a_secret_is_left_where_a_text_is_cut(padding: int, limit: int) -> None:
    secret = "canary-2f6b1c0a-55e1-4c7e"
    said = "x" * (limit - padding) + secret + "y" * 100
    output = AgentOutput(Redactor({"TOKEN": secret}).redact_text)
    output.take_error(said, len(said), AT)
    call = {"type": "assistant", "message": {"content": [{"type": "tool_use", "name": said}]}}
    output.take(json.dumps(call), len(said), AT)
    shown = [output.progress.current_tool or "", output.outcome(1, None).error or ""]
    for event in ({"subtype": said, "result": said}, {"subtype": "success", "result": said}, {"errors": [said]}):
        output.take(json.dumps({"type": "result", **event}), len(said), AT)
        shown.append(output.outcome(0, None).model_dump_json())

    assert not any(secret[:8] in text for text in shown)
