"""The model gateway: the one service a guest reaches. It holds the model provider's key and counts each run's tokens.

A guest shows a token of its run; the gateway checks it, lets only the Messages endpoints through, puts the real key in
its place and passes the answer on as it comes. Bodies and keys are never logged. What one guest sends, opens or leaves
unread is limited for its machine, so that it costs no other one's requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

import httpx
import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from foundation.durable import write_once
from foundation.errors import HostNotReady
from foundation.machine_ids import MACHINE_ID
from foundation.proxies import proxy_for
from foundation.settings import Settings
from foundation.urls import without_credentials
from machines.network import GATEWAY_SOCKET
from worker.gateway.guest_connection import ConnectionLimits
from worker.gateway.handed_connections import HandedConnections
from worker.gateway.unix_server import HANDED_BY, UnixServer
from worker.gateway.usage import UsageLedger, UsageReader
from worker.metrics import WorkerMetrics
from worker.scripted_model.scenario import load_scenarios
from worker.scripted_model.server import create_model_app

MAX_BODY_BYTES = 32 * 2**20
_MESSAGES, _COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
_TOKEN = re.compile(rf"^tyk\.(?P<machine>{MACHINE_ID.pattern})\.(?P<proof>[0-9a-f]{{64}})$")
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
_LENGTH_DIGITS = 20
_SOON = {"retry-after": "1"}
_CLIENT_GONE = 499  # nobody is left to read it

T = TypeVar("T")


@dataclass(frozen=True)
class GatewayLimits:
    """What one machine may ask for at once, and how long a request may take.

    ``bodies_bytes`` is for all bodies of a machine that are held at a time. An answer that is still coming after
    ``answer_seconds`` is broken off.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    requests: int = 32
    bodies_bytes: int = 2 * MAX_BODY_BYTES
    body_seconds: float = 120.0
    answer_seconds: float = 3600.0


