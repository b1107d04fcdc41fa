"""Every error below a dialect's paths is told in the body of that dialect, wherever it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

import httpx
import pytest
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.types import Message

from api.app import DIALECTS, Service, create_app
from api.deps import Answers, Dialect, Services
from foundation.errors import TaskNotFound, TaskyardError
from foundation.settings import Settings


async def _known(_: Request, error: TaskyardError) -> Response:
    return PlainTextResponse(f"other: {error.code}", error.http_status)


async def _invalid_request(_: Request, __: RequestValidationError) -> Response:
    return PlainTextResponse("other: invalid", HTTPStatus.BAD_REQUEST)


async def _http(_: Request, error: HTTPException) -> Response:
    return PlainTextResponse("other: http", error.status_code)


async def _unforeseen(_: Request, __: Exception) -> Response:
    return PlainTextResponse("other: unforeseen", HTTPStatus.INTERNAL_SERVER_ERROR)


def make_other(services: Services) -> Dialect:
    answers = Answers(known=_known, invalid_request=_invalid_request, http=_http, unforeseen=_unforeseen)
    app = Dialect(services, answers, most_body_bytes=4, openapi_url=None)

    @app.post("/other/things/{name}")
    async def make_thing(name: str, request: Request, many: int = 4) -> int:
        if name == "unknown":
            raise TaskNotFound("There is none.")
        return many // len(await request.body())

    @app.get("/other/things")
    async def list_things() -> list[str]:
        return []

    return app


@pytest.fixture
def service() -> Service:
    made = create_app(Settings(), ((("/other", "/its/second"), make_other), *DIALECTS))
    # As a server does before its first request.
    made.prepare()
    return made


@pytest.fixture
async def http(service: Service) -> AsyncIterator[httpx.AsyncClient]:
    async with _client(service) as client:
        yield client


def _client(service: Service, root_path: str = "") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(service, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://localhost")


@pytest.mark.parametrize(
    ("path", "body", "headers", "answer"),
    [
        ("/other/things/one", b"1234", {}, (200, "1")),
        ("/other/things/unknown", b"", {}, (404, "other: task_not_found")),
        ("/other/things/one", b"12345", {}, (413, "other: http")),
        ("/other/things/one", b"1", {"content-encoding": "gzip"}, (415, "other: http")),
        ("/other/things/one?many=x", b"1", {}, (400, "other: invalid")),
        ("/other/things", b"", {}, (405, "other: http")),
        ("/other/things/one", b"", {}, (500, "other: unforeseen")),
        ("/other/things/one", b"", {"origin": "https://a.invalid"}, (403, "other: origin_refused")),
        ("/other", b"", {}, (404, "other: http")),
        ("/its/second/way", b"", {}, (404, "other: http")),
    ],
)
async def test_a_dialect_tells_every_error_below_its_paths(
    http: httpx.AsyncClient, path: str, body: bytes, headers: dict[str, str], answer: tuple[int, str]
) -> None:
    reply = await http.post(path, content=body, headers=headers)
    assert (reply.status_code, reply.text) == answer


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/others", {}, 404, "not_found"),
        ("/its", {}, 404, "not_found"),
        ("/health", {}, 405, "method_not_allowed"),
        ("/others", {"origin": "https://a.invalid"}, 403, "origin_refused"),
    ],
)
async def test_what_is_nobody_elses_is_told_by_the_last_dialect(
    http: httpx.AsyncClient, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    reply = await http.post(path, headers=headers)
    assert (reply.status_code, reply.json()["error"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "headers", "answer"),
    [
        ("/pre/other/things/unknown", {}, (404, "other: task_not_found")),
        ("/pre/other/nothing", {}, (404, "other: http")),
        ("/pre/other/nothing", {"origin": "https://a.invalid"}, (403, "other: origin_refused")),
    ],
)
async def test_what_a_proxy_puts_before_the_path_changes_no_dialect(
    service: Service, path: str, headers: dict[str, str], answer: tuple[int, str]
) -> None:
    async with _client(service, root_path="/pre") as client:
        reply = await client.post(path, headers=headers)
    assert (reply.status_code, reply.text) == answer


async def test_a_client_that_leaves_while_its_body_is_read_is_no_failure(service: Service) -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/other/things/one",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    received: list[Message] = [
        {"type": "http.request", "body": b"1", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        return received.pop(0)

    async def send(message: Message) -> None:
        sent.append(message)

    # What a handler does not foresee is raised once more here, and the server logs it.
    await service(scope, receive, send)
    assert sent[0]["status"] == HTTPStatus.BAD_REQUEST


async def test_requests_of_each_dialect_are_counted_by_the_template_of_their_route(http: httpx.AsyncClient) -> None:
    for name in ("unknown", "one"):
        await http.post(f"/other/things/{name}", content=b"1")
    metrics = (await http.get("/metrics")).text
    for status in (200, 404):
        assert f'_count{{method="POST",route="/other/things/{{name}}",status="{status}"}} 1.0' in metrics
