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
from foundation.machine_ids import MACHINE_ID
from foundation.settings import Settings
from machines.network import GATEWAY_SOCKET
from worker.gateway.bodies import MAX_BODY_BYTES, SOON, BodyTooLarge, TooManyBodies, error, read_body, refusal
from worker.gateway.budgets import BudgetBook
from worker.gateway.guest_connection import ConnectionLimits
from worker.gateway.handed_connections import HandedConnections
from worker.gateway.prices import load_prices
from worker.gateway.unix_server import HANDED_BY, UnixServer
from worker.gateway.upstream import LIMITS, TIMEOUT, model_client
from worker.gateway.usage import Bill, UsageLedger, UsageReader
from worker.metrics import WorkerMetrics
from worker.scripted_model.scenario import load_scenarios
from worker.scripted_model.server import create_model_app
from workflows.runs.budget import Budget
from workflows.runs.messages import TokenUsage

_MESSAGES, _COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
_TOKEN = re.compile(rf"^tyk\.(?P<machine>{MACHINE_ID.pattern})\.(?P<proof>[0-9a-f]{{64}})$")
_MODEL_FIELD = re.compile(rb'"model"\s*:\s*"([\x21\x23-\x5b\x5d-\x7e]{1,200})"')
_REQUEST_HEADERS = ("accept", "content-type", "user-agent", "x-app", "anthropic-", "x-stainless-", "x-claude-code-")
_RESPONSE_HEADERS = (
    "content-type",
    "request-id",
    "retry-after",
    "anthropic-ratelimit-",
    "x-should-retry",
    "x-taskyard-",
)
_log = structlog.get_logger(__name__)

# How long a request under way may take until its machine is paused, and to end once it is broken off.
_SETTLE_SECONDS, _BREAK_SECONDS = 45.0, 15.0
_LOOK_SECONDS = 0.1
_NOT_AGAIN = {"x-should-retry": "false"}
_LATER = {"retry-after": "10"}

_BROKEN_OFF = (
    b"\n\nevent: error\n"
    b'data: {"type":"error","error":{"type":"api_error","message":"The connection to the model API broke off."}}\n\n'
)

T = TypeVar("T")


@dataclass(frozen=True)
class GatewayLimits:
    """What one machine may ask for at once, and how long a request may take.

    ``bodies_bytes`` is for all bodies of a machine that are held at a time. An answer that is still coming after
    ``answer_seconds`` is broken off. A refusal that may be tried again is held back for ``refusal_seconds``, so that
    the few times that an agent tries are enough until its machine is paused.
    """

    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    requests: int = 32
    bodies_bytes: int = 2 * MAX_BODY_BYTES
    body_seconds: float = 120.0
    answer_seconds: float = 3600.0
    refusal_seconds: float = 45.0


