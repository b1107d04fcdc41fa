"""Who may ask, for the dialects that want to know: clients by a key, and whoever has a token by what it opens."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from dataclasses import dataclass

from starlette.requests import HTTPConnection

from foundation.errors import Unauthorized
from foundation.settings import Settings

_SCHEME = "bearer"
_HOLDER_CHARS = 16


@dataclass(frozen=True)
class Grant:
    """What a credential opens: everything when it is a key, and else the ``purposes`` of one ``run`` alone.

    ``holder`` names who has it: of a key, as much as can be told of it.
    """

    holder: str
    run: str | None = None
    purposes: frozenset[str] = frozenset()

    def opens(self, run: str | None, purpose: str | None) -> bool:
        """Whether it opens what serves this purpose of a run; no token opens what has no purpose."""
        return self.run is None or (self.run == run and purpose in self.purposes)


#: What a token opens; None when it is no token of this kind, or not valid any more. May raise HostNotReady.
TokenReader = Callable[[str], Grant | None]


class Access:
    """The one place where credentials are checked, for every dialect that wants some."""

    def __init__(self, settings: Settings, *readers: TokenReader) -> None:
        self._settings = settings
        self._readers = readers
        self._keys: list[bytes] | None = None

    def holder(self, connection: HTTPConnection) -> str | None:
        """Whose key the request shows, where none is needed; None without one that is known here.

        Raises HostNotReady when it shows one, and a key of this server cannot be read.
        """
        try:
            grant = self.grant(connection)
        except Unauthorized:
            return None
        return grant.holder if grant.run is None else None

    def grant(self, connection: HTTPConnection) -> Grant:
        """What the request's credential opens.

        Raises Unauthorized without one that is known, HostNotReady when a key of this server cannot be read.
        """
        scheme, _, credential = connection.headers.get("authorization", "").partition(" ")
        credential = credential.strip()
        if scheme.lower() != _SCHEME or not credential:
            raise Unauthorized("Authentication credentials were not provided: send 'Authorization: Bearer KEY'.")
        if self._keys is None:
            self._keys = self._settings.client_keys()
        given = credential.encode()
        # Each is compared in the same time whatever is given.
        if any(hmac.compare_digest(given, key) for key in self._keys):
            return Grant(hashlib.sha256(given).hexdigest()[:_HOLDER_CHARS])
        for reader in self._readers:
            if (grant := reader(credential)) is not None:
                return grant
        raise Unauthorized("This key is not known here; 'sandbox config key' shows the one of a server of your own.")
