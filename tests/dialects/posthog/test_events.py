"""Stream, pages and whole log of a run, over real Temporal and a real bucket, as clients of the dialect read them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest

from api.runs.acceptance import accept
from foundation.documents import Document
from storage.layout import TASKS
from tests.api_site import ApiSite, manifest, until
from tests.dialects.posthog.watcher import SentEvent, Watcher, sent_events
from tests.stand_ins.fake_steps import FakeSteps
from workflows.parents.messages import ParentFields
from workflows.told.record import Change
from workflows.told.states import LocalState

RECORDED = (Path(__file__).parent / "recorded/conversation.jsonl").read_text().splitlines()
SSE = {"Accept": "text/event-stream"}
COMPLETE = {"status": "complete"}


@asynccontextmanager
async def live_run(site: ApiSite) -> AsyncIterator[tuple[str, str, FakeSteps]]:
    """A run whose agent works until ``steps.agent_over`` is set: its path below the project, and its id."""
    services = site.app.services
    parent = await services.parents.create("7", ParentFields(title="Notes"), "somebody")
    run_id = str(uuid4())
    wanted = accept(Document(manifest(metadata={"name": "notes", "id": run_id}))).manifest
    async with site.worker() as steps:
        await services.core.submit(wanted, parent=parent.id)
        await steps.agent_running.wait()
        yield f"/tasks/{parent.id}/runs/{run_id}", run_id, steps
        steps.agent_over.set()
        await site.temporal.get_workflow_handle(f"task-{run_id}").result()


async def ended_run(site: ApiSite, *lines: str) -> tuple[str, str]:
    """The path and the id of a run that has ended, with these lines in its log."""
    async with live_run(site) as (path, run_id, _):
        await site.write_log(run_id, *lines)
    return path, run_id


async def streamed(client: httpx.AsyncClient, path: str, *, params: Any = None, after: str = "") -> list[SentEvent]:
    """A stream to its end."""
    headers = SSE | ({"Last-Event-ID": after} if after else {})
    async with client.stream("GET", f"{path}/stream/", params=params, headers=headers) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
        return [sent async for sent in sent_events(reply)]


def notified(events: list[SentEvent]) -> list[SentEvent]:
    return [sent for sent in events if sent.data.get("type") == "notification"]


async def test_a_desktop_client_sees_every_event_once_however_often_its_stream_breaks(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    async with live_run(site) as (path, run_id, steps):
        await site.write_event(run_id, type="user_message", message="Write notes", message_id="prompt")
        await site.write_log(run_id, *RECORDED[:5])
        watcher = Watcher(client, path, cuts=[1, 3, 2, 7])
        watching = asyncio.create_task(watcher.watch())
        await until(lambda: asyncio.sleep(0, watcher.follows and len(watcher.shown) > 3), "the history to be shown")
        for begin in range(5, len(RECORDED), 5):
            await site.write_log(run_id, *RECORDED[begin : begin + 5])
        # A client whose stream breaks when the run has ended takes its word for it, and does not come back.
        await until(lambda: asyncio.sleep(0, watcher.connections >= 5), "every break")
        steps.agent_over.set()
        await watching
    whole = (await client.get(f"{path}/session_logs/", params={"limit": 5000})).json()
    assert watcher.shown == whole
    assert len({entry["event_id"] for entry in whole}) == len(whole)
    assert watcher.connections >= 5
    assert [run["status"] for run in watcher.standings][-1] == "completed"
    assert watcher.ends == [COMPLETE]


async def test_the_stream_of_an_ended_run_is_its_log_its_state_and_an_end(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    path, run_id = await ended_run(site, *RECORDED)
    whole = (await client.get(f"{path}/session_logs", params={"limit": 5000})).json()
    *log, state, end = await streamed(client, path)
    assert [sent.data for sent in log] == whole
    assert [sent.id for sent in log] == [entry["event_id"] for entry in whole]
    assert (state.data["type"], state.data["status"], state.data["run_id"]) == ("task_run_state", "completed", run_id)
    assert state.data.keys() == {
        "type", "run_id", "task_id", "status", "stage", "output", "branch", "error_message", "updated_at",
        "completed_at",
    }  # fmt: skip
    assert (end.event, end.data, end.id) == ("stream-end", COMPLETE, "")
    assert [
        sent.data["type"] for sent in await streamed(client, path, params={"start": "latest"}) if not sent.event
    ] == ["task_run_state"]
    # The header wins, and the stream goes on strictly behind what it names.
    for number, sent in enumerate(log):
        if number % 7 == 0:
            rest = await streamed(client, path, params={"start": "latest"}, after=sent.id)
            assert [later.id for later in notified(rest)] == [later.id for later in log[number + 1 :]]
    assert not notified(await streamed(client, path, after=state.id))


async def test_pages_of_the_log_are_filtered_and_counted(
    site: ApiSite, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = await ended_run(site, *RECORDED)

    async def page(**params: Any) -> tuple[list[Any], dict[str, str]]:
        reply = await client.get(f"{path}/session_logs/", params=params)
        assert reply.status_code == 200, reply.text
        assert reply.headers["cache-control"] == "no-cache"
        assert reply.headers["server-timing"].startswith("filter;dur=")
        return reply.json(), {
            name: reply.headers[f"x-{name}"] for name in ("total-count", "matching-count", "has-more")
        }

    whole, counts = await page()
    total = str(len(whole))
    assert counts == {"total-count": total, "matching-count": total, "has-more": "false"}
    said, counts = await page(event_types="agent_message,_posthog/turn_complete")
    assert len(said) == 4
    assert counts["matching-count"] == "4"
    rest, _ = await page(exclude_types="agent_message, _posthog/turn_complete")
    assert len(rest) == len(whole) - 4
    some, counts = await page(limit=3, offset=1)
    assert (some, counts["has-more"]) == (whole[1:4], "true")
    last, counts = await page(limit=10, offset=len(whole) - 1)
    assert (last, counts["has-more"]) == (whole[-1:], "false")
    assert (await page(offset=10**9))[0] == []
    late, _ = await page(after=whole[-1]["timestamp"])
    assert late == []
    assert (await page(after="2020-01-01T00:00:00+00:00"))[0] == whole
    monkeypatch.setattr("api.posthog.events.table.PAGE_CHARS", 3000)
    pieces: list[Any] = []
    while True:
        piece, counts = await page(offset=len(pieces))
        pieces += piece
        assert piece
        if counts["has-more"] == "false":
            break
    assert pieces == whole


NO_PAGES = [
    ({"limit": "0"}, "limit"),
    ({"limit": "5001"}, "limit"),
    ({"limit": "x"}, "limit"),
    ({"offset": "-1"}, "offset"),
    ({"after": "yesterday"}, "after"),
]


async def test_a_page_that_cannot_be_is_refused(site: ApiSite, client: httpx.AsyncClient) -> None:
    path, _ = await ended_run(site)
    for params, field in NO_PAGES:
        reply = await client.get(f"{path}/session_logs/", params=params)
        assert reply.status_code == 400
        assert (reply.json()["type"], reply.json()["attr"]) == ("validation_error", field)


async def test_the_whole_log_is_one_line_for_each_entry(site: ApiSite, client: httpx.AsyncClient) -> None:
    async with live_run(site) as (path, run_id, _):
        # What clients ask for before there is anything; without a slash, as one of them writes it.
        empty = await client.get(f"{path}/logs")
        assert (empty.status_code, empty.text) == (200, "")
        await site.write_log(run_id, *RECORDED)
    reply = await client.get(f"{path}/logs")
    assert reply.headers["content-type"] == "application/jsonl"
    assert reply.headers["server-timing"].startswith("s3_read;dur=")
    whole = (await client.get(f"{path}/session_logs", params={"limit": 5000})).json()
    assert [json.loads(line) for line in reply.text.splitlines()] == whole


async def test_a_stream_is_refused_to_who_cannot_read_it(site: ApiSite, client: httpx.AsyncClient) -> None:
    path, run_id = await ended_run(site)
    refused = await client.get(f"{path}/stream/", headers={"Accept": "application/json"})
    assert refused.status_code == 406
    assert (refused.json()["type"], refused.json()["code"]) == ("invalid_request", "not_acceptable")
    for accept_header in ("*/*", "application/json, text/event-stream;q=0.5"):
        assert (await client.get(f"{path}/stream/", headers={"Accept": accept_header})).status_code == 200
    assert (await client.get(f"{path}/stream/", headers={"Last-Event-ID": "x"})).status_code == 400
    with pytest.raises(httpx.HTTPStatusError):
        await Watcher(client, path.replace(run_id, str(uuid4()))).watch()
    for part in ("stream", "session_logs", "logs"):
        assert (await client.get(f"{path.replace(run_id, str(uuid4()))}/{part}/")).status_code == 404


async def test_a_silent_stream_gives_signs_of_life_and_is_cut_after_its_time(
    site: ApiSite, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.posthog.events.stream.KEEPALIVE_SECONDS", 0.2)
    monkeypatch.setattr("api.posthog.events.stream.ROTATION_SECONDS", 1.5)
    async with live_run(site) as (path, run_id, _):
        await site.write_log(run_id, *RECORDED[:6])
        events = await streamed(client, path)
        alive = [sent for sent in events if sent.event == "keepalive"]
        assert alive
        assert all((sent.data, sent.id) == ({"type": "keepalive"}, "") for sent in alive)
        assert (events[-1].event, events[-1].data) == ("end", {"type": "rotated"})
        # Back behind the last event there is nothing that was there before.
        assert not notified(await streamed(client, path, after=notified(events)[-1].id))


async def test_a_hundred_followers_of_a_run_have_one_reader(site: ApiSite, client: httpx.AsyncClient) -> None:
    followers = 100
    async with live_run(site) as (path, run_id, steps), AsyncExitStack() as open_streams:
        limits = httpx.Limits(max_connections=None)
        crowd = await open_streams.enter_async_context(
            httpx.AsyncClient(base_url=client.base_url, headers=client.headers, timeout=client.timeout, limits=limits)
        )
        reading = [asyncio.create_task(streamed(crowd, path)) for _ in range(followers)]
        counted = site.app.services.followers
        place = TASKS.place(run_id)
        await until(lambda: asyncio.sleep(0, counted.followed == {place: followers}), "all of them to follow")
        await site.write_log(run_id, *RECORDED)
        steps.agent_over.set()
        streams = await asyncio.gather(*reading)
    first = [sent.id for sent in notified(streams[0])]
    assert len(first) > len(RECORDED)
    assert all([sent.id for sent in notified(events)] == first for events in streams)
    assert not counted.followed


async def test_a_local_run_is_followed_like_any_other_and_its_log_is_what_its_client_told(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    services = site.app.services
    parent = await services.parents.create("7", ParentFields(title="Notes"), "somebody")
    run_id = str(uuid4())
    await services.told.create(run_id, parent=parent.id, state=LocalState.QUEUED)
    path = f"/tasks/{parent.id}/runs/{run_id}"
    entries = [
        {"type": "notification", "timestamp": f"2026-01-01T00:00:0{number}Z", "notification": {"method": "_own/note"}}
        for number in range(5)
    ]
    async with site.worker():
        watcher = Watcher(client, path, cuts=[1])
        watching = asyncio.create_task(watcher.watch())
        await services.told.tell(run_id, Change(enter=LocalState.RUNNING, stage="build"))
        await until(lambda: asyncio.sleep(0, watcher.follows), "the stream")
        for entry in entries:
            await services.told.append(run_id, [entry])
        await until(lambda: asyncio.sleep(0, len(watcher.shown) == 5 and watcher.connections > 1), "every entry")
        await services.told.tell(run_id, Change(stage="test"))
        await until(lambda: asyncio.sleep(0, watcher.standings[-1]["stage"] == "test"), "the stage")
        await services.told.tell(run_id, Change(enter=LocalState.COMPLETED, output={"pr_url": "https://git.invalid/1"}))
        await watching
        await site.temporal.get_workflow_handle(f"local-{run_id}").result()
    told = [{name: value for name, value in entry.items() if name != "event_id"} for entry in watcher.shown]
    assert told == entries
    assert watcher.ends == [COMPLETE]
    last = watcher.standings[-1]
    assert (last["status"], last["output"]) == ("completed", {"pr_url": "https://git.invalid/1"})
    whole = (await client.get(f"{path}/session_logs")).json()
    assert whole == watcher.shown
    late = (await client.get(f"{path}/session_logs", params={"after": "2026-01-01T00:00:02Z"})).json()
    assert late == whole[3:]
    assert [sent.data for sent in notified(await streamed(client, path))] == whole


async def test_what_a_client_tells_of_a_run_in_the_cloud_shows_in_its_stream(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    async with live_run(site) as (path, _, _):
        watcher = Watcher(client, path)
        watching = asyncio.create_task(watcher.watch())
        await until(lambda: asyncio.sleep(0, watcher.follows), "the stream")
        for stage in ("plan", "build"):
            assert (await client.patch(f"{path}/", json={"stage": stage})).status_code == 200
            await until(lambda wanted=stage: asyncio.sleep(0, watcher.standings[-1]["stage"] == wanted), stage)  # type: ignore[misc]
    await watching
    assert watcher.standings[-1]["status"] == "completed"
    assert watcher.standings[-1]["stage"] == "build"


async def test_the_stream_of_a_local_run_ends_with_it_whatever_its_worker_has_left_to_do(
    site: ApiSite, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.runs.watching.sources._LOG_PATIENCE_SECONDS", 0.2)
    services = site.app.services
    parent = await services.parents.create("7", ParentFields(title="Notes"), "somebody")
    run_id = str(uuid4())
    await services.told.create(run_id, parent=parent.id, state=LocalState.RUNNING)
    path = f"/tasks/{parent.id}/runs/{run_id}"
    site.steps.hold("finish_local")
    async with site.worker():
        watching = asyncio.create_task(streamed(client, path))
        await services.told.append(run_id, [{"last": 1}])
        await services.told.tell(run_id, Change(enter=LocalState.FAILED))
        for events in (await watching, await streamed(client, path)):
            *_, entry, state, end = events
            assert entry.data["last"] == 1
            assert (state.data["type"], state.data["status"]) == ("task_run_state", "failed")
            assert (end.event, end.data) == ("stream-end", COMPLETE)
        site.steps.go_on["finish_local"].set()
        await site.temporal.get_workflow_handle(f"local-{run_id}").result()


async def test_pages_tell_of_what_the_bucket_has_left_of_an_old_log(site: ApiSite, client: httpx.AsyncClient) -> None:
    services = site.app.services
    parent = await services.parents.create("7", ParentFields(title="Notes"), "somebody")
    run_id = str(uuid4())
    await services.told.create(run_id, parent=parent.id, state=LocalState.RUNNING)
    path = f"/tasks/{parent.id}/runs/{run_id}"
    for number in range(6):
        await services.told.append(run_id, [{"n": number}])

    async def pages() -> tuple[list[int], str]:
        found: list[int] = []
        while True:
            reply = await client.get(f"{path}/session_logs", params={"limit": 2, "offset": len(found)})
            assert reply.json() or reply.headers["x-has-more"] == "false"
            found += [each["n"] for each in reply.json()]
            if reply.headers["x-has-more"] == "false":
                return found, reply.headers["x-total-count"]

    assert await pages() == ([0, 1, 2, 3, 4, 5], "6")
    place = TASKS.place(run_id)
    await asyncio.to_thread(site.bucket.delete, [place.segment_key(1), place.segment_key(2)])
    assert await pages() == ([2, 3, 4, 5], "4")
    whole = (await client.get(f"{path}/logs")).text.splitlines()
    assert [json.loads(line)["n"] for line in whole] == [2, 3, 4, 5]
    await asyncio.to_thread(lambda: site.bucket.delete([found.key for found in site.bucket.list(place.prefix)]))
    assert await pages() == ([], "0")