class Gateway:
    """The gateway of one host, on ``<sockets>/gateway.sock``; without a key it has the scripted model behind it.

    ``token`` and ``usage`` work from any thread, whether the server runs or not.
    """

    def __init__(
        self, settings: Settings, metrics: WorkerMetrics | None = None, limits: GatewayLimits | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics or WorkerMetrics()
        self._limits = limits or GatewayLimits()
        self._usage = UsageLedger(settings.machines)
        self._servers: list[UnixServer | HandedConnections] = []
        self._client: httpx.AsyncClient | None = None
        self._requests: Counter[str] = Counter()
        self._body_bytes: Counter[str] = Counter()

    async def start(self) -> None:
        """Serve. Raises InvalidParameter when the scenario of the scripted model is not valid."""
        settings = self._settings
        self._secret()
        self._usage.take_in(settings.gateway / "usage")
        try:
            self._client = await self._open_upstream()
            # The machines that an earlier version has started connect to this one by themselves.
            server = UnixServer(self._serve, settings.sockets / "gateway.sock", self._limits.connections)
            await server.start()
            self._servers.append(server)
            handed = HandedConnections(settings.sockets / GATEWAY_SOCKET, settings.machines, server.take)
            handed.start()
            self._servers.append(handed)
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
        """Requests and tokens of a machine so far, by the field names of ``workflows.runs.messages.TokenUsage``."""
        return self._usage.read(machine_id)

    def _secret(self) -> bytes:
        path = self._settings.gateway / "secret"
        with suppress(FileNotFoundError):
            return path.read_bytes()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of two processes that start at once, both use the same secret.
        write_once(path, secrets.token_bytes(32))
        return path.read_bytes()

    async def _open_upstream(self) -> httpx.AsyncClient:
        settings = self._settings
        if not settings.model_is_scripted:
            return model_client(settings)
        path = settings.sockets / "model.sock"
        model = UnixServer(create_model_app(load_scenarios(settings.scenario)), path)
        await model.start()
        self._servers.append(model)
        # The model is in this process: there is nobody to be verified, and no certificates to be read for it.
        transport = httpx.AsyncHTTPTransport(uds=os.fspath(path), limits=_LIMITS, verify=False)
        return httpx.AsyncClient(base_url="http://model", timeout=_TIMEOUT, transport=transport)

    # --- the application

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application. The bytes of the request's target decide what is asked for, and nothing else does."""
        request = Request(scope, receive)
        target = scope["raw_path"].decode("ascii", "replace")
        if target == "/" and request.method in {"GET", "HEAD"}:
            response: Response = JSONResponse({"service": "taskyard model gateway"})
        elif target in {_MESSAGES, _COUNT_TOKENS} and request.method == "POST":
            await self._pass_on(request, target, send)
            return
        else:
            response = _error(404, "not_found_error", f"The gateway does not offer {request.method} {target[:200]}.")
        await response(scope, receive, send)

    async def _pass_on(self, request: Request, path: str, send: Send) -> None:
        machine_id = self._machine_of(request)
        if machine_id is None:
            response = _error(401, "authentication_error", "The run token is missing or not valid.")
            await response(request.scope, request.receive, send)
            return
        if self._requests[machine_id] >= self._limits.requests:
            response = _error(429, "rate_limit_error", "This machine has too many requests under way.", _SOON)
            await response(request.scope, request.receive, send)
            return
        self._requests[machine_id] += 1
        try:
            response = await self._answer(request, path, machine_id)
            await response(request.scope, request.receive, send)
        finally:
            _lower(self._requests, machine_id, 1)

    async def _answer(self, request: Request, path: str, machine_id: str) -> Response:
        started = time.monotonic()
        try:
            with self._holding_bodies(machine_id) as hold:
                async with asyncio.timeout(self._limits.body_seconds):
                    body = await _read(request, hold)
                answer = await _unless_disconnected(request, self._ask(request, path, body))
        except (ClientDisconnect, TimeoutError, _BodyTooLarge, _TooManyBodies) as fault:
            return _refusal(fault)
        except httpx.HTTPError as error:
            return self._unreachable(machine_id, error, time.monotonic() - started)
        milliseconds = round((time.monotonic() - started) * 1000)
        self._metrics.take_request(answer.status_code, time.monotonic() - started)
        _log.info("model request", machine=machine_id, path=path, status=answer.status_code, ms=milliseconds)
        if answer.status_code in {401, 403} and not self._settings.model_is_scripted:
            _log.warning("the model API refuses the key", status=answer.status_code)
        headers = {name: value for name, value in answer.headers.items() if name.startswith(_RESPONSE_HEADERS)}
        counted = machine_id if path == _MESSAGES else None
        return _Relay(self._relay(answer, counted), answer.status_code, headers=headers)

    @contextmanager
    def _holding_bodies(self, machine_id: str) -> Iterator[Callable[[int], None]]:
        """Gives what counts bytes of a body as held, until the block ends. It raises _TooManyBodies."""
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if self._body_bytes[machine_id] + count > self._limits.bodies_bytes:
                raise _TooManyBodies
            self._body_bytes[machine_id] += count
            held += count

        try:
            yield hold
        finally:
            _lower(self._body_bytes, machine_id, held)

    def _machine_of(self, request: Request) -> str | None:
        """The machine whose valid token the request shows; tokens end with the machine's record.

        One that comes from another machine than its own is none.
        """
        bearer = request.headers.get("authorization", "")
        token = bearer[7:].strip() if bearer[:7].lower() == "bearer " else request.headers.get("x-api-key", "")
        match = _TOKEN.match(token)
        if not match or not hmac.compare_digest(token, self.token(match["machine"])):
            return None
        # Machines of earlier versions do not say which one they are.
        if request.scope.get("state", {}).get(HANDED_BY, match["machine"]) != match["machine"]:
            return None
        return match["machine"] if self._exists(match["machine"]) else None

    def _exists(self, machine_id: str) -> bool:
        return (self._settings.machines / machine_id / "machine.json").is_file()

    async def _ask(self, request: Request, path: str, body: bytes) -> httpx.Response:
        assert self._client is not None  # noqa: S101 -- requests come only while the server runs
        headers = {name: value for name, value in request.headers.items() if name.startswith(_REQUEST_HEADERS)}
        # Plain bytes, so that they can be passed on as they come and read on the way.
        headers["accept-encoding"] = "identity"
        key = self._settings.anthropic_api_key
        if key:
            headers["x-api-key"] = key.get_secret_value()
        beta = {"beta": "true"} if request.query_params.get("beta") == "true" else None
        sent = self._client.build_request("POST", path.removeprefix("/"), params=beta, headers=headers, content=body)
        return await self._client.send(sent, stream=True)

    def _unreachable(self, machine_id: str, error: httpx.HTTPError, seconds: float) -> Response:
        if isinstance(error, httpx.TimeoutException):
            status, kind, sentence = 504, "timeout_error", "The model API did not answer in time."
        else:
            status, kind = 502, "api_error"
            sentence = f"The model API cannot be reached ({type(error).__name__})."
        self._metrics.take_request(status, seconds)
        _log.warning("model API unreachable", machine=machine_id, error=sentence)
        return _error(status, kind, sentence)

    async def _relay(self, answer: httpx.Response, machine_id: str | None) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come, with its usage counted at the end, also of an answer that was cut short."""
        reader = UsageReader(answer.headers.get("content-type", ""))
        end = time.monotonic() + self._limits.answer_seconds
        try:
            async for chunk in answer.aiter_bytes():
                reader.feed(chunk)
                yield chunk
                if time.monotonic() > end:
                    raise httpx.ReadTimeout("the answer has taken too long")
        except httpx.HTTPError as error:
            _log.warning("model API broke off", machine=machine_id, error=type(error).__name__)
            # The status is sent already. A stream can still carry an error; any other answer is broken off.
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


def model_client(settings: Settings) -> httpx.AsyncClient:
    """The client of the model provider's API. Raises HostNotReady when the settings or the environment prevent it."""
    base = settings.anthropic_base_url
    try:
        url = httpx.URL(base)
        if url.scheme not in {"http", "https"} or not url.host:
            raise HostNotReady(f"ANTHROPIC_BASE_URL is '{without_credentials(base)}', which is no http or https URL")
        # Read here and not by httpx, which fails at what it cannot parse also when it is not for this URL.
        return httpx.AsyncClient(
            base_url=url,
            timeout=_TIMEOUT,
            limits=_LIMITS,
            proxy=proxy_for(base),
            verify=httpx.create_ssl_context(),
            trust_env=False,
        )
    except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
        raise HostNotReady(
            f"No client of the model API can be made: {error}. Check ANTHROPIC_BASE_URL, the proxy variables, "
            "and SSL_CERT_FILE and SSL_CERT_DIR, which name the certificates to be trusted"
        ) from error


class _BodyTooLarge(Exception):
    pass


class _TooManyBodies(Exception):
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


def _lower(counter: Counter[str], key: str, count: int) -> None:
    """Count down, and keep no key of what has come to nothing."""
    counter[key] -= count
    if counter[key] <= 0:
        del counter[key]


def _refusal(fault: Exception) -> Response:
    """The answer to a request that did not come whole."""
    if isinstance(fault, ClientDisconnect):
        return Response(status_code=_CLIENT_GONE)
    if isinstance(fault, TimeoutError):
        return _error(408, "timeout_error", "The body did not come in time.", {"connection": "close"})
    if isinstance(fault, _BodyTooLarge):
        return _error(413, "request_too_large", f"The body is larger than {MAX_BODY_BYTES} bytes.")
    return _error(429, "rate_limit_error", "This machine sends too much at once; it may try again.", _SOON)


def _error(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse({"type": "error", "error": {"type": kind, "message": message}}, status, headers)


async def _read(request: Request, hold: Callable[[int], None]) -> bytes:
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdecimal() and len(length) < _LENGTH_DIGITS and int(length) <= MAX_BODY_BYTES):
        raise _BodyTooLarge
    body = bytearray()
    async for chunk in request.stream():
        hold(len(chunk))
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
