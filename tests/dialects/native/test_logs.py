"""Reading and following run logs and downloading artifacts over REST, from a real bucket."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from storage import artifacts, layout
from storage.bucket import Bucket
from tests.api_site import ApiSite, SseEvent, until
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause

TASKS = "/api/v1/tasks"
SSE = {"Accept": "text/event-stream"}
NDJSON = {"Accept": "application/x-ndjson"}


async def ended_run(site: ApiSite, *lines: str, result: AgentResult | None = None) -> str:
    """A run that has ended, with these lines in its log between two events."""
    async with site.worker() as steps:
        steps.instead["run_agent"] = lambda _: result or AgentResult(exit_code=0)
        steps.instead["collect"] = lambda request: site.write_log(request.task_id, *lines)
        task_id = await site.submit()
        await site.write_event(task_id, type="state_change", state="pending", message="Waiting")
        # Its final state shows before its last step, which closes the log, has run.
        await site.temporal.get_workflow_handle(f"task-{task_id}").result()
    return task_id


async def test_plain_text_has_one_line_for_each_line_of_the_log(site: ApiSite) -> None:
    task_id = await ended_run(site, "first", "second")
    reply = await site.http.get(f"{TASKS}/{task_id}/logs")
    assert reply.headers["content-type"] == "text/plain; charset=utf-8"
    lines = reply.text.splitlines()
    assert [line.partition("] ")[2] for line in lines] == [
        '[EVENT] {"type": "state_change", "state": "pending", "message": "Waiting"}',
        "[STDOUT] first",
        "[STDOUT] second",
    ]
    assert all(datetime.fromisoformat(line[1:].partition("]")[0]).tzinfo for line in lines)


async def test_ndjson_flattens_events_and_says_how_the_run_ended(site: ApiSite) -> None:
    task_id = await ended_run(
        site, "first", result=AgentResult(exit_code=3, cause=Cause.AGENT_EXIT, error="exited with code 3")
    )
    reply = await site.http.get(f"{TASKS}/{task_id}/logs", headers=NDJSON)
    assert reply.headers["content-type"] == "application/x-ndjson"
    event, line, end = (json.loads(text) for text in reply.text.splitlines())
    assert (event["stream"], event["type"], event["state"], event["id"]) == ("event", "state_change", "pending", 1)
    assert (line["stream"], line["data"], line["id"]) == ("stdout", "first\n", 2)
    assert (end["type"], end["state"], end["exit_code"]) == ("completed", "failed", 3)


async def test_events_of_an_ended_run_are_replayed_and_the_stream_closes(site: ApiSite) -> None:
    task_id = await ended_run(site, "first", "a \u2028 b")
    for path in ("/logs", "/logs?follow=true"):
        async with site.http.stream("GET", f"{TASKS}/{task_id}{path}", headers=SSE) as reply:
            assert reply.headers["content-type"].startswith("text/event-stream")
            events = [event async for event in site.events(reply)]
        assert [(event.event, event.id) for event in events] == [
            ("event", "1"), ("stdout", "2"), ("stdout", "3"), ("completed", None),
        ]  # fmt: skip
        assert [event.data for event in events[1:]] == ["first", "a \u2028 b", "0"]


async def test_a_followed_run_is_told_as_it_happens_and_resumes_by_last_event_id(site: ApiSite) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.write_log(task_id, "one", "two")
        seen: list[SseEvent] = []
        # No Accept: following is answered with events.
        async with site.http.stream("GET", f"{TASKS}/{task_id}/logs?follow=true") as reply:
            async for event in site.events(reply):
                seen.append(event)
                if len(seen) == 2:
                    await site.write_log(task_id, "three")
                if len(seen) == 3:
                    break
        assert [event.data for event in seen] == ["one", "two", "three"]
        resumed = asyncio.create_task(_follow(site, task_id, str(seen[1].id)))
        await site.write_log(task_id, "four")
        steps.agent_over.set()
        again = await resumed
    assert [(event.event, event.data) for event in again] == [
        ("stdout", "three"), ("stdout", "four"), ("completed", "0"),
    ]  # fmt: skip


async def test_a_followed_log_can_begin_with_its_last_lines_and_resume_in_every_form(site: ApiSite) -> None:
    async with site.worker() as steps:
        task_id = await site.submit()
        await steps.agent_running.wait()
        await site.write_log(task_id, "one", "two", "three")
        await site.write_event(task_id, type="note", message="between")
        url = f"{TASKS}/{task_id}/logs?follow=true&stream=stdout"
        forms: tuple[tuple[str, dict[str, str]], ...] = (
            (f"{url}&tail=2", NDJSON),
            (url, NDJSON | {"Last-Event-ID": "1"}),
            (f"{url}&tail=2", {"Accept": "text/plain"}),
            (f"{url}&since=2020-01-01T00:00:00Z&tail=2", {"Accept": "TEXT/EVENT-STREAM"}),
        )
        following = [asyncio.create_task(site.http.get(path, headers=headers)) for path, headers in forms]

        async def all_follow() -> bool:
            return site.app.services.followers.followed.get(layout.TASKS.place(task_id), 0) == len(forms)

        await until(all_follow, "the followers")
        await site.write_log(task_id, "four")
        steps.agent_over.set()
        replies = await asyncio.gather(*following)
    for reply in replies[:2]:
        told = [json.loads(line) for line in reply.text.splitlines() if line]
        assert [line["data"] for line in told[:-1]] == ["two\n", "three\n", "four\n"]
        assert (told[-1]["type"], told[-1]["state"]) == ("completed", "completed")
    assert [line.partition("] ")[2] for line in replies[2].text.splitlines()] == [
        "[STDOUT] two", "[STDOUT] three", "[STDOUT] four",
    ]  # fmt: skip
    data = [line for line in replies[3].text.splitlines() if line.startswith("data: ")]
    assert data == ["data: two", "data: three", "data: four", "data: 0"]


async def test_two_hundred_followers_cost_one_reader_and_each_gets_every_line_once(
    site: ApiSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    followers, reads = site.app.services.followers, Counter[str]()
    real_get = Bucket.get

    def counted(bucket: Bucket, key: str) -> bytes | None:
        if "/log/segments/0" in key:
            reads[key] += 1
        return real_get(bucket, key)

    unlimited = httpx.Limits(max_connections=None)
    async with (
        site.worker() as steps,
        httpx.AsyncClient(base_url=site.url, timeout=120, limits=unlimited) as http,
    ):
        task_id = await site.submit()
        await steps.agent_running.wait()
        following = [asyncio.create_task(_follow(site, task_id, http=http)) for _ in range(200)]

        async def all_follow() -> bool:
            return followers.followed.get(layout.TASKS.place(task_id), 0) == 200

        await until(all_follow, "200 followers")
        monkeypatch.setattr(Bucket, "get", counted)
        for n in range(10):
            await site.write_log(task_id, *(f"line {n}.{part}" for part in range(10)))
        steps.agent_over.set()
        expected = [f"line {n}.{part}" for n in range(10) for part in range(10)]
        for told in await asyncio.gather(*following):
            assert [event.data for event in told if event.event == "stdout"] == expected
        assert followers.followed == {}
    # Each segment was read by the one reader, and by the ten writers and the closing beside it; 200 readers would show.
    assert reads
    assert max(reads.values()) < 20


async def test_a_client_that_leaves_leaves_nothing_behind(site: ApiSite) -> None:
    task_id = await site.submit()
    await site.write_log(task_id, "one")
    async with site.http.stream("GET", f"{TASKS}/{task_id}/logs?follow=true", headers=NDJSON) as reply:
        async for line in reply.aiter_lines():
            assert json.loads(line)["data"] == "one\n"
            break

    async def nobody() -> bool:
        return site.app.services.followers.followed == {}

    await until(nobody, "the follower to end")


async def test_a_run_that_was_terminated_ends_its_followers_too(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.runs.log.KEEPALIVE_SECONDS", 0.1)
    task_id = await site.submit()
    await site.write_log(task_id, "one")
    following = asyncio.create_task(_follow(site, task_id))
    await site.temporal.get_workflow_handle(f"task-{task_id}").terminate()
    async with asyncio.timeout(30):
        told = await following
    assert [(event.event, event.data) for event in told] == [("stdout", "one"), ("completed", "failed")]


async def test_an_idle_stream_is_kept_alive(site: ApiSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.runs.log.KEEPALIVE_SECONDS", 0.1)
    task_id = await site.submit()
    async with site.http.stream("GET", f"{TASKS}/{task_id}/logs?follow=true", headers=SSE) as reply:
        async for line in reply.aiter_lines():
            assert line.startswith(":")
            break


async def test_parts_of_a_log_by_stream_time_and_tail(site: ApiSite) -> None:
    task_id = await ended_run(site, *(f"line {n}" for n in range(20)))

    async def shown(**params: Any) -> list[str]:
        reply = await site.http.get(f"{TASKS}/{task_id}/logs", params=params)
        assert reply.status_code == 200, reply.text
        return [line.partition("] [")[2] for line in reply.text.splitlines()]

    assert await shown(tail=2) == ["STDOUT] line 18", "STDOUT] line 19"]
    assert await shown(stream="stdout", tail=1) == ["STDOUT] line 19"]
    assert len(await shown(stream="events")) == 1
    assert await shown(stream="stderr") == []
    assert await shown(since=datetime.now(UTC).isoformat()) == []
    assert len(await shown(since="2020-01-01T00:00:00Z")) == 21
    for refused in ("since=yesterday", "tail=-1", f"tail={2**63}&stream=events", "stream=stdin", "follow=perhaps"):
        reply = await site.http.get(f"{TASKS}/{task_id}/logs?{refused}")
        assert (reply.status_code, reply.json()["error"]) == (400, "invalid_parameter")


async def test_artifacts_are_listed_and_downloaded_whole_and_in_part(site: ApiSite) -> None:
    task_id = await site.submit()
    before = (await site.http.get(f"{TASKS}/{task_id}/artifacts")).json()
    assert before == {"task_id": task_id, "artifacts": [], "total_count": 0, "total_size_bytes": 0}
    contents = {
        "report.md": b"# Report\n" * 1000,
        'results/ünit "1".xml': b"<xml/>",
        "empty.txt": b"",
    }  # fmt: skip

    def store() -> None:
        stored = [
            artifacts.store(site.bucket, layout.TASKS.place(task_id), name, data) for name, data in contents.items()
        ]
        stored.append(
            artifacts.store(site.bucket, layout.TASKS.place(task_id), "b.txt", b"by path", path="deep/down/b.txt")
        )
        artifacts.write_index(site.bucket, layout.TASKS.place(task_id), stored)

    await asyncio.to_thread(store)
    listed = (await site.http.get(f"{TASKS}/{task_id}/artifacts")).json()
    assert listed["total_count"] == 4
    assert listed["total_size_bytes"] == sum(map(len, contents.values())) + len(b"by path")
    for artifact in listed["artifacts"][:3]:
        data = contents[artifact["name"]]
        reply = await site.http.get(artifact["download_url"])
        assert (reply.status_code, reply.content) == (200, data)
        digest = hashlib.sha256(data).hexdigest()
        assert (artifact["checksum"], reply.headers["x-checksum-sha256"]) == (f"sha256:{digest}", digest)
        assert reply.headers["content-length"] == str(len(data))
        assert reply.headers["content-disposition"].startswith("attachment; filename=")
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert (await site.http.get(f"{TASKS}/{task_id}/artifacts/deep/down/b.txt")).content == b"by path"
    url = f"{TASKS}/{task_id}/artifacts/report.md"
    report = contents["report.md"]
    for wanted, part in (("bytes=0-8", report[:9]), ("bytes=8990-", report[8990:]), ("bytes=-5", report[-5:])):
        reply = await site.http.get(url, headers={"Range": wanted})
        assert (reply.status_code, reply.content) == (206, part)
        assert reply.headers["content-range"].endswith(f"/{len(report)}")
    etag = (await site.http.get(url)).headers["etag"]
    for ours, status in ((etag, 206), ('"other"', 200)):
        reply = await site.http.get(url, headers={"Range": "bytes=0-8", "If-Range": ours})
        assert (reply.status_code, len(reply.content)) == (status, 9 if status == 206 else len(report))
    beyond = await site.http.get(url, headers={"Range": "bytes=9000-"})
    assert (beyond.status_code, beyond.headers["content-range"]) == (416, "bytes */9000")
    assert (beyond.json()["error"], beyond.json()["details"]) == ("range_not_satisfiable", {"size_bytes": 9000})
    head, got = await site.http.head(url), await site.http.get(url)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-length", "content-type", "etag", "x-checksum-sha256", "accept-ranges", "content-disposition"):
        assert head.headers[name] == got.headers[name], name
    assert (await site.http.head(f"{url}x")).status_code == 404
    for missing in ("nothing.txt", "..%2f..%2frecord.json", "%2e%2e/record.json", "down/b.txt"):
        reply = await site.http.get(f"{TASKS}/{task_id}/artifacts/{missing}")
        assert (reply.status_code, reply.json()["error"]) == (404, "artifact_not_found"), missing


async def _follow(
    site: ApiSite, task_id: str, last_event_id: str | None = None, *, http: httpx.AsyncClient | None = None
) -> list[SseEvent]:
    headers = SSE | ({"Last-Event-ID": last_event_id} if last_event_id else {})
    async with (http or site.http).stream("GET", f"{TASKS}/{task_id}/logs?follow=true", headers=headers) as reply:
        return [event async for event in site.events(reply)]
