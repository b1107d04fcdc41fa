"""Secrets out of Vault or OpenBao, by its HTTP API: key-value stores of both versions, login by token or by AppRole.

Every refusal is a reason that says what to do, as the rest of a sentence that began with the secret's name. None holds
a value: of what the server answers only its status and the kind of its answer are told.
"""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx

from foundation.errors import HostNotReady
from foundation.proxies import proxy_for
from foundation.settings import Settings

DEFAULT_FIELD = "value"

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
# For all secrets of a run together.
_SECONDS = 60.0
_BODY_BYTES = 2**20
_PAUSES = (0.5, 1.0, 2.0)
_REDIRECTS_MOST = 2
# A login that is about to end is not begun with.
_LOGIN_PART = 0.8

# The version of a key-value store that keeps earlier values, and has paths of its own for that.
_VERSIONED = 2

_OK, _BAD_REQUEST, _DENIED, _MISSING, _NOT_ALLOWED = 200, 400, 403, 404, 405
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Too many requests, a replica that is behind, standby nodes, and whatever the server says of itself.
_LATER = frozenset({412, 429, 472, 473, *range(500, 600)})


class VaultRefused(Exception):
    """The secret is not to be had. ``later`` says whether asking again can help."""

    def __init__(self, reason: str, *, later: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.later = later


@dataclass(frozen=True)
class _Answer:
    status: int
    body: dict[str, Any]

    @property
    def data(self) -> dict[str, Any]:
        data = self.body.get("data")
        return data if isinstance(data, dict) else {}

    def says(self, word: str) -> bool:
        """Whether the server's errors hold the word."""
        errors = self.body.get("errors")
        return isinstance(errors, list) and any(word in str(error).lower() for error in errors)


@dataclass(frozen=True)
class _Login:
    token: str
    ends: float


# Logins of this process by what they were made with, which is not kept itself.
_logins: dict[str, _Login] = {}
_logins_lock = threading.Lock()


def place(key: str) -> tuple[str, str]:
    """Path and field of a key ``path`` or ``path:field``."""
    path, colon, field = key.rpartition(":")
    return (path, field) if colon else (key, DEFAULT_FIELD)


class Vault:
    """The Vault of the settings for one look at secrets; asked for the first one, it logs in."""

    def __init__(self, settings: Settings, pause: Callable[[float], None] = time.sleep) -> None:
        self._settings = settings
        self._pause = pause
        self._open = ExitStack()
        self._login: _Login | None = None
        self._refreshed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def check(self) -> str:
        """Log in and look at the mount; what was found, in words. Raises VaultRefused."""
        return f"answers at {self._address}: key-value store of version {self._version} at {self._settings.vault_mount}"

    def read(self, key: str) -> str:
        """The value of a key. Raises VaultRefused."""
        path, field = place(key)
        if not self._settings.vault_address:
            raise VaultRefused("cannot be read: this worker knows no Vault; set TASKYARD_VAULT_ADDRESS")
        if not any(fnmatchcase(path, pattern) for pattern in self._settings.vault_paths):
            raise VaultRefused("is not allowed; TASKYARD_VAULT_PATHS names the paths that are")
        fields = self._fields(path)
        if field not in fields:
            raise VaultRefused(f"has no field '{field}'; name one of its fields as path:field")
        value = fields[field]
        if not isinstance(value, str):
            raise VaultRefused(f"holds no text in its field '{field}'; store it as text")
        return value

    def _fields(self, path: str) -> dict[str, Any]:
        mount = self._settings.vault_mount.strip("/")
        versioned = self._version == _VERSIONED
        answer = self._authorised("GET", f"{mount}/data/{path}" if versioned else f"{mount}/{path}")
        if answer.status == _DENIED:
            raise VaultRefused("is denied to the worker's login; let one of its policies give the capability 'read'")
        if answer.status == _NOT_ALLOWED:
            raise VaultRefused("cannot be read so; TASKYARD_VAULT_KV_VERSION is not that of the mount")
        if answer.status == _MISSING and answer.data.get("metadata"):
            raise VaultRefused("has no version any more: the newest is deleted; write it anew")
        if answer.status == _MISSING:
            raise VaultRefused(
                f"does not exist below the mount '{mount}'; write the path without the mount and without 'data/'"
            )
        fields = answer.data.get("data") if versioned else answer.data
        if answer.status != _OK or not isinstance(fields, dict):
            raise self._strange(answer)
        return fields

    @cached_property
    def _version(self) -> int:
        """The version of the key-value store at the mount: what the settings say, else what the mount itself says."""
        if self._settings.vault_kv_version != "auto":
            return int(self._settings.vault_kv_version)
        mount = self._settings.vault_mount.strip("/")
        answer = self._authorised("GET", f"sys/internal/ui/mounts/{mount}")
        if answer.status == _MISSING:
            # Servers that do not know the question have no second version.
            return 1
        if answer.status == _DENIED:
            raise VaultRefused(
                f"cannot be read: there is no mount '{mount}', or the worker's login may read nothing below it; look "
                "at TASKYARD_VAULT_MOUNT and at the policies of the login"
            )
        if answer.status != _OK:
            raise self._strange(answer)
        kind, options = answer.data.get("type"), answer.data.get("options")
        if kind not in {"kv", "generic"}:
            raise VaultRefused(
                f"cannot be read: the mount '{mount}' is no key-value store; look at TASKYARD_VAULT_MOUNT"
            )
        return _VERSIONED if isinstance(options, dict) and options.get("version") == str(_VERSIONED) else 1

    # --- the login

    def _authorised(self, method: str, path: str) -> _Answer:
        """Ask with the login, which is made anew, once, when it is refused."""
        held = self._login or self._log_in(anew=False)
        answer = self._ask(method, path, token=held.token)
        if answer.status != _DENIED:
            return answer
        if self._settings.vault_token is not None:
            if self._ask("GET", "auth/token/lookup-self", token=held.token).status == _DENIED:
                raise VaultRefused("cannot be read: Vault refuses the token of TASKYARD_VAULT_TOKEN; give a valid one")
            return answer
        if self._refreshed:
            return answer
        self._refreshed = True
        return self._ask(method, path, token=self._log_in(anew=True).token)

    def _log_in(self, *, anew: bool) -> _Login:
        settings = self._settings
        if settings.vault_token is not None:
            self._login = _Login(settings.vault_token.get_secret_value(), float("inf"))
            return self._login
        if settings.vault_role_id is None or settings.vault_secret_id is None:
            raise VaultRefused(
                "cannot be read: this worker has no login at Vault; set TASKYARD_VAULT_TOKEN, or "
                "TASKYARD_VAULT_ROLE_ID and TASKYARD_VAULT_SECRET_ID"
            )
        secret_id = settings.vault_secret_id.get_secret_value()
        made_with = json.dumps([settings.vault_address, settings.vault_namespace, settings.vault_role_id, secret_id])
        key = hashlib.sha256(made_with.encode()).hexdigest()
        with _logins_lock:
            known = _logins.get(key)
        # One that another look has made since is as good as a new one.
        stale = self._login
        if known and known.ends > time.monotonic() and not (anew and stale and known.token == stale.token):
            self._login = known
            return known
        answer = self._ask(
            "POST",
            f"auth/{settings.vault_approle_mount.strip('/')}/login",
            body={"role_id": settings.vault_role_id, "secret_id": secret_id},
        )
        auth = answer.body.get("auth")
        token = auth.get("client_token") if isinstance(auth, dict) else None
        if answer.status in {_BAD_REQUEST, _DENIED, _MISSING}:
            raise VaultRefused(
                "cannot be read: Vault refuses the AppRole login; look at TASKYARD_VAULT_ROLE_ID, "
                "TASKYARD_VAULT_SECRET_ID and TASKYARD_VAULT_APPROLE_MOUNT"
            )
        if answer.status != _OK or not isinstance(token, str):
            raise self._strange(answer)
        seconds = auth.get("lease_duration") if isinstance(auth, dict) else None
        # A lease of 0 has no end.
        lasting = seconds * _LOGIN_PART if isinstance(seconds, int) and seconds > 0 else float("inf")
        self._login = _Login(token, time.monotonic() + lasting)
        with _logins_lock:
            _logins[key] = self._login
        return self._login

    # --- requests

    def _ask(self, method: str, path: str, *, token: str | None = None, body: dict[str, str] | None = None) -> _Answer:
        """One request, tried again while the server says that it is not for good."""
        # What is no letter, digit, or one of -._~ is written as its code, the slashes between names left alone.
        url = f"{self._address}/v1/{quote(path)}"
        for pause in (*_PAUSES, None):
            try:
                answer = self._once(method, url, token, body)
            except httpx.TransportError as error:
                reason = self._unreachable(error)
            except httpx.HTTPError:
                raise self._no_vault() from None
            else:
                if answer.status not in _LATER:
                    return answer
                reason = self._not_now(answer)
            if pause is None or time.monotonic() + pause > self._deadline:
                break
            self._pause(pause)
        raise VaultRefused(reason, later=True)

    def _once(self, method: str, url: str, token: str | None, body: dict[str, str] | None) -> _Answer:
        headers = {"X-Vault-Request": "true"}
        if token is not None:
            headers["X-Vault-Token"] = token
        if self._settings.vault_namespace:
            headers["X-Vault-Namespace"] = self._settings.vault_namespace
        for _ in range(_REDIRECTS_MOST + 1):
            with self._client.stream(method, url, headers=headers, json=body) as response:
                if response.status_code not in _REDIRECTS:
                    return _Answer(response.status_code, self._body(response))
                url = self._followed(response)
        raise VaultRefused("cannot be read: Vault sends from one address to the next; look at TASKYARD_VAULT_ADDRESS")

    def _followed(self, response: httpx.Response) -> str:
        """Where a redirect leads. The login is for the host that the settings name, and for no other."""
        asked = response.request.url
        try:
            target = asked.join(response.headers.get("Location", ""))
        except (httpx.InvalidURL, ValueError):
            target = httpx.URL("")
        if target.host != asked.host or target.scheme != asked.scheme:
            raise VaultRefused(
                f"cannot be read: Vault at {self._address} sends to another host, which is not followed; set "
                "TASKYARD_VAULT_ADDRESS to the one that answers"
            )
        return str(target)

    def _body(self, response: httpx.Response) -> dict[str, Any]:
        read = bytearray()
        for chunk in response.iter_bytes():
            read += chunk
            if len(read) > _BODY_BYTES:
                raise VaultRefused(f"is larger than the {_BODY_BYTES // 2**20} MiB that are read of an answer")
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("", request=response.request)
        try:
            body = json.loads(bytes(read) or b"{}")
        except (ValueError, RecursionError):
            body = None
        if isinstance(body, dict):
            return body
        if response.status_code in _LATER:
            return {}
        raise self._no_vault()

    def _no_vault(self) -> VaultRefused:
        return VaultRefused(
            f"cannot be read: what answers at {self._address} is no Vault; look at TASKYARD_VAULT_ADDRESS"
        )

    def _unreachable(self, error: httpx.TransportError) -> str:
        if re.search("CERTIFICATE_VERIFY_FAILED|certificate verify failed", str(error)):
            raise VaultRefused(
                f"cannot be read: the TLS certificate of Vault at {self._address} is not trusted; name its authority "
                "in TASKYARD_VAULT_CA_FILE"
            )
        what = "does not answer in time" if isinstance(error, httpx.TimeoutException) else "cannot be reached"
        return f"cannot be read: Vault at {self._address} {what}; look whether it runs, and at TASKYARD_VAULT_ADDRESS"

    def _not_now(self, answer: _Answer) -> str:
        if answer.says("sealed"):
            return f"cannot be read: Vault at {self._address} is sealed; unseal it"
        return f"cannot be read: Vault at {self._address} answers with status {answer.status}; look at its log"

    def _strange(self, answer: _Answer) -> VaultRefused:
        return VaultRefused(
            f"cannot be read: Vault at {self._address} answers with status {answer.status} in a form that is not known"
        )

    @cached_property
    def _address(self) -> str:
        return (self._settings.vault_address or "").rstrip("/")

    @cached_property
    def _deadline(self) -> float:
        return time.monotonic() + _SECONDS

    @cached_property
    def _client(self) -> httpx.Client:
        try:
            trusted = self._settings.vault_ca_file
            context = ssl.create_default_context(cafile=trusted) if trusted else httpx.create_ssl_context()
            client = httpx.Client(
                timeout=httpx.Timeout(_ANSWER_SECONDS, connect=_CONNECT_SECONDS),
                headers={"Accept-Encoding": "identity"},
                proxy=proxy_for(self._address),
                verify=context,
                trust_env=False,
                follow_redirects=False,
            )
        except (OSError, ValueError, ImportError, HostNotReady) as error:
            what = error.message if isinstance(error, HostNotReady) else str(error)
            raise VaultRefused(
                f"cannot be read: no client of Vault can be made ({what}); look at TASKYARD_VAULT_CA_FILE and at the "
                "proxy variables"
            ) from None
        return self._open.enter_context(client)
