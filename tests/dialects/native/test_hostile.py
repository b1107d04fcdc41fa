"""Nothing that a client sends, in a path, a query, a header or a body, makes the server fail, or is left out unsaid."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.api_site import ApiSite, as_yaml, manifest
from tests.dialects.native.test_logs import ended_run

TASKS = "/api/v1/tasks"
DEEP = b'{"a":' * 5000


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("DELETE", "", DEEP, 400, "invalid_parameter"),
        ("POST", "/messages", DEEP, 400, "invalid_parameter"),
        ("DELETE", "", b'{"reson": "typed wrong"}', 422, "invalid_body"),
        ("DELETE", "", b'{"reason": "a", "reason": "b"}', 422, "invalid_body"),
        ("POST", "/messages", b'{"text": "a", "text": "b"}', 422, "invalid_body"),
        ("POST", "/messages", b'{"text": "a", "txet": "b"}', 422, "invalid_body"),
        ("POST", "/messages", b"", 422, "invalid_body"),
        ("POST", "/messages", b"[]", 422, "invalid_body"),
    ],
)  # fmt: skip
async def test_bodies_that_would_be_read_in_part_are_refused_with_the_field(
    site: ApiSite, method: str, path: str, body: bytes, status: int, code: str
) -> None:
    headers = {"Content-Type": "application/json"}
    reply = await site.http.request(method, f"{TASKS}/never-was{path}", content=body, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (status, code), reply.text
    assert reply.json()["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "?stat=running"), ("GET", "?limit=1&limit=2"), ("GET", "?label.a=1&label.a=2"), ("GET", "/x?full=1"),
        ("DELETE", "/x?forced=true"), ("DELETE", "/x?force=true&force=false"), ("GET", "/x/logs?folow=1"),
        ("GET", "/x/artifacts?limit=1"), ("POST", "?dryrun=1"), ("POST", "/x/close?now=1"),
    ],
)  # fmt: skip
async def test_query_parameters_that_would_be_left_out_are_refused(site: ApiSite, method: str, path: str) -> None:
    body = manifest() if method == "POST" else None
    reply = await site.http.request(method, f"{TASKS}{path}", json=body)
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_parameter"), reply.text
    assert reply.json()["details"]["field"] in path


@pytest.mark.parametrize("value", ["9" * 5000, "-1", "abc", "1.5", str(2**63), "٣"])
async def test_a_log_is_resumed_after_an_entry_or_refused(site: ApiSite, value: str) -> None:
    reply = await site.http.get(f"{TASKS}/x/logs", headers={"Last-Event-ID": value.encode()})
    assert (reply.status_code, reply.json()["error"]) == (400, "invalid_parameter")


async def test_bodies_that_do_not_come_as_they_are_get_a_clear_answer(site: ApiSite) -> None:
    body = as_yaml(manifest()).encode()
    packed = await site.http.post(TASKS, content=gzip.compress(body), headers={"Content-Encoding": "gzip"})
    assert (packed.status_code, packed.json()["error"]) == (415, "unsupported_media_type")
    assert "gzip" in packed.json()["message"]

    async def pieces() -> Any:
        for _ in range(40):
            yield b"#" * 2**16

    endless = await site.http.post(TASKS, content=pieces(), headers={"Content-Type": "application/yaml"})
    assert (endless.status_code, endless.json()["error"]) == (413, "payload_too_large")
    latin = await site.http.post(TASKS, content=body, headers={"Content-Type": "application/yaml; charset=latin-1"})
    assert (latin.status_code, latin.json()["error"]) == (415, "unsupported_media_type")
    utf_16 = await site.http.post(TASKS, content=body.decode().encode("utf-16"), headers={"Content-Type": "text/yaml"})
    assert utf_16.status_code == 202, utf_16.text


CANARY = "hush0123456789abcdef"


@pytest.mark.parametrize(
    "url", [f"https://{CANARY}@127.0.0.1:9/a.git", f"http://127.0.0.1:9/a.git?private_token={CANARY}"]
)
@pytest.mark.parametrize("broken", [False, True])
async def test_a_credential_that_is_refused_is_kept_and_shown_nowhere(
    site: ApiSite, url: str, broken: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    data = manifest(metadata={"id": "refused-for-its-url"}, repository={"url": url})
    text = as_yaml(data) + ("repository: [" if broken else "")
    for content, kind in ((text, "application/yaml"), (json.dumps({"manifest_yaml": text}), "application/json")):
        reply = await site.http.post(TASKS, content=content, headers={"Content-Type": kind})
        assert (reply.status_code, reply.json()["error"]) == (400, "invalid_manifest")
        assert CANARY not in reply.text
    assert CANARY not in caplog.text
    assert (await site.http.get(f"{TASKS}/refused-for-its-url")).status_code == 404
    assert CANARY not in "".join(str(found) for found in site.bucket.list(""))


async def test_the_largest_manifest_that_is_taken_is_taken_by_temporal_too(site: ApiSite) -> None:
    labels = {f"key-{n}": "v" * 20 for n in range(50)}
    for name in ("🚀" * 200, "n" * 200, "\\'\"%" * 50):
        shown = manifest(metadata={"name": name, "labels": labels}, claude={"prompt": "\x1b[31m\\é🚀" * 55_000})
        reply = await site.http.post(TASKS, json=shown)
        assert reply.status_code == 202, reply.text
        assert (await site.http.get(f"{TASKS}/{reply.json()['task_id']}")).json()["name"] == name


async def test_one_body_that_is_slow_to_read_does_not_hold_up_the_others(site: ApiSite) -> None:
    slow = b"a: [" + b"[1]," * 200_000 + b"1]"
    headers = {"Content-Type": "application/yaml"}
    reading = [asyncio.create_task(site.http.post(TASKS, content=slow, headers=headers)) for _ in range(5)]
    for _ in range(5):
        assert (await site.http.get("/health")).status_code == 200
    assert {reply.status_code for reply in await asyncio.gather(*reading)} == {400}


@pytest.mark.parametrize("method", ["POST", "DELETE"])
async def test_a_client_that_leaves_within_its_body_is_no_failure_of_the_server(site: ApiSite, method: str) -> None:
    with capture_logs() as logged:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.settings.api_port)
        path = TASKS if method == "POST" else f"{TASKS}/x"
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{{".encode())
        writer.write_eof()
        await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert [entry for entry in logged if entry["log_level"] in {"error", "critical"}] == []


@pytest.mark.parametrize("headers", [{"Content-Encoding": "gzip"}, {"Content-Length": "99999999"}])
async def test_a_stream_that_has_begun_is_not_cut_off_for_a_body_that_nobody_reads(
    site: ApiSite, headers: dict[str, str]
) -> None:
    task_id = await ended_run(site, "first", "last")
    whole = (await site.http.get(f"{TASKS}/{task_id}/logs")).text
    with capture_logs() as logged:
        reader, writer = await asyncio.open_connection("127.0.0.1", site.settings.api_port)
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        request = f"GET {TASKS}/{task_id}/logs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{lines}\r\n"
        writer.write(request.encode())
        answer = await asyncio.wait_for(reader.read(), 30)
        writer.close()
    assert whole.strip().splitlines()[-1].encode() in answer
    assert [entry for entry in logged if entry["log_level"] in {"error", "critical"}] == []