class Gateway:
    """The gateway of one host, on ``<sockets>/gateway.sock``; without a key it has the scripted model behind it.

    What its public methods tell of a machine, and set, works from any thread, whether the server runs or not. Raises
    InvalidParameter when the price table is not valid.
    """

    def __init__(
        self, settings: Settings, metrics: WorkerMetrics | None = None, limits: GatewayLimits | None = None
    ) -> None:
        self._settings = settings
        self._metrics = metrics or WorkerMetrics()
        self._limits = limits or GatewayLimits()
        self._prices = load_prices(settings.price_table)
        self._usage = UsageLedger(settings.machines)
        self._budgets = BudgetBook(settings.machines, self._usage)
        # Machines that are about to be paused, and those of them whose answers are broken off.
        self._settling: set[str] = set()
        self._breaking: set[str] = set()
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

    def usage(self, machine_id: str) -> TokenUsage:
        """Requests, tokens and costs of a machine so far, and its limits."""
        return self._budgets.usage(machine_id)

    def account(self, machine_id: str) -> tuple[TokenUsage, str | None]:
        """``usage`` and ``used_up`` in one look."""
        return self._budgets.account(machine_id)

    def set_budget(self, machine_id: str, budget: Budget) -> None:
        """Hold the machine to a budget from now on, also after crashes. Raises OSError when it cannot be kept."""
        self._budgets.set(machine_id, budget)
        self._settling.discard(machine_id)
        self._breaking.discard(machine_id)

    def used_up(self, machine_id: str) -> str | None:
        """Why requests of the machine are refused, once one was; None while it may ask, or has not asked for more."""
        return self._budgets.used_up(machine_id)

    def settle(self, machine_id: str) -> None:
        """Wait until a machine that has used up its budget has no request under way, so that it can be paused.

        A connection that is cut by the pause would leave its guest waiting for minutes. What it asks from now on is
        refused without a pause. An answer that takes too long is broken off.
        """
        self._settling.add(machine_id)
        end = time.monotonic() + _SETTLE_SECONDS
        while self._requests[machine_id] and time.monotonic() < end + _BREAK_SECONDS:
            if time.monotonic() > end:
                self._breaking.add(machine_id)
            time.sleep(_LOOK_SECONDS)

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
        transport = httpx.AsyncHTTPTransport(uds=os.fspath(path), limits=LIMITS, verify=False)
        return httpx.AsyncClient(base_url="http://model", timeout=TIMEOUT, transport=transport)

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
            response = error(404, "not_found_error", f"The gateway does not offer {request.method} {target[:200]}.")
        await response(scope, receive, send)

    async def _pass_on(self, request: Request, path: str, send: Send) -> None:
        machine_id = self._machine_of(request)
        if machine_id is None:
            response = error(401, "authentication_error", "The run token is missing or not valid.")
            await response(request.scope, request.receive, send)
            return
        if self._requests[machine_id] >= self._limits.requests:
            response = error(429, "rate_limit_error", "This machine has too many requests under way.", SOON)
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
        counted = Bill(self._usage, self._prices, machine_id) if path == _MESSAGES else None
        asked = 0
        try:
            with self._holding_bodies(machine_id) as hold:
                async with asyncio.timeout(self._limits.body_seconds):
                    body = await read_body(request, hold)
                if (refused := await asyncio.to_thread(self._budgets.refusal, machine_id)) is not None:
                    return await _unless_disconnected(request, self._refuse(machine_id, *refused))
                asked = len(body)
                model = _model_of(body)
                answer = await _unless_disconnected(request, self._ask(request, path, body))
        except (ClientDisconnect, TimeoutError, BodyTooLarge, TooManyBodies) as fault:
            if asked and counted is not None and self._exists(machine_id):
                counted.enter_unanswered(asked)
            return refusal(fault)
        except httpx.HTTPError as fault:
            return self._unreachable(machine_id, fault, time.monotonic() - started)
        milliseconds = round((time.monotonic() - started) * 1000)
        self._metrics.take_request(answer.status_code, time.monotonic() - started)
        _log.info("model request", machine=machine_id, path=path, status=answer.status_code, ms=milliseconds)
        if answer.status_code in {401, 403} and not self._settings.model_is_scripted:
            _log.warning("the model API refuses the key", status=answer.status_code)
        headers = {name: value for name, value in answer.headers.items() if name.startswith(_RESPONSE_HEADERS)}
        reader = UsageReader(answer.headers.get("content-type", ""), model, asked)
        return _Relay(self._relay(answer, machine_id, reader, counted), answer.status_code, headers=headers)

    async def _refuse(self, machine_id: str, sentence: str, again: bool) -> Response:
        """The refusal of a machine that has used up its budget; ``again``: it may be continued, and is to try again."""
        self._metrics.take_refusal()
        if not again:
            return error(400, "invalid_request_error", sentence, _NOT_AGAIN)
        end = time.monotonic() + self._limits.refusal_seconds
        while time.monotonic() < end and machine_id not in self._settling:  # noqa: ASYNC110 -- threads set it
            await asyncio.sleep(_LOOK_SECONDS)
        return error(429, "rate_limit_error", sentence, _LATER)

    @contextmanager
    def _holding_bodies(self, machine_id: str) -> Iterator[Callable[[int], None]]:
        """Gives what counts bytes of a body as held, until the block ends. It raises TooManyBodies."""
        held = 0

        def hold(count: int) -> None:
            nonlocal held
            if self._body_bytes[machine_id] + count > self._limits.bodies_bytes:
                raise TooManyBodies
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

    def _unreachable(self, machine_id: str, fault: httpx.HTTPError, seconds: float) -> Response:
        if isinstance(fault, httpx.TimeoutException):
            status, kind, sentence = 504, "timeout_error", "The model API did not answer in time."
        else:
            status, kind = 502, "api_error"
            sentence = f"The model API cannot be reached ({type(fault).__name__})."
        self._metrics.take_request(status, seconds)
        _log.warning("model API unreachable", machine=machine_id, error=sentence)
        return error(status, kind, sentence)

    async def _relay(
        self, answer: httpx.Response, machine_id: str, reader: UsageReader, bill: Bill | None
    ) -> AsyncGenerator[bytes, None]:
        """The answer's bytes as they come. Its usage is counted when it is known, also of one that was cut short."""
        end = time.monotonic() + self._limits.answer_seconds
        entered = False
        try:
            async for chunk in answer.aiter_bytes():
                reader.feed(chunk)
                if reader.begun and not entered:
                    # What it costs to ask is known from here on, also to a successor of a worker that is killed.
                    self._enter(answer, machine_id, reader, bill)
                    entered = True
                yield chunk
                if time.monotonic() > end or machine_id in self._breaking:
                    raise httpx.ReadTimeout("the answer has taken too long")
        except httpx.HTTPError as fault:
            _log.warning("model API broke off", machine=machine_id, error=type(fault).__name__)
            # The status is sent already. A stream can still carry an error; any other answer is broken off.
            if not reader.streamed:
                raise
            yield _BROKEN_OFF
        finally:
            with suppress(asyncio.CancelledError):
                await asyncio.shield(answer.aclose())
            self._enter(answer, machine_id, reader, bill)

    def _enter(self, answer: httpx.Response, machine_id: str, reader: UsageReader, bill: Bill | None) -> None:
        if bill is not None and answer.is_success and self._exists(machine_id):
            self._metrics.take_usage(bill.enter(reader))


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


def _model_of(body: bytes) -> str:
    """The model that a request names, for an answer that names none."""
    found = _MODEL_FIELD.search(body)
    return found[1].decode() if found else ""


def _lower(counter: Counter[str], key: str, count: int) -> None:
    """Count down, and keep no key of what has come to nothing."""
    counter[key] -= count
    if counter[key] <= 0:
        del counter[key]


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
