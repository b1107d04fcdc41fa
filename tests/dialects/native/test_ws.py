"""The WebSocket of task events, as a client of its own port sees it."""

from __future__ import annotations

import asyncio
import gc
import json
import uuid
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest
from temporalio import activity
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.api_site import ApiSite, until
from workflows.runs.messages import LiveProgress, MachineFigures
from workflows.runs.requests import AgentRequest, AgentResult
from workflows.runs.states import Cause

FIGURES = MachineFigures(
    at=datetime(2030, 1, 1, tzinfo=UTC),
    cpu_percent=12.5,
    memory_used_bytes=300,
    memory_total_bytes=1000,
    disk_used_bytes=5,
    disk_total_bytes=60,
    load_avg=(0.5, 0.25, 0.1),
)


def stream(site: ApiSite, query: str, *, own_port: bool = True, **options: Any) -> connect:
    port = site.settings.ws_port if own_port else site.settings.api_port
    return connect(f"ws://127.0.0.1:{port}/api/v1/tasks/stream?{query}", **options)


async def told(socket: ClientConnection) -> list[dict[str, Any]]:
    """Every event up to the end of the stream."""
    events = []
    try:
        async with asyncio.timeout(60):
            while True:
                events.append(json.loads(await socket.recv()))
    except ConnectionClosed:
        return events


def waiting() -> tuple[int, int]:
    """Events in this process's queues and bytes in its connections' buffers, both still to be taken by someone."""
    # By type: isinstance would ask weak references for what they refer to, which may be gone.
    alive = [(type(one), one) for one in gc.get_objects()]
    return (
        sum(one.qsize() for kind, one in alive if issubclass(kind, asyncio.Queue)),
        sum(one.get_write_buffer_size() for kind, one in alive if issubclass(kind, asyncio.WriteTransport)),
    )


async def next_of(socket: ClientConnection, kind: str) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while True:
            event = json.loads(await socket.recv())
            if event["type"] == kind:
                return dict(event)


def states(events: list[dict[str, Any]]) -> list[tuple[str | None, str]]:
    return [(event["previous_state"], event["new_state"]) for event in events if event["type"] == "state_change"]


def output(events: list[dict[str, Any]]) -> list[str]:
    return [event["data"] for event in events if event["type"] == "output"]


async def test_a_run_is_told_from_its_present_state_to_its_end_and_the_stream_closes(site: ApiSite) -> None:
    over = asyncio.Event()

    async def run(_: AgentRequest) -> AgentResult:
        while not over.is_set():
            progress = LiveProgress(
                output_bytes=7, tool_calls=2, current_tool="Bash", last_activity_at=FIGURES.at, machine=FIGURES
            )
            activity.heartbeat(progress)
            await asyncio.sleep(0.05)
        return AgentResult(exit_code=0, result="done")

    site.steps.instead["run_agent"] = run
    task_id = await site.submit()
    async with stream(site, f"task_id={task_id}") as socket:
        first = json.loads(await socket.recv())
        assert (first["type"], first["task_id"]) == ("state_change", task_id)
        assert (first["previous_state"], first["new_state"]) == (None, "pending")
        async with site.worker() as steps:
            await steps.agent_running.wait()
            await site.write_log(task_id, "one", "zwei ü")
            line = await next_of(socket, "output")
            assert {key: line[key] for key in ("stream", "data", "bytes")} == {
                "stream": "stdout", "data": "one\n", "bytes": 4,
            }  # fmt: skip
            figures = await next_of(socket, "metrics")
            assert figures["metrics"] == FIGURES.model_dump(mode="json", exclude={"at"})
            assert datetime.fromisoformat(figures["timestamp"]) == FIGURES.at
            over.set()
            rest = await told(socket)
    assert (socket.close_code, states(rest)[-1]) == (1000, ("completing", "completed"))
    async with stream(site, f"task_id={task_id}", own_port=False) as again:
        replayed = await told(again)
    assert output(replayed) == ["one\n", "zwei ü\n"]
    assert (states(replayed), again.close_code) == ([(None, "completed")], 1000)


async def test_every_state_is_told_in_order_however_short_it_was(site: ApiSite) -> None:
    task_id = await site.submit()
    async with stream(site, f"task_id={task_id}&filter=state_change,progress") as socket:
        await socket.recv()
        site.steps.instead["run_agent"] = lambda _: AgentResult(
            exit_code=3, cause=Cause.AGENT_EXIT, error="left with 3"
        )
        async with site.worker():
            events = await told(socket)
    way = ["pending", "staging", "provisioning", "ready", "running", "completing", "failed"]
    assert states(events) == list(pairwise(way))
    assert {event["type"] for event in events} == {"state_change"}
    async with stream(site, f"task_id={task_id}&filter=error") as socket:
        (error,) = await told(socket)
    assert (error["type"], error["error"], error["message"]) == ("error", "agent_exit", "left with 3")
    assert error["details"] == {"exit_code": 3}


