"""The model gateway: the one service a guest reaches. It holds the model provider's key and counts each run's tokens.

A guest shows a token of its run; the gateway checks it, lets only the Messages endpoints through, puts the real key in
its place and passes the answer on as it comes. Bodies and keys are never logged.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from typing import TypeVar

import httpx
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from foundation.settings import Settings
from worker.metrics import WorkerMetrics
from worker.scenario import load_scenarios
from worker.scripted_model import create_model_app
from worker.unix_server import UnixServer
from worker.usage import UsageLedger, UsageReader

MAX_BODY_BYTES = 32 * 2**20
_TOKEN = re.compile(r"^tyk\.(?P<machine>vm-[0-9a-f]{16})\.(?P<proof>[0-9a-f]{64})$")
_REQUEST_HEADERS = ("accept", "content-type", "user-agent", "x-app", "anthropic-", "x-stainless-", "x-claude-code-")
_RESPONSE_HEADERS = (
    "content-type",
    "request-id",
    "retry-after",
    "anthropic-ratelimit-",
    "x-should-retry",
    "x-taskyard-",
)
# The provider may think for minutes before the first byte; the client itself gives up after ten.
_TIMEOUT = httpx.Timeout(600, connect=15, write=60, pool=15)
# Each run has a few connections of its own; the number of runs is limited by the host's room, not here.
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=20)
_log = structlog.get_logger(__name__)

_BROKEN_OFF = (
    b"\n\nevent: error\n"
    b'data: {"type":"error","error":{"type":"api_error","message":"The connection to the model API broke off."}}\n\n'
)
_CLIENT_GONE = 499  # nobody is left to read it

T = TypeVar("T")


class Gateway:
    """The gateway of one host, on ``<sockets>/gateway.sock``; without a key it has the scripted model behind it.

    ``token``, ``usage`` and ``forget`` work from any thread, whether the server runs or not.
    """

    def __init__(self, settings: Settings, metrics: WorkerMetrics | None = None) -> None:
        self._settings = settings
        self._metrics = metrics or WorkerMetrics()
        self._usage = UsageLedger(settings.gateway / "usage")
        self._servers: list[UnixServer] = []
        self._client: httpx.AsyncClient | None = None

    async def start(self) -> None:
        """Serve. Raises InvalidParameter when the scenario of the scripted model is not valid."""
        settings = self._settings
        self._secret()
        try:
            self._client = await self._open_upstream()
            server = UnixServer(self._app(), settings.sockets / "gateway.sock")
            await server.start()
            self._servers.append(server)
        except BaseException:
            await self.stop()
            raise
        _log.info("gateway started", upstream="scripted model" if settings.model_is_scripted else "model API")

    async def stop(self) -> None:
        """Requests under way get 5 s. Agents that lose theirs try again on the next gateway."""
        while self._servers:
            await self._servers.pop().stop()
        if self._client:
            await self._client.aclose()
            self._client = None

    def token(self, machine_id: str) -> str:
        """The run token of a machine: always the same, worth nothing elsewhere, void once the machine is gone."""
        proof = hmac.new(self._secret(), machine_id.encode(), hashlib.sha256).hexdigest()
        return f"tyk.{machine_id}.{proof}"

    def usage(self, machine_id: str) -> dict[str, int]:
        """Requests and tokens of a machine so far, by the field names of ``workflows.messages.TokenUsage``."""
        return self._usage.read(machine_id)

    def forget(self, machine_id: str) -> None:
        """Remove the counts of a machine that is gone."""
        self._usage.remove(machine_id)

    def _secret(self) -> bytes:
        path = self._settings.gateway / "secret"
        with suppress(FileNotFoundError):
            return path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Written beside and linked into place: of two processes that start at once, both use the same secret.
        draft = path.with_name(f".secret.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        try:
            with suppress(FileExistsError):
                os.link(draft, path)
        finally:
            draft.unlink()
        return path.read_bytes()

    async def _open_upstream(self) -> httpx.AsyncClient:
        settings = self._settings
        if not settings.model_is_scripted:
            return httpx.AsyncClient(base_url=settings.anthropic_base_url, timeout=_TIMEOUT, limits=_LIMITS)
        path = settings.sockets / "model.sock"
        model = UnixServer(create_model_app(load_scenarios(settings.scenario)), path)
        await model.start()
        self._servers.append(model)
        transport = httpx.AsyncHTTPTransport(uds=os.fspath(path), limits=_LIMITS)
        return httpx.AsyncClient(base_url="http://model", timeout=_TIMEOUT, transport=transport)

    # --- the application

    def _app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", _alive, methods=["GET", "HEAD"]),
                Route("/v1/messages", self._pass_on, methods=["POST"]),
                Route("/v1/messages/count_tokens", self._pass_on, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refuse},
        )

    async def _pass_on(self, request: Request) -> Response:
        started = time.monotonic()
        machine_id = self._machine_of(request)
        if machine_id is None:
            return _error(401, "authentication_error", "The run token is missing or not valid.")
        try:
            body = await _read(request)
            answer = await _unless_disconnected(request, self._ask(request, body))
        except ClientDisconnect:
            return Response(status_code=_CLIENT_GONE)
        except _BodyTooLarge:
            return _error(413, "request_too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
        except httpx.TimeoutException:
            self._metrics.take_request(504, time.monotonic() - started)
            return self._unreachable(machine_id, 504, "timeout_error", "The model API did not answer in time.")
        except httpx.HTTPError as error:
            self._metrics.take_request(502, time.monotonic() - started)
            sentence = f"The model API cannot be reached ({type(error).__name__})."
            return self._unreachable(machine_id, 502, "api_error", sentence)
        milliseconds = round((time.monotonic() - started) * 1000)
        self._metrics.take_request(answer.status_code, time.monotonic() - started)
        _log.info(
            "model request", machine=machine_id, path=request.url.path, status=answer.status_code, ms=milliseconds
        )
        if answer.status_code in {401, 403} and not self._settings.model_is_scripted:
            _log.warning("the model API refuses the key", status=answer.status_code)
        headers = {name: value for name, value in answer.headers.items() if name.startswith(_RESPONSE_HEADERS)}
        counted = request.url.path == "/v1/messages"
        return _Relay(self._relay(answer, machine_id if counted else None), answer.status_code, headers=headers)

    def _machine_of(self, request: Request) -> str | None:
        """The machine whose valid token the request shows; tokens end with the machine's record."""
        bearer = request.headers.get("authorization", "")
        shown = bearer[7:].strip() if bearer[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
        match = _TOKEN.match(shown)
        if not match or not hmac.compare_digest(shown, self.token(match["machine"])):
            return None
        return match["machine"] if self._exists(match["machine"]) else None

    def _exists(self, machine_id: str) -> bool:
        return (self._settings.machines / machine_id / "machine.json").is_file()

    async def _ask(self, request: Request, body: bytes) -> httpx.Response:
        assert self._client is not None  # noqa: S101 -- requests come only while the server runs
        headers = {name: value for name, value in request.headers.items() if name.startswith(_REQUEST_HEADERS)}
        # Plain bytes, so that they can be passed on as they come and read on the way.
        headers["accept-encoding"] = "identity"
        key = self._settings.anthropic_api_key
        if key:
            headers["x-api-key"] = key.get_secret_value()
        beta = {"beta": "true"} if request.query_params.get("beta") == "true" else None
        path = request.url.path.removeprefix("/")
        sent = self._client.build_request("POST", path, params=beta, headers=headers, content=body)
        return await self._client.send(sent, stream=True)

    def _unreachable(self, machine_id: str, status: int, kind: str, sentence: str) -> Response:
        _log.warning("model API unreachable", machine=machine_id, error=sentence)
        return _error(status, kind, sentence)

    async def _relay(self, answer: httpx.Response, machine_id: str | None) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come, with its usage counted at the end, also of an answer that was cut short."""
        reader = UsageReader(answer.headers.get("content-type", ""))
        try:
            async for chunk in answer.aiter_bytes():
                reader.feed(chunk)
                yield chunk
        except httpx.HTTPError as error:
            _log.warning("model API broke off", machine=machine_id, error=type(error).__name__)
            # The status is sent already. A stream can still tell of an error; else breaking off is what tells of it.
            if not reader.streamed:
                raise
            yield _BROKEN_OFF
        finally:
            with suppress(asyncio.CancelledError):
                await asyncio.shield(answer.aclose())
            if machine_id and answer.is_success and self._exists(machine_id):
                usage = reader.usage()
                self._usage.add(machine_id, usage)
                self._metrics.take_usage(usage)


class _BodyTooLarge(Exception):
    pass


class _Relay(StreamingResponse):
    """A stream whose source is closed at once when the client leaves, also while the client was slow to read."""

    def __init__(self, source: AsyncGenerator[bytes, None], status: int, headers: dict[str, str]) -> None:
        super().__init__(source, status, headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


async def _alive(_: Request) -> Response:
    return JSONResponse({"service": "taskyard model gateway"})


async def _refuse(request: Request, refusal: Exception) -> Response:
    """Whatever is not offered does not exist, other methods of the offered paths included."""
    del refusal
    return _error(404, "not_found_error", f"The gateway does not offer {request.method} {request.url.path}.")


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status)


async def _read(request: Request) -> bytes:
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
        raise _BodyTooLarge
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise _BodyTooLarge
    return bytes(body)


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves. Raises ClientDisconnect then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
