"""What clients tell of a run: entries of its log, its output, numbered events, and where it stands."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import httpx
import pytest

from storage.layout import TASKS
from storage.runlog import read_entries
from tests.api_site import ApiSite, until

STATUSES = ("not_started", "queued", "in_progress", "completed", "failed", "cancelled")


async def new_run(client: httpx.AsyncClient, *told: str, **task: Any) -> str:
    """The path of a new local run, of which these statuses were told."""
    made = await client.post("/tasks/", json={"title": "t", "description": "do it", **task})
    assert made.status_code == 201, made.text
    runs = f"/tasks/{made.json()['id']}/runs"
    run = await client.post(f"{runs}/", json={"environment": "local"})
    assert run.status_code == 201, run.text
    path = f"{runs}/{run.json()['id']}"
    for status in told:
        assert (await client.patch(f"{path}/", json={"status": status})).status_code == 200
    return path


async def told(site: ApiSite, path: str) -> list[Any]:
    def read() -> list[Any]:
        entries = read_entries(site.bucket, TASKS.place(path.rpartition("/")[2]))
        return [json.loads(entry.data) for entry in entries if entry.stream == "told"]

    return await asyncio.to_thread(read)


def chunk(kind: str) -> dict[str, Any]:
    update = {"sessionUpdate": kind, "content": {"type": "text", "text": "x"}}
    return {"type": "notification", "notification": {"method": "session/update", "params": {"update": update}}}


async def test_entries_are_appended_and_pieces_of_messages_are_not(site: ApiSite, client: httpx.AsyncClient) -> None:
    async with site.worker():
        path = await new_run(client)
        entries = [{"type": "any", "n": 1}, chunk("agent_message_chunk"), {"type": "agent_message_chunk"}]
        reply = await client.post(f"{path}/append_log/", json={"entries": [*entries, chunk("agent_message")]})
        assert reply.status_code == 200, reply.text
        assert reply.json()["status"] == "queued"
        assert "s3_append" in reply.headers["Server-Timing"]
        assert await told(site, path) == [{"type": "any", "n": 1}, chunk("agent_message")]
        await client.patch(f"{path}/", json={"status": "completed"})
        late = await client.post(f"{path}/append_log", json={"entries": [{"late": 1}]})
        assert (late.status_code, late.json()["status"]) == (200, "completed")
        assert len(await told(site, path)) == 2
        # The log of a run whose agent works elsewhere is what that told, and nothing else.
        lines = (await client.get(f"{path}/logs")).text.splitlines()
        assert [json.loads(line)["type"] for line in lines] == ["any", "notification"]


@pytest.mark.parametrize(
    ("body", "status", "attr"),
    [
        (b"{}", 400, "entries"),
        (b'{"entries": []}', 400, "entries"),
        (b'{"entries": {}}', 400, "entries"),
        (b'{"entries": [1]}', 400, "entries__0"),
        (b'{"entries": [{"a": NaN}]}', 400, None),
        (b'{"entries": [{"a": ' + b"[" * 70 + b"]" * 70 + b"}]}", 400, None),
        (b"[" * 100_000, 400, None),
        (b"[1]", 400, None),
        (b"\xff", 400, None),
        (b'{"entries": [{"a": "' + b"x" * 2**20 + b'"}]}', 413, None),
    ],
)
async def test_what_is_no_list_of_entries_is_refused(
    site: ApiSite, client: httpx.AsyncClient, body: bytes, status: int, attr: str | None
) -> None:
    path = await new_run(client)
    reply = await client.post(f"{path}/append_log/", content=body)
    assert reply.status_code == status, reply.text
    assert attr is None or reply.json()["attr"] == attr
    assert await told(site, path) == []


async def test_many_values_half_characters_and_controls_are_stored(site: ApiSite, client: httpx.AsyncClient) -> None:
    path = await new_run(client)
    entries = [{"many": list(range(50_000))}, {"half": "a\ud800b", "nul": "\x00", "line": "\u2028\n"}]
    reply = await client.post(f"{path}/append_log/", content=json.dumps({"entries": entries}))
    assert reply.status_code == 200, reply.text
    assert await told(site, path) == [entries[0], {"half": "a?b", "nul": "\x00", "line": "\u2028\n"}]


# For each status, what each told one does: the run comes there (+), stays as it is (=), or refuses it (-).
TABLE = {
    #              not_started queued in_progress completed failed cancelled
    "queued": "        -         =        +          +        +       +",
    "in_progress": "   -         -        =          +        +       +",
    "completed": "     =         =        =          =        =       =",
    "failed": "        =         =        =          =        =       =",
    "cancelled": "     =         =        =          =        =       =",
}


async def test_the_table_of_statuses(site: ApiSite, client: httpx.AsyncClient) -> None:
    async def tell(before: str, word: str, sign: str) -> str:
        path = await new_run(client, *([] if before == "queued" else [before]))
        was = (await client.get(f"{path}/")).json()
        assert was["status"] == before
        reply = await client.patch(f"{path}/", json={"status": word, "stage": "told"})
        now = (await client.get(f"{path}/")).json()
        ended = before in STATUSES[3:]
        expected = {"+": (200, word, "told"), "=": (200, before, None if ended else "told")}.get(sign)
        if expected is None:
            return "" if 400 <= reply.status_code < 500 and now == was else f"{before}, {word}: {reply.status_code}"
        if ended:
            assert now == was
        got = (reply.status_code, now["status"], now["stage"])
        assert (now["completed_at"] is not None) == (now["status"] in STATUSES[3:])
        return "" if got == expected else f"{before}, {word}: {got}"

    async with site.worker():
        cells = [(before, *cell) for before, row in TABLE.items() for cell in zip(STATUSES, row.split(), strict=True)]
        wrong = []
        for begin in range(0, len(cells), 10):
            wrong += await asyncio.gather(*(tell(*cell) for cell in cells[begin : begin + 10]))
    assert [each for each in wrong if each] == []


async def test_an_output_replaces_the_one_before_and_with_a_schema_ends_the_run(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    async with site.worker():
        path = await new_run(client)
        await client.patch(f"{path}/", json={"output": {"pr_url": "u"}})
        both = await client.patch(f"{path}/", json={"output": {"more": 1}})
        assert both.json()["output"] == {"pr_url": "u", "more": 1}
        for output in ({"a": 1}, [1], None, "text"):
            reply = await client.patch(f"{path}/set_output/", json={"output": output})
            assert (reply.status_code, reply.json()["output"]) == (200, output)
        assert (await client.patch(f"{path}/set_output/", json={})).json()["output"] == {}
        schema = {"type": "object", "required": ["answer"], "properties": {"answer": {"type": "integer"}}}
        path = await new_run(client, json_schema=schema)
        refused = await client.patch(f"{path}/set_output/", json={"output": {"answer": "x"}})
        assert refused.status_code == 400
        assert refused.json()["error"].startswith("Output validation error: ")
        reply = await client.patch(f"{path}/set_output/", json={"output": {"answer": 42}})
        assert (reply.json()["status"], reply.json()["output"]) == ("completed", {"answer": 42})
        late = await client.patch(f"{path}/set_output/", json={"output": {"answer": 43}})
        assert (late.status_code, late.json()["output"]) == (200, {"answer": 42})


def ndjson(*numbers: int) -> bytes:
    return b"".join(b'{"seq": %d, "event": {"n": %d}}\n' % (number, number) for number in numbers)


async def test_numbered_events_are_taken_once_and_a_gap_is_refused(site: ApiSite, client: httpx.AsyncClient) -> None:
    async with site.worker():
        path = await new_run(client)

        async def send(body: Any, **headers: str) -> httpx.Response:
            return await client.post(f"{path}/event_stream/", content=body, headers=headers)

        assert (await send(b"")).json() == {"accepted": 0, "duplicate": 0, "last_accepted_seq": 0}
        assert (await send(ndjson(1, 2, 3))).json() == {"accepted": 3, "duplicate": 0, "last_accepted_seq": 3}
        assert (await send(ndjson(2, 3, 4)[:-1])).json() == {"accepted": 1, "duplicate": 2, "last_accepted_seq": 4}
        gap = await send(ndjson(5, 7))
        assert (gap.status_code, gap.json()["last_accepted_seq"]) == (409, 5)
        missing = await send(ndjson(6) + b'{"type": "_posthog/stream_complete", "final_seq": 8}\n')
        assert (missing.status_code, missing.json()["last_accepted_seq"]) == (409, 6)
        complete = await send(ndjson(7, 8) + b'{"type": "_posthog/stream_complete", "final_seq": 8}\n')
        assert complete.json() == {"accepted": 2, "duplicate": 0, "last_accepted_seq": 8}
        for body, status in (
            (b"no json\n", 400),
            (b'{"seq": 0, "event": {}}', 400),
            (b'{"seq": true, "event": {}}', 400),
            (b'{"seq": 9, "event": 1}', 400),
            (b'{"seq": 9, "event": {"a": "' + b"x" * 2**20 + b'"}}', 413),
            (ndjson(*range(9, 1100)), 413),
        ):
            refused = await send(body)
            assert refused.status_code == status, refused.text
            assert refused.json()["last_accepted_seq"] == (await send(b"")).json()["last_accepted_seq"]
        last = (await send(b"")).json()["last_accepted_seq"]
        assert await told(site, path) == [{"n": number} for number in range(1, last + 1)]


async def test_an_event_that_no_log_can_hold_blocks_none_behind_it(site: ApiSite, client: httpx.AsyncClient) -> None:
    path = await new_run(client)
    kept = [b'{"a":' * 70 + b"1" + b"}" * 70, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b'{"a": NaN}']
    body = b"".join(b'{"seq": %d, "event": %s}\n' % (number, event) for number, event in enumerate(kept, 1))
    reply = await client.post(f"{path}/event_stream/", content=body + ndjson(4))
    assert reply.json() == {"accepted": 4, "duplicate": 0, "last_accepted_seq": 4}
    *notes, last = await told(site, path)
    assert last == {"n": 4}
    for number, note in enumerate(notes, 1):
        said = note["notification"]
        assert (said["method"], said["params"]["level"]) == ("_posthog/console", "warn")
        assert said["params"]["message"].startswith(f"Event {number} was left out: it is ")
    shown = (await client.get(f"{path}/session_logs", params={"event_types": "_posthog/console"})).json()
    assert len(shown) == 3


async def test_events_are_stored_while_the_request_that_sends_them_goes_on(
    site: ApiSite, client: httpx.AsyncClient
) -> None:
    path = await new_run(client)
    stored = asyncio.Event()

    async def body() -> Any:
        yield ndjson(1)[:10]
        yield ndjson(1)[10:] + ndjson(2)

        async def there() -> bool:
            return len(await told(site, path)) == 2

        await until(there, "the events of the first half")
        stored.set()
        yield ndjson(3)

    reply = await client.post(f"{path}/event_stream/", content=body())
    assert stored.is_set()
    assert reply.json() == {"accepted": 3, "duplicate": 0, "last_accepted_seq": 3}


async def test_tokens_of_a_stream_open_what_they_are_for_and_nothing_else(client: httpx.AsyncClient) -> None:
    path, other = await new_run(client), await new_run(client)
    given = (await client.get(f"{path}/stream_token/")).json()
    assert given["stream_base_url"] is None

    async def status(method: str, where: str, token: str) -> int:
        headers = {"Authorization": f"Bearer {token}"}
        return (await client.request(method, where, headers=headers, content=b"")).status_code

    ingest = given["event_ingest_token"]
    assert await status("POST", f"{path}/event_stream/", ingest) == 200
    for method, where in (
        ("POST", f"{other}/event_stream/"),
        ("GET", f"{path}/"),
        ("GET", f"{path}/stream_token/"),
        ("POST", f"{path}/append_log/"),
        ("PATCH", f"{path}/"),
    ):
        assert await status(method, where, ingest) == 403
        assert await status(method, where, given["token"]) == 403
    assert await status("POST", f"{path}/event_stream/", given["token"]) == 403
    assert await status("POST", f"{path}/event_stream/", str(uuid4())) == 401
