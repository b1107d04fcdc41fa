"""Every error below a dialect's paths is told in the body of that dialect, wherever it comes from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from http import HTTPStatus

import httpx
import pytest
from fastapi import Request, Response
from fastapi.responses import PlainTextResponse
from starlette.exceptions import HTTPException

from api.app import DIALECTS, create_app
from api.deps import Dialect, Services
from foundation.errors import TaskNotFound, TaskyardError
from foundation.settings import Settings


async def _known(_: Request, error: Exception) -> Response:
    assert isinstance(error, TaskyardError)
    return PlainTextResponse(f"other: {error.code}", error.http_status)


async def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return PlainTextResponse("other: http", error.status_code)


async def _unforeseen(_: Request, __: Exception) -> Response:
    return PlainTextResponse("other: unforeseen", HTTPStatus.INTERNAL_SERVER_ERROR)


def make_other(services: Services) -> Dialect:
    app = Dialect(services, most_body_bytes=4, openapi_url=None)
    app.add_exception_handler(TaskyardError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)

    @app.post("/other/things/{name}")
    async def make_thing(name: str, request: Request) -> int:
        if name == "unknown":
            raise TaskNotFound("There is none.")
        return 4 // len(await request.body())

    return app


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    service = create_app(Settings(), ((("/other", "/its/second"), make_other), *DIALECTS))
    transport = httpx.ASGITransport(service, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.mark.parametrize(
    ("path", "body", "headers", "answer"),
    [
        ("/other/things/one", b"1234", {}, (200, "1")),
        ("/other/things/unknown", b"", {}, (404, "other: task_not_found")),
        ("/other/things/one", b"12345", {}, (413, "other: http")),
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


async def test_requests_of_each_dialect_are_counted_by_the_template_of_their_route(http: httpx.AsyncClient) -> None:
    for name in ("unknown", "one"):
        await http.post(f"/other/things/{name}", content=b"1")
    metrics = (await http.get("/metrics")).text
    for status in (200, 404):
        assert f'_count{{method="POST",route="/other/things/{{name}}",status="{status}"}} 1.0' in metrics
