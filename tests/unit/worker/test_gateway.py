"""The gateway on its real unix socket, with the scripted model or a small model API of the test's own behind it."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from foundation.settings import Settings
from machines.records import RecordStore
from worker.gateway.bodies import MAX_BODY_BYTES
from worker.gateway.model_gateway import Gateway
from worker.gateway.usage import TOKEN_FIELDS
from workflows.runs.messages import TokenUsage

MACHINE = "vm-00112233445566aa"
OTHER = "vm-ffeeddccbbaa9988"
REAL_KEY = "sk-real-key-of-the-host"
BODY = {
    "model": "any",
    "max_tokens": 10,
    "messages": [{"role": "user", "content": "hello"}],
    "tools": [{"name": "Bash"}],
}


@pytest.fixture
def home() -> Iterator[Path]:
    # Not tmp_path, whose length would move the sockets out of the home.
    with tempfile.TemporaryDirectory(prefix="ty-") as directory:
        record = Path(directory) / "machines" / MACHINE / "machine.json"
        record.parent.mkdir(parents=True)
        record.write_text("{}")
        yield Path(directory)


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[tuple[Gateway, httpx.AsyncClient]]:
    gateway = Gateway(settings)
    await gateway.start()
    transport = httpx.AsyncHTTPTransport(uds=str(settings.sockets / "gateway.sock"))
    headers = {"authorization": f"Bearer {gateway.token(MACHINE)}"}
    try:
        async with httpx.AsyncClient(base_url="http://10.0.2.100", transport=transport, headers=headers) as client:
            yield gateway, client
    finally:
        await gateway.stop()


@pytest.fixture
def scripted(home: Path) -> Settings:
    return Settings(home=home, anthropic_api_key=None)


class ModelApi:
    """A model API on loopback that remembers what it was asked, and does what the request's model name says."""

    def __init__(self) -> None:
        self.seen: list[Request] = []
        self.asked = asyncio.Event()
        self.may_end = asyncio.Event()
        self.left = asyncio.Event()

    async def messages(self, request: Request) -> Response:
        self.seen.append(request)
        self.asked.set()
        behaviour = (await request.json())["model"]
        if behaviour == "overloaded":
            error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
            return JSONResponse(error, 529, headers={"retry-after": "7", "set-cookie": "a=b"})
        if behaviour == "whole":
            return JSONResponse({"usage": {"input_tokens": 5, "output_tokens": 7, "cache_read_input_tokens": 11}})
        if behaviour == "silent":
            while (await request.receive())["type"] != "http.disconnect":
                pass
            self.left.set()
        return StreamingResponse(self._stream(behaviour), media_type="text/event-stream")

    async def _stream(self, behaviour: str) -> AsyncIterator[bytes]:
        start = {"input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 1}
        yield event("message_start", message={"usage": start})
        try:
            await self.may_end.wait()
        finally:
            self.left.set()
        if behaviour == "breaks off":
            raise ConnectionResetError
        yield event("message_delta", usage={"output_tokens": 42})
        yield event("message_stop")


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


@pytest.fixture
async def api() -> ModelApi:
    return ModelApi()


@pytest.fixture
async def real(home: Path, api: ModelApi) -> AsyncIterator[Settings]:
    routes = [Route("/prefix/v1/messages", api.messages, methods=["POST"])]
    with bound() as listener:
        config = uvicorn.Config(Starlette(routes=routes), lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve(sockets=[listener]))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/prefix"
        yield Settings(home=home, anthropic_api_key=REAL_KEY, anthropic_base_url=url)
        api.may_end.set()
        server.should_exit = True
        await task


@contextmanager
def bound() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def asked(behaviour: str, **more: Any) -> dict[str, Any]:
    return {**BODY, "model": behaviour, **more}


async def test_token_opens_the_gateway_in_either_header(scripted):
    async with serving(scripted) as (gateway, client):
        answer = await client.post("/v1/messages?beta=true", json=BODY)
        assert answer.status_code == 200
        assert answer.headers["x-taskyard-model"] == "scripted"
        headers = {"authorization": "", "x-api-key": gateway.token(MACHINE)}
        assert (await client.post("/v1/messages", json=BODY, headers=headers)).status_code == 200
        assert (await client.post("/v1/messages/count_tokens", json=BODY)).json()["input_tokens"] > 0


async def test_any_other_token_is_refused(scripted):
    async with serving(scripted) as (gateway, client):
        forged = f"tyk.{MACHINE}.{'0' * 64}"
        for shown in ("", "tyk", REAL_KEY, forged, "tyk.../../etc.0", gateway.token(OTHER)):
            for headers in ({"authorization": f"Bearer {shown or 'x'}"}, {"authorization": "", "x-api-key": shown}):
                answer = await client.post("/v1/messages", json=BODY, headers=headers)
                assert answer.status_code == 401, shown
                assert answer.json()["type"] == "error"
                assert answer.json()["error"]["type"] == "authentication_error"
        assert gateway.usage(MACHINE).requests == 0


async def test_token_ends_with_the_machine(scripted):
    async with serving(scripted) as (_, client):
        (scripted.machines / MACHINE / "machine.json").unlink()
        assert (await client.post("/v1/messages", json=BODY)).status_code == 401


def test_token_is_the_same_for_every_process_of_the_host(scripted):
    assert Gateway(scripted).token(MACHINE) == Gateway(scripted).token(MACHINE) != Gateway(scripted).token(OTHER)
    assert stat.S_IMODE((scripted.gateway / "secret").stat().st_mode) == 0o600
    assert [path.name for path in scripted.gateway.iterdir()] == ["secret"]


async def test_nothing_else_is_offered(scripted):
    async with serving(scripted) as (_, client):
        for method, path in (
            ("GET", "/v1/messages"),
            ("GET", "/v1/models"),
            ("POST", "/v1/complete"),
            ("POST", "/v1/messages/batches"),
            ("POST", "/v1/messages/../organizations"),
            ("DELETE", "/"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == 404, path
            assert answer.json()["error"]["type"] == "not_found_error"


async def test_liveness_needs_no_token(scripted):
    async with serving(scripted) as (_, client):
        for method in ("HEAD", "GET"):
            assert (await client.request(method, "/", headers={"authorization": ""})).status_code == 200


async def test_body_beyond_the_limit_is_refused(scripted):
    async with serving(scripted) as (_, client):
        answer = await client.post("/v1/messages", content=b"x" * (MAX_BODY_BYTES + 1))
        assert answer.status_code == 413
        assert answer.json()["error"]["type"] == "request_too_large"


async def test_real_key_replaces_the_token(real, api):
    async with serving(real) as (_, client):
        headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "some-beta", "cookie": "a=b", "x-other": "c"}
        answer = await client.post("/v1/messages?beta=true&extra=1", json=asked("whole"), headers=headers)
    assert answer.status_code == 200
    (seen,) = api.seen
    assert seen.headers["x-api-key"] == REAL_KEY
    assert (seen.headers["anthropic-version"], seen.headers["anthropic-beta"]) == ("2023-06-01", "some-beta")
    assert not {"authorization", "cookie", "x-other"} & set(seen.headers)
    assert seen.url.query == "beta=true"


async def test_answers_stream_through_as_they_come(real, api):
    async with (
        serving(real) as (gateway, client),
        client.stream("POST", "/v1/messages", json=asked("stream", stream=True)) as answer,
    ):
        chunks = answer.aiter_raw()
        assert b"message_start" in await anext(chunks)
        api.may_end.set()
        rest = b"".join([chunk async for chunk in chunks])
        assert rest.endswith(event("message_stop"))
        assert gateway.usage(MACHINE).output_tokens == 42


async def test_client_that_leaves_ends_the_request_to_the_model(real, api):
    async with serving(real) as (gateway, client):
        async with client.stream("POST", "/v1/messages", json=asked("stream", stream=True)) as answer:
            await anext(answer.aiter_raw())
        await asyncio.wait_for(api.left.wait(), 10)
        assert tokens(gateway.usage(MACHINE)) == counts(requests=1, input=100, output=1, created=20)


async def test_client_that_leaves_before_the_answer_ends_the_request_too(real, api):
    async with serving(real) as (_, client):
        request = asyncio.create_task(client.post("/v1/messages", json=asked("silent")))
        await asyncio.wait_for(api.asked.wait(), 10)
        request.cancel()
        await asyncio.wait_for(api.left.wait(), 10)


async def test_errors_of_the_model_api_pass_through(real):
    async with serving(real) as (gateway, client):
        answer = await client.post("/v1/messages", json=asked("overloaded"))
        assert answer.status_code == 529
        assert answer.headers["retry-after"] == "7"
        assert "set-cookie" not in answer.headers
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert gateway.usage(MACHINE).requests == 0


async def test_stream_that_breaks_off_ends_with_an_error_event(real, api):
    api.may_end.set()
    async with serving(real) as (_, client):
        answer = await client.post("/v1/messages", json=asked("breaks off", stream=True))
        last = answer.text.strip().split("\n\n")[-1]
        assert last.startswith("event: error\n")
        assert json.loads(last.partition("data: ")[2])["error"]["type"] == "api_error"


async def test_unreachable_model_api_is_a_bad_gateway(home):
    with bound() as listener:
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
    async with serving(Settings(home=home, anthropic_api_key=REAL_KEY, anthropic_base_url=nobody)) as (_, client):
        answer = await client.post("/v1/messages", json=BODY)
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "api_error"
        assert REAL_KEY not in answer.text


async def test_usage_adds_up_and_survives_a_restart(real, api):
    api.may_end.set()
    async with serving(real) as (_, client):
        await client.post("/v1/messages", json=asked("whole"))
        await client.post("/v1/messages", json=asked("stream", stream=True))
    async with serving(real) as (gateway, client):
        await client.post("/v1/messages", json=asked("whole"))
        assert tokens(gateway.usage(MACHINE)) == counts(requests=3, input=110, output=56, created=20, read=22)
        assert tokens(gateway.usage(OTHER)) == counts()
    # The counts are among the machine's files, and go with them.
    RecordStore(real).remove(MACHINE)
    assert tokens(gateway.usage(MACHINE)) == counts()


async def test_counts_of_an_earlier_version_are_taken_in_and_nothing_of_it_stays(scripted):
    earlier = scripted.gateway / "usage"
    earlier.mkdir(parents=True)
    for machine in (MACHINE, OTHER):
        (earlier / f"{machine}.json").write_text(json.dumps({"requests": 3, "input_tokens": 5}))
    async with serving(scripted) as (gateway, _):
        assert tokens(gateway.usage(MACHINE)) == counts(requests=3, input=5)
        assert tokens(gateway.usage(OTHER)) == counts()
    assert not earlier.exists()


def tokens(usage: TokenUsage) -> dict[str, int]:
    return {name: getattr(usage, name) for name in ("requests", *TOKEN_FIELDS)}


def counts(**given: int) -> dict[str, int]:
    names = {"input": "input_tokens", "output": "output_tokens"}
    names |= {"created": "cache_creation_input_tokens", "read": "cache_read_input_tokens", "requests": "requests"}
    return {name: given.get(short, 0) for short, name in names.items()}


async def test_socket_left_by_a_killed_worker_is_replaced_and_removed_at_the_stop(scripted):
    path = scripted.sockets / "gateway.sock"
    path.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(os.fspath(path))
    async with serving(scripted) as (_, client):
        assert (await client.get("/")).status_code == 200
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == []


async def test_successor_keeps_its_socket_when_the_predecessor_stops(scripted):
    first = Gateway(scripted)
    await first.start()
    async with serving(scripted) as (_, client):
        await first.stop()
        assert (await client.post("/v1/messages", json=BODY)).status_code == 200