@pytest.mark.parametrize(
    ("query", "code", "error"),
    [
        ("task_id=never-was", 4404, "task_not_found"),
        ("task_id=..%2Fx", 4404, "task_not_found"),
        ("task_id=https://a:hush@b/", 4404, "task_not_found"),
        ("filter=https://a:hush@b/", 4400, "invalid_parameter"),
        ("https://a:hush@b/=1", 4400, "invalid_parameter"),
        ("filter=output,noise", 4400, "invalid_parameter"),
        ("task_id=never-was&after_id=-1", 4400, "invalid_parameter"),
    ],
)
async def test_what_cannot_be_streamed_is_refused_by_an_event_and_a_close_code(
    site: ApiSite, query: str, code: int, error: str
) -> None:
    async with stream(site, query) as socket:
        (event,) = await told(socket)
    assert (event["type"], event["error"], socket.close_code) == ("error", error, code)
    assert event["message"].startswith((socket.close_reason or "?")[:50])
    assert "hush" not in f"{event} {socket.close_reason}"


async def test_without_a_run_all_runs_are_told(site: ApiSite) -> None:
    earlier = await site.submit()
    async with stream(site, "") as socket:
        seen: list[dict[str, Any]] = []

        async def until_told(task_id: str, state: str) -> None:
            async with asyncio.timeout(60):
                while not any(
                    event["type"] == "state_change" and (event["task_id"], event["new_state"]) == (task_id, state)
                    for event in seen
                ):
                    seen.append(json.loads(await socket.recv()))

        await until_told(earlier, "pending")
        async with site.worker() as steps:
            await steps.agent_running.wait()
            await site.write_log(earlier, "from the earlier one")
            later = await site.submit()
            await until_told(later, "running")
            await site.write_log(later, "from the later one")
            steps.agent_over.set()
            for task_id in (earlier, later):
                await until_told(task_id, "completed")
    for task_id, line in ((earlier, "from the earlier one\n"), (later, "from the later one\n")):
        mine = [event for event in seen if event["task_id"] == task_id]
        assert output(mine) == [line]
        chain = states(mine)
        assert [after for _, after in chain[:-1]] == [before for before, _ in chain[1:]]
        assert len(chain) == len(set(chain))
    # The stream of all runs goes on after the end of some.
    assert socket.close_code != 1011


async def test_a_run_ended_past_its_own_steps_ends_its_stream(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.runs.watching.sources._LOG_PATIENCE_SECONDS", 0.2)
    task_id = await site.submit()
    await site.write_log(task_id, "one")
    async with stream(site, f"task_id={task_id}") as socket:
        await next_of(socket, "output")
        await site.temporal.get_workflow_handle(f"task-{task_id}").terminate()
        events = await told(socket)
    assert [event["type"] for event in events] == ["error", "state_change"]
    assert (events[1]["new_state"], socket.close_code) == ("failed", 1000)


async def test_a_client_goes_on_after_the_line_it_has(site: ApiSite) -> None:
    task_id = await site.submit()
    await site.write_log(task_id, *(f"line {n}" for n in range(5)))
    async with stream(site, f"task_id={task_id}&filter=output&after_id=3") as socket:
        event = await next_of(socket, "output")
    assert (event["data"], event["id"]) == ("line 3\n", 4)


async def test_slow_clients_cost_no_memory_hold_up_nobody_and_miss_nothing(site: ApiSite) -> None:
    lines, length, slow_clients = 12_000, 500, 40
    task_id = await site.submit()
    text = f"{uuid.uuid4().hex} {'x' * length}"
    async with site.worker() as steps:
        await steps.agent_running.wait()
        query = f"task_id={task_id}&filter=output,state_change"
        # One that reads nothing hears no answer to its own pings either: it must not take that for the end.
        slow = [await stream(site, query, max_queue=1, ping_interval=None) for _ in range(slow_clients)]
        for socket in slow:
            await socket.recv()
        fast = asyncio.create_task(_all_output(site, query))
        for begin in range(0, lines, 3000):
            await site.write_log(task_id, *(f"{n} {text}" for n in range(begin, begin + 3000)))
        steps.agent_over.set()
        received = await fast
        assert [int(line.split()[0]) for line in received] == list(range(lines))
        # Each of the slow ones has as good as all of it still to come.
        events, size = waiting()
        assert events < slow_clients * lines / 100
        assert size < slow_clients * lines * length / 25
        late = output(await told(slow[0]))
        assert [int(line.split()[0]) for line in late] == list(range(lines))
        for socket in slow[1:]:
            socket.transport.abort()

    async def nobody() -> bool:
        return site.app.services.followers.followed == {}

    await until(nobody, "the streams to end")


async def _all_output(site: ApiSite, query: str) -> list[str]:
    async with stream(site, query) as socket:
        return output(await told(socket))
