"""The requests of the published client, byte for byte (contract, section 4.2), and what it needs of the answers."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from tests.api_site import ApiSite, as_yaml, manifest
from tests.dialects.native.test_logs import ended_run

# The client gives a whole request 30 s, streams included.
CLIENT_PATIENCE = 30.0
AGENT = "sandboxctl/2026.8.5"


@dataclass
class Answer:
    """One answer as it came, to the end of the connection or of its body."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict:
        return dict(json.loads(self.body))

    def event_data(self) -> list[str]:
        """Data of each event, as the client prints it; the last record counts only with its blank line."""
        records = self.body.decode().replace("\r\n", "\n").split("\n\n")[:-1]
        lines = [
            [line.removeprefix("data:").removeprefix(" ") for line in record.split("\n") if line.startswith("data:")]
            for record in records
        ]
        return ["\n".join(data) for data in lines if any(data)]


async def send(site: ApiSite, method: str, path: str, *, body: bytes | None = None, accept: str = "*/*") -> Answer:
    """One request over a socket of its own: exactly these headers, no others, and no body unless there is one."""
    host = site.url.removeprefix("http://")
    head = [f"{method} {path} HTTP/1.1"]
    if body is not None:
        head.append("content-type: application/json")
    head += [f"user-agent: {AGENT}", f"accept: {accept}", f"host: {host}"]
    if body is not None:
        head.append(f"content-length: {len(body)}")
    request = "\r\n".join([*head, "", ""]).encode() + (body or b"")
    reader, writer = await asyncio.open_connection(*host.split(":"))
    try:
        async with asyncio.timeout(CLIENT_PATIENCE):
            writer.write(request)
            status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            if "content-length" in headers:
                content = await reader.readexactly(int(headers["content-length"]))
            else:
                assert headers["transfer-encoding"] == "chunked"
                content = await _chunked(reader)
            return Answer(int(status.split()[1]), headers, content)
    finally:
        writer.close()


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    body = b""
    while size := int(await reader.readline(), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    return body


async def test_submit_takes_both_envelopes_and_says_what_the_client_prints(site: ApiSite) -> None:
    for envelope in ({"manifest_yaml": as_yaml(manifest())}, {"manifest": manifest()}):
        answer = await send(site, "POST", "/api/v1/tasks", body=json.dumps(envelope).encode())
        reply = answer.json()
        assert (answer.status, reply["accepted"], "error" in reply) == (202, True, False)
        assert (await send(site, "GET", f"/api/v1/tasks/{reply['task_id']}")).json()["id"] == reply["task_id"]
    refused = await send(site, "POST", "/api/v1/tasks", body=b'{"manifest_yaml":"kind: Task"}')
    assert (refused.status, refused.json()["accepted"], refused.json()["error"]) == (400, False, "invalid_manifest")


async def test_list_and_get_have_the_fields_that_the_client_shows(site: ApiSite) -> None:
    task_id = await ended_run(site, "one")
    for path in (
        "/api/v1/tasks", "/api/v1/tasks?state=failed%2Ccompleted", "/api/v1/tasks?limit=5",
        "/api/v1/tasks?state=completed&limit=5&offset=0",
    ):  # fmt: skip
        answer = await send(site, "GET", path)
        assert answer.status == 200
        for task in answer.json()["tasks"]:
            assert all(isinstance(task[field], str) for field in ("id", "name", "state", "created_at"))
    shown = (await send(site, "GET", f"/api/v1/tasks/{task_id}")).json()
    assert {"id", "name", "state", "created_at", "started_at", "vm_name", "exit_code", "error"} <= set(shown)
    assert (shown["state"], shown["exit_code"]) == ("completed", 0)


async def test_cancel_needs_no_body_and_takes_a_reason(site: ApiSite) -> None:
    for body in (None, b'{"reason":"enough"}'):
        task_id = await site.submit()
        answer = await send(site, "DELETE", f"/api/v1/tasks/{task_id}", body=body)
        assert (answer.status, answer.json()["success"]) == (200, True)
    unknown = await send(site, "DELETE", "/api/v1/tasks/never-was")
    assert (unknown.status, unknown.json()["success"]) == (404, False)


async def test_logs_are_replayed_and_close_with_and_without_following(site: ApiSite) -> None:
    task_id = await ended_run(site, "one", "two")
    for query in ("", "?follow=true"):
        answer = await send(site, "GET", f"/api/v1/tasks/{task_id}/logs{query}", accept="text/event-stream")
        assert (answer.status, answer.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
        event, *lines, completed = answer.event_data()
        assert (json.loads(event)["type"], lines, completed) == ("state_change", ["one", "two"], "0")
    pending = await site.submit()
    open_log = await send(site, "GET", f"/api/v1/tasks/{pending}/logs", accept="text/event-stream")
    assert (open_log.status, open_log.event_data()) == (200, [])


async def test_artifacts_and_health_are_what_the_client_takes_for_good(site: ApiSite) -> None:
    task_id = await site.submit()
    listed = await send(site, "GET", f"/api/v1/tasks/{task_id}/artifacts")
    assert (listed.status, listed.json()["artifacts"]) == (200, [])
    for path in ("/healthz", "/healthz/http", "/readyz", "/healthz/deep"):
        answer = await send(site, "GET", path)
        assert 200 <= answer.status < 300, path
        assert isinstance(answer.json(), dict)
    assert (await send(site, "GET", "/healthz/http")).json()["http"] == "alive"
