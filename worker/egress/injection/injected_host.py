"""A guest's connection to an injected host: its TLS ends here, and each request goes on with the secret put in.

The connection is for the one host: TLS has to name it, and every request too. A placeholder stands in the secret's own
header and nowhere else, and that header holds nothing but the placeholder. What the host answers of a value comes to
the guest as its placeholder.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus

import h11
import httpcore

from foundation.http_fields import end_to_end
from worker.egress.forward import FIELDS_MOST
from worker.egress.injection.guest_http import GuestHttp, accept_tls
from worker.egress.injection.injections import Injections
from worker.egress.policy import NotNamed, Target, shown, target_of
from worker.egress.refusals import BAD_REQUEST, UNREACHABLE, Refusal, blocked
from worker.egress.upstream import CheckedBackend

Header = tuple[bytes, bytes]

_HTTPS_PORT = 443
_CONNECT_SECONDS = 15.0
# An answer that is compressed could not be looked into.
_COMPRESSING = frozenset({b"accept-encoding", b"sec-websocket-extensions"})
_KEPT_SECONDS = 60.0


@dataclass(frozen=True)
class HostConnection:
    """What a guest's connection has of the proxy around it.

    ``connect`` gives connections to the target as long as the policy lets it, and raises Refusal. ``note`` is told of
    requests that come to nothing.
    """

    target: Target
    connect: Callable[[], Awaitable[socket.socket]]
    note: Callable[[Refusal], None]
    sent: Callable[[int], None]
    received: Callable[[int], None]
    head_seconds: float
    idle_seconds: float


class InjectedHost:
    """Serves connections of one guest to one of its injected hosts."""

    def __init__(self, injections: Injections, outside: HostConnection) -> None:
        """Raises Refusal for a machine whose authority is lost."""
        certificates = injections.certificates()
        if certificates is None:
            where = _place(outside.target)
            raise Refusal(UNREACHABLE, f"{where[0]}: the authority of this machine is lost", "failed", *where)
        self._certificates = certificates
        self._outside = outside
        self._target = outside.target
        self._secrets = injections.of(outside.target.host, outside.target.port)
        self._injections = injections
        self._echoes = injections.echoes

    async def serve(self, connection: socket.socket) -> None:
        """Serve the connection to its end; the socket is closed then."""
        target, outside = self._target, self._outside
        wrong: list[str | None] = []
        context = self._certificates.context(target.host, wrong.append)
        try:
            guest = await accept_tls(connection, context, outside.head_seconds, outside.idle_seconds)
        except (OSError, ssl.SSLError, TimeoutError):
            connection.close()
            if wrong:
                other = "no name" if wrong[0] is None else shown(wrong[0])
                outside.note(blocked(*_place(target), f"the connection's TLS names {other}"))
            return
        pool = self._pool()
        try:
            while (request := await guest.next_request()) is not None:
                if not await guest.unless_lost(self._exchange(guest, pool, request)):
                    return
        except h11.RemoteProtocolError:
            sentence = f"{target.host}: this is no request as HTTP has it"
            await self._refuse(guest, Refusal(BAD_REQUEST, sentence, "blocked", *_place(target)))
        except (OSError, TimeoutError, h11.LocalProtocolError):
            # The guest has left or stopped, or the host has answered with what HTTP cannot say.
            return
        finally:
            guest.abort()
            await pool.aclose()

    def _pool(self, *, upgrading: bool = False) -> httpcore.AsyncConnectionPool:
        """The client for this connection's requests; another protocol can be asked for in HTTP/1.1 alone."""
        return httpcore.AsyncConnectionPool(
            ssl_context=self._injections.host_trust,
            max_connections=1,
            keepalive_expiry=_KEPT_SECONDS,
            http2=not upgrading,
            network_backend=CheckedBackend(self._connect, self._outside.sent, self._outside.received),
        )

    async def _connect(self, _host: str, _port: int) -> socket.socket:
        return await self._outside.connect()

    async def _exchange(self, guest: GuestHttp, pool: httpcore.AsyncConnectionPool, request: h11.Request) -> bool:
        """Answer one request. Whether another one may follow."""
        try:
            if _asks_to_switch(request):
                async with self._pool(upgrading=True) as own:
                    return await self._pass_on(guest, own, request)
            return await self._pass_on(guest, pool, request)
        except Refusal as refusal:
            return await self._refuse(guest, refusal)
        except httpcore.TimeoutException as error:
            return await self._refuse(guest, self._failed(504, error))
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            return await self._refuse(guest, self._failed(UNREACHABLE, error))

    async def _pass_on(self, guest: GuestHttp, pool: httpcore.AsyncConnectionPool, request: h11.Request) -> bool:
        asked = self._asked(guest, request)
        answer = await pool.handle_async_request(asked)
        try:
            headers = [
                (self._echoes.redactor.redact(name), self._echoes.redactor.redact(value))
                for name, value in end_to_end(answer.headers)
                # It would lead past the proxy, which nothing does.
                if name.lower() != b"alt-svc"
            ]
            if answer.status == 101:  # noqa: PLR2004 -- switching protocols
                await guest.switch(answer, headers, self._echoes.without_values)
                return False
            bodiless = request.method == b"HEAD" or answer.status in {204, 304}
            if not (bodiless or self._echoes.keeps_length):
                headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
            await guest.begin(answer.status, headers, self._echoes.redactor.redact(_reason(answer)))
            async for chunk in self._echoes.without_values(answer.aiter_stream()):
                await guest.send(chunk)
            return await guest.end()
        finally:
            await answer.aclose()

    def _asked(self, guest: GuestHttp, request: h11.Request) -> httpcore.Request:
        """The request as it goes on. Raises Refusal."""
        self._check(request)
        upgrade: list[Header] = []
        if _asks_to_switch(request):
            upgrade = [(b"Connection", b"Upgrade"), *((n, v) for n, v in request.headers if n.lower() == b"upgrade")]
        headers = [
            *self._filled(end_to_end(request.headers.raw_items())),
            (b"Accept-Encoding", b"identity"),
            *upgrade,
        ]
        names = {name.lower() for name, _ in request.headers}
        chunked = b"transfer-encoding" in names
        if chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        return httpcore.Request(
            request.method,
            httpcore.URL(
                scheme=b"https", host=self._target.host.encode(), port=self._target.port, target=request.target
            ),
            headers=headers,
            content=self._injections.searched(self._target, guest.body())
            if chunked or b"content-length" in names
            else None,
            extensions={
                "timeout": {
                    "connect": _CONNECT_SECONDS,
                    "pool": _CONNECT_SECONDS,
                    "read": self._outside.idle_seconds,
                    "write": self._outside.idle_seconds,
                }
            },
        )

    def _check(self, request: h11.Request) -> None:
        """Raises Refusal for what is no request to this host, or could be read in two ways."""
        target = self._target
        if not request.target.startswith(b"/") and request.target != b"*":
            raise Refusal(BAD_REQUEST, f"{target.host}: the request's target is no path", "blocked", *_place(target))
        names = [name for name, _ in request.headers]
        if len(names) > FIELDS_MOST:
            raise Refusal(BAD_REQUEST, f"{target.host}: the request has too many fields", "blocked", *_place(target))
        if b"content-length" in names and b"transfer-encoding" in names:
            raise Refusal(BAD_REQUEST, f"{target.host}: the request's body has two lengths", "blocked", *_place(target))
        hosts = [value.decode("ascii", "replace") for name, value in request.headers if name == b"host"]
        try:
            same = [target_of(text, _HTTPS_PORT) for text in hosts] == [target]
        except NotNamed:
            same = False
        if not same:
            raise blocked(*_place(target), f"the request names the host {shown(', '.join(hosts))}")
        for place, text in (("address", request.target), ("method", request.method)):
            self._injections.refuse_placeholders(target, text, f"the request's {place}")

    def _filled(self, headers: Sequence[Header]) -> list[Header]:
        """The headers with each secret in its own. Raises Refusal."""
        filled: list[Header] = []
        missing = list(self._secrets)
        for name, value in headers:
            if name.lower() in _COMPRESSING:
                continue
            secret = next((each for each in self._secrets if each.header.lower().encode() == name.lower()), None)
            text = secret.filled(value.decode("latin-1")) if secret else None
            where = f"the request's header {shown(name.decode('ascii', 'replace'))}"
            own = secret.name if secret and text is not None else ""
            self._injections.refuse_placeholders(self._target, name + b": " + value, where, but=own)
            if secret is not None:
                if text is None:
                    reason = f"{where} holds another value than the placeholder of secret {secret.name}"
                    raise blocked(*_place(self._target), reason)
                missing = [each for each in missing if each is not secret]
                value = text.encode("latin-1")  # noqa: PLW2901 -- what goes on
            filled.append((name, value))
        return [*filled, *((each.header.encode(), each.header_value.encode()) for each in missing)]

    def _failed(self, status: int, error: Exception) -> Refusal:
        reason = str(error) or "it has ended the connection"
        return Refusal(status, f"{self._target.host} could not be asked: {reason}", "failed", *_place(self._target))

    async def _refuse(self, guest: GuestHttp, refusal: Refusal) -> bool:
        self._outside.note(refusal)
        with suppress(OSError, TimeoutError, h11.LocalProtocolError):
            await guest.refuse(refusal.status, refusal.sentence, refusal.headers(), refusal.body())
        return False


def _asks_to_switch(request: h11.Request) -> bool:
    """Whether the request asks for a web socket on its connection, and can be what does.

    Other protocols would go past what looks into requests and answers: HTTP/2 in the clear among them.
    """
    names = {name for name, _ in request.headers}
    asked = [value.lower() for name, value in request.headers if name == b"upgrade"]
    return (
        request.method == b"GET" and asked == [b"websocket"] and not names & {b"content-length", b"transfer-encoding"}
    )


def _reason(answer: httpcore.Response) -> bytes:
    """The answer's own reason phrase; HTTP/2 has none."""
    with suppress(ValueError):
        return bytes(answer.extensions.get("reason_phrase") or HTTPStatus(answer.status).phrase.encode())
    return b""


def _place(target: Target) -> tuple[str, int]:
    return target.host, target.port
