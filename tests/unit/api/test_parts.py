"""Small parts of the API: ranges, bodies, labels, visibility queries, log forms."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, ClassVar, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from temporalio.client import WorkflowExecution, WorkflowExecutionStatus

from api.http.ranges import parse_range
from api.http.rates import Rates
from api.native.envelope import read_body
from api.native.log_formats import EventStream, JsonLines, PlainText, negotiate
from api.native.parameters import parse_since, parse_states
from api.runs.acceptance import accept
from api.runs.core import Core, TaskView, new_task_id
from api.runs.log import LogQuery
from api.runs.recorded import status_of
from api.runs.retrying import retry
from api.runs.shown import REDACTED, definition
from api.temporal.keywords import label_token
from foundation.documents import Document
from foundation.errors import InvalidManifest, InvalidParameter, RangeNotSatisfiable, TaskyardError
from storage.runlog import LogEntry
from workflows.names import STATE_KEY
from workflows.runs.messages import TaskStatus
from workflows.runs.states import TaskState
from workflows.specs.wire import Manifest

AT = datetime(2026, 1, 29, 10, 30, tzinfo=UTC)


def entry(data: str, stream: Any = "stdout", number: int = 7) -> LogEntry:
    return LogEntry(id=number, ts=AT, stream=stream, data=data)


@pytest.mark.parametrize(
    ("header", "part"),
    [
        (None, None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 10)),
        ("bytes=90-500", (90, 10)),
        ("bytes=-30", (70, 30)),
        ("bytes=-300", (0, 100)),
        ("bytes=20-10", None),
        ("bytes=-", None),
        ("bytes=1-2,5-6", None),
        ("lines=1-2", None),
    ],
)
def test_a_range_is_offset_and_length_and_nonsense_is_the_whole(
    header: str | None, part: tuple[int, int] | None
) -> None:
    assert parse_range(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=500-600", "bytes=-0"])
def test_a_range_beyond_the_end_cannot_be_satisfied(header: str) -> None:
    with pytest.raises(RangeNotSatisfiable):
        parse_range(header, 100)


def test_each_client_and_kind_has_a_limit_of_its_own_and_the_oldest_request_frees_its_place() -> None:
    now = 0.0
    rates = Rates({"submit": 2}, lambda: now)

    def refused(client: str = "a") -> bool:
        standing = rates.take("submit", client)
        assert standing is not None
        assert standing.headers["X-RateLimit-Remaining"] == str(standing.remaining)
        return standing.refused

    assert rates.take("list", "a") is None
    assert [refused(), refused(), refused(), refused("b")] == [False, False, True, False]
    now = 59.0
    assert refused()
    now = 60.0
    assert [refused(), refused(), refused()] == [False, False, True]
    now = 10_000.0
    assert not refused("c")
    assert list(rates._requests) == [("submit", "c")]


@given(st.text(), st.text())
def test_no_label_can_break_out_of_a_keyword(key: str, value: str) -> None:
    assert not set(label_token(key, value)) & set("'\"\\♡\n\0")


@given(st.tuples(st.text(), st.text()), st.tuples(st.text(), st.text()))
def test_labels_that_differ_have_tokens_that_differ(one: tuple[str, str], other: tuple[str, str]) -> None:
    if "=" not in one[0] + other[0]:
        assert (label_token(*one) == label_token(*other)) == (one == other)


def test_states_are_words_with_commas_between_them() -> None:
    assert parse_states(" running, failed,") == {TaskState.RUNNING, TaskState.FAILED}
    with pytest.raises(InvalidParameter, match="'runing' is not a state; states are pending, "):
        parse_states("runing")


def test_ids_made_here_are_valid_and_unlike() -> None:
    made = [new_task_id() for _ in range(100)]
    assert len(set(made)) == 100
    one = made[0]
    metadata = {"name": "x", "id": one}
    repository = {"url": "https://a.invalid/b", "branch": "m"}
    submission = accept(Document({"metadata": metadata, "repository": repository, "claude": {"prompt": "p"}}))
    assert submission.manifest.metadata.id == one


def test_what_this_installation_cannot_keep_is_refused_together_with_all_other_faults() -> None:
    with pytest.raises(InvalidManifest) as refused:
        accept(
            Document(
                {
                    "metadata": {"name": "x", "labels": {"key": "v" * 300}},
                    "repository": {"url": "https://a.invalid/b"},
                    "claude": {"prompt": "p"},
                    "vm": {"network_mode": "full", "allowed_hosts": ["a.invalid", "*"]},
                }
            )
        )
    assert {fault["field"] for fault in refused.value.details["errors"]} == {
        "repository.branch",
        "vm.allowed_hosts[1]",
        "metadata.labels.key",
    }


def test_what_changes_nothing_here_is_named_and_not_refused() -> None:
    data = {
        "metadata": {"name": "x"},
        "repository": {"url": "https://a.invalid/b", "branch": "m"},
        "claude": {"prompt": "p"},
        "parent_id": "t-1",
        "children": {"max_concurrent": 2},
        "startup_profile": None,
    }
    submission = accept(Document(data))
    assert submission.manifest.metadata.name == "x"
    assert [warning["field"] for warning in submission.warnings] == ["parent_id", "children"]


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"env": {"A": "${TOKEN}", "B": "${TOKEN:-none}", "C": "literal", "D": 1}},
         {"env": {"A": "${TOKEN}", "B": "${TOKEN:-none}", "C": REDACTED, "D": REDACTED}}),
        ({"headers": {"Authorization": "Bearer abc"}}, {"headers": {"Authorization": REDACTED}}),
        ({"args": ["-y", "server", "--api-key", "abc", "--access-token=abc", "--verbose"]},
         {"args": ["-y", "server", "--api-key", REDACTED, f"--access-token={REDACTED}", "--verbose"]}),
        ({"args": ["--token", "${TOKEN}", "--header", "Authorization: Bearer abc"]},
         {"args": ["--token", "${TOKEN}", "--header", f"Authorization: {REDACTED}"]}),
        ({"url": "https://me:abc@mcp.invalid:1/sse?key=abc&x=${X}"},
         {"url": f"https://mcp.invalid:1/sse?key={REDACTED}&x=${{X}}"}),
        ({"oauth": {"clientSecret": "abc", "clientId": "me"}}, {"oauth": {"clientSecret": REDACTED, "clientId": "me"}}),
        ({"args": ["x", "sk-" + "x" * 20]}, {"args": ["x", REDACTED]}),
    ],
)  # fmt: skip
def test_a_definition_shows_no_secret_that_an_mcp_server_was_given(config: Any, shown: Any) -> None:
    # Of a version that took what is refused now.
    manifest = Manifest.model_validate(
        {
            "metadata": {"name": "x"},
            "repository": {"url": "https://ghp_abc@a.invalid/b", "branch": "m"},
            "claude": {"prompt": "p", "mcp_config": {"mcpServers": {"one": config}}},
            "secrets": [{"name": "TOKEN", "source": "env", "key": "HOST_TOKEN"}],
        }
    )
    told = definition(manifest)
    assert told["claude"]["mcp_config"] == {"mcpServers": {"one": shown}}
    assert told["repository"]["url"] == "https://a.invalid/b"
    assert "HOST_TOKEN" not in json.dumps(told)


@given(
    st.dictionaries(
        st.text(), st.text() | st.lists(st.text() | st.none()) | st.dictionaries(st.text(), st.lists(st.text()))
    )
)
def test_a_definition_shows_mcp_servers_of_any_shape(config: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(
        {
            "metadata": {"name": "x"},
            "repository": {"url": "https://a.invalid/b", "branch": "m"},
            "claude": {"prompt": "p", "mcp_config": {"mcpServers": {"one": config}}},
        }
    )
    told = definition(manifest)["claude"]["mcp_config"]["mcpServers"]["one"]
    assert told.keys() == config.keys()
    assert [len(told[name]) for name in told if isinstance(told[name], list)] == [
        len(part) for part in config.values() if isinstance(part, list)
    ]


async def test_a_retry_says_again_what_its_manifest_says_in_vain() -> None:
    manifest = Manifest.model_validate(
        {
            "metadata": {"name": "x", "id": "a"},
            "repository": {"url": "https://a.invalid/b", "branch": "m"},
            "claude": {"prompt": "p"},
            "vm": {"allowed_hosts": ["b.invalid"]},
        }
    )

    class OneRun:
        async def status(self, task_id: str, *, definition: bool) -> TaskView:
            assert definition
            at = {"created_at": AT, "state_changed_at": AT}
            return TaskView(
                TaskStatus.model_validate({"id": task_id, "name": "x", "manifest": manifest} | at), live=True
            )

        async def submit(self, again: Manifest, *, viewer: str | None) -> TaskStatus:
            assert viewer == "somebody"
            return TaskStatus(id="b", name="x", labels=again.metadata.labels, created_at=AT, state_changed_at=AT)

    status, warnings = await retry(cast("Core", OneRun()), "a", "somebody")
    assert status.labels == {"retry-of": "a"}
    assert [warning["field"] for warning in warnings] == ["vm.allowed_hosts"]


@pytest.mark.parametrize("memo", [{"state": "napping"}, {"id": 7}, {}, [], "x", 1, b"\xff"])
@pytest.mark.parametrize("state", ["running", "napping", ""])
async def test_a_run_whose_memo_or_state_cannot_be_read_is_shown_by_what_temporal_knows(memo: Any, state: str) -> None:
    class Execution:
        id, start_time, close_time, status = "task-a", AT, None, WorkflowExecutionStatus.RUNNING
        typed_search_attributes: ClassVar[dict[Any, Any]] = {STATE_KEY: state}

        async def memo_value(self, _key: str, _default: None, *, type_hint: type[TaskStatus]) -> TaskStatus:
            return type_hint.model_validate(memo)

    status = await status_of(cast("WorkflowExecution", Execution()))
    assert (status.id, status.created_at) == ("a", AT)
    assert status.state == (state if state in set(TaskState) else TaskState.PENDING)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b'{"metadata": {"name": "\\ud800"}}', "metadata.name"),
        (b'{"claude": {"allowed_tools": ["a", "\\udfff"]}}', "claude.allowed_tools[1]"),
        (b'{"metadata": {"labels": {"\\ud800": "x"}}}', "metadata.labels"),
    ],
)
def test_text_that_is_no_unicode_is_refused_where_it_stands(body: bytes, field: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        accept(read_body("application/json", body))
    faults = [fault["field"] for fault in refused.value.details["errors"] if fault["validation"] == "unicode"]
    assert faults == [field]
    refused.value.message.encode()


@pytest.mark.parametrize("data", [None, [], "text", {"vm": 1}, {"metadata": {"labels": [1]}}, {1: 2}])
def test_data_of_any_shape_is_refused_as_a_manifest_fault(data: Any) -> None:
    with pytest.raises(InvalidManifest):
        accept(Document(data))


@pytest.mark.parametrize(
    ("content_type", "body", "data"),
    [
        ("application/json; charset=utf-8", b'{"claude": 1}', {"claude": 1}),
        ("application/yaml", b"claude: 1", {"claude": 1}),
        ("application/x-www-form-urlencoded", b'\t{"claude": 1}', {"claude": 1}),
        ("", b"{claude: 1}", {"claude": 1}),
        ("application/json", b'{"manifest_yaml": "claude: 1"}', {"claude": 1}),
        ("application/json", b'{"manifest": {"claude": 1}, "manifest_yaml": "claude: 2"}', {"claude": 2}),
        ("application/json", b'{"manifest": {"claude": 1}, "manifest_yaml": null}', {"claude": 1}),
        ("application/json", b'{"manifest": null, "manifest_yaml": "claude: 2"}', {"claude": 2}),
        ("application/json", b'{"manifest_yaml": null}', None),
        ("application/json", b'{"manifest": 1, "repository": 2}', {"manifest": 1, "repository": 2}),
    ],
)
def test_bodies_are_read_by_their_type_and_envelopes_opened(content_type: str, body: bytes, data: Any) -> None:
    document = read_body(content_type, body)
    assert document.data == data
    assert bool(document.remarks) == (b'1}, "manifest_yaml": "' in body)


@pytest.mark.parametrize(
    ("accepted", "follow", "kind"),
    [
        ("text/event-stream", False, EventStream),
        ("*/*", True, EventStream),
        ("", False, PlainText),
        ("*/*", False, PlainText),
        ("application/x-ndjson", True, JsonLines),
        ("text/plain", True, PlainText),
    ],
)
def test_the_log_is_written_as_accept_and_follow_ask(accepted: str, follow: bool, kind: type) -> None:
    assert isinstance(negotiate(accepted, follow=follow), kind)


@given(st.text())
def test_every_line_of_the_log_stays_one_line_of_ndjson_and_comes_back_whole(text: str) -> None:
    written = JsonLines().entry(entry(text))
    assert len(written.decode().splitlines()) == 1
    assert json.loads(written)["data"] == text


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r")))
def test_every_line_of_the_log_comes_back_whole_from_an_event(text: str) -> None:
    written = EventStream().entry(entry(text.replace("\n", "") + "\n")).decode()
    name, data, number, *end = written.split("\n")
    assert (name, number, end) == ("event: stdout", "id: 7", ["", ""])
    assert data == "data: " + text.replace("\n", "")


def test_plain_text_names_time_and_stream_on_every_line() -> None:
    assert PlainText().entry(entry("a\nb\n", "stderr")).decode() == (
        "[2026-01-29T10:30:00.000Z] [STDERR] a\n[2026-01-29T10:30:00.000Z] [STDERR] b\n"
    )
    assert b"out of reach" in PlainText().error(TaskyardError("out of reach"))


def test_parts_of_a_log_are_chosen_by_stream_and_time() -> None:
    assert LogQuery(stream="events").wants(entry("{}", "event"))
    assert not LogQuery(stream="stderr").wants(entry("x"))
    assert parse_since("2026-01-29T10:30:00") == AT
    # The plus sign of an offset, as it arrives when it was not percent-encoded.
    assert parse_since("2026-01-29T12:30:00 02:00") == AT
    assert LogQuery(since=AT).wants(entry("x"))
    with pytest.raises(InvalidParameter, match="not an ISO-8601 time"):
        parse_since("yesterday")
