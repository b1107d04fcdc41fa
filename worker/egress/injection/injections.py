"""What the proxy puts into the requests of one machine: its injected secrets, and the authority that ends its TLS."""

from __future__ import annotations

import os
import ssl
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import contextmanager

import structlog

from activities.machine.authority import kept_authority
from activities.machine.injection import InjectedSecret
from activities.machine.secrets import RunSecrets
from foundation.settings import Settings
from machines.paths import machine_paths, volatile_file
from worker.egress.injection.certificates import Certificates
from worker.egress.injection.placeholders import Echoes, PlaceholderSearch
from worker.egress.policy import Target
from worker.egress.refusals import OVERLOADED, Refusal, blocked

_CONNECTIONS_MOST = 64

_log = structlog.get_logger(__name__)


class Injections:
    """The injected secrets of a machine, read once they are there: they are the same for as long as it lives."""

    def __init__(self, settings: Settings, machine_id: str, host_trust: ssl.SSLContext) -> None:
        self._settings = settings
        self._machine_id = machine_id
        self._held_at = volatile_file(settings, machine_id)
        self._secrets: tuple[InjectedSecret, ...] | None = None
        self._certificates: Certificates | None = None
        self._open = 0
        #: What this host trusts, for connections to the hosts.
        self.host_trust = host_trust
        #: Finds the placeholders of all, and takes their values out of answers.
        self.search = PlaceholderSearch(())
        self.echoes = Echoes(())

    def all(self) -> tuple[InjectedSecret, ...]:
        """Every injected secret; none of them before the guest has its placeholders."""
        # Most machines have none, and are asked about at each of their connections.
        if self._secrets is None and os.path.lexists(self._held_at):
            try:
                self._secrets = RunSecrets(self._settings).injected(self._machine_id)
            except (OSError, ValueError, KeyError, TypeError) as error:
                # Of another version, or cut off: the guest has placeholders, which are worth nothing.
                _log.warning("injected secrets cannot be read", machine=self._machine_id, error=type(error).__name__)
            if self._secrets:
                self.search, self.echoes = PlaceholderSearch(self._secrets), Echoes(self._secrets)
        return self._secrets or ()

    def of(self, host: str, port: int) -> tuple[InjectedSecret, ...]:
        """The secrets that are put into requests to the host."""
        return tuple(secret for secret in self.all() if secret.is_for(host, port))

    def refuse_placeholders(self, target: Target, text: bytes, where: str, *, but: str = "") -> None:
        """Raises Refusal when a placeholder is in the text, of another secret than the one that is named ``but``."""
        if self.all():
            self._refuse(target, self.search.names_in(text) - {but}, where)

    async def searched(self, target: Target, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """The body of a request as far as it holds no placeholder. Raises Refusal."""
        if not self.all():
            async for chunk in body:
                yield chunk
            return
        search = self.search.stream()
        async for chunk in body:
            clean, found = search.feed(chunk)
            self._refuse(target, found, "the request's body")
            if clean:
                yield clean
        clean, found = search.finish()
        self._refuse(target, found, "the request's body")
        if clean:
            yield clean

    def _refuse(self, target: Target, names: Collection[str], where: str) -> None:
        if not names:
            return
        name = min(names)
        own = next((each for each in self.of(target.host, target.port) if each.name == name), None)
        reason = f"it is put into the header {own.header} over TLS alone" if own else "it is not for this host"
        raise blocked(target.host, target.port, f"the placeholder of secret {name} stands in {where}; {reason}")

    @contextmanager
    def one_more(self, target: Target) -> Iterator[None]:
        """A place for a connection whose TLS ends here, which costs more than one that passes. Raises Refusal."""
        if self._open >= _CONNECTIONS_MOST:
            sentence = f"{target.host}: this machine has too many connections open to hosts with injected secrets"
            raise Refusal(OVERLOADED, sentence, "blocked", target.host, target.port)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1

    def certificates(self) -> Certificates | None:
        """The guest's end of TLS; None for a machine without an authority."""
        if self._certificates is None:
            authority = kept_authority(machine_paths(self._settings, self._machine_id).directory)
            self._certificates = Certificates(authority) if authority else None
        return self._certificates
