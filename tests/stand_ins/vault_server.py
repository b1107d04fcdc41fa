"""A Vault for tests: the HTTP API as its public documentation has it, over real connections on loopback.

What it serves: the key-value stores of both versions, the mount's own answer, AppRole and token logins, policies by
globs of paths, namespaces, and a seal. No registry that the tests may use has a server that could stand here.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

ROLE_ID = "db02de05-fa39-4855-059b-67221c5c2f63"
SECRET_ID = "6a174c20-f6de-a53c-74d2-6018fcceff64"


@dataclass
class VaultServer:
    """``stored`` has fields by mount and path, ``tokens`` the globs of what each may read.

    ``awry`` are answers that are given instead, one for each request: a status with a body and headers.
    """

    versions: dict[str, int] = field(default_factory=lambda: {"secret": 2, "kv": 1})
    stored: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    deleted: set[tuple[str, str]] = field(default_factory=set)
    tokens: dict[str, list[str]] = field(default_factory=dict)
    role_policy: list[str] = field(default_factory=lambda: ["*"])
    lease_seconds: int = 1200
    namespace: str | None = None
    sealed: bool = False
    awry: deque[tuple[int, bytes, dict[str, str]]] = field(default_factory=deque)
    asked: list[str] = field(default_factory=list)
    logins: int = 0

    def __enter__(self) -> Self:
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}"

    def answer(self, method: str, path: str, headers: Any, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Status and body of a request."""
        if self.sealed:
            return 503, _errors("Vault is sealed")
        if path == "auth/approle/login":
            return self._log_in(body) if method == "POST" else (405, _errors())
        globs = self.tokens.get(headers.get("X-Vault-Token") or "")
        if globs is None or (headers.get("X-Vault-Namespace") or None) != self.namespace:
            return 403, _errors("permission denied")
        if path == "auth/token/lookup-self":
            return 200, {"data": {"policies": ["default"], "ttl": 3600}}
        mount = path.removeprefix("sys/internal/ui/mounts/")
        return self._mount(mount) if mount != path else self._read(path, globs)

    def _log_in(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if body != {"role_id": ROLE_ID, "secret_id": SECRET_ID}:
            return 400, _errors("invalid role or secret ID")
        self.logins += 1
        token = f"hvs.{secrets.token_hex(12)}"
        self.tokens[token] = self.role_policy
        auth = {"client_token": token, "renewable": True, "lease_duration": self.lease_seconds, "policies": ["default"]}
        return 200, {"auth": auth}

    def _mount(self, name: str) -> tuple[int, dict[str, Any]]:
        version = self.versions.get(name)
        if version is None:
            return 403, _errors(f'preflight capability check returned 403, please ensure access to path "{name}/"')
        if version == 0:
            return 200, {"data": {"type": "pki", "path": f"{name}/", "options": None}}
        return 200, {"data": {"type": "kv", "path": f"{name}/", "options": {"version": str(version)}}}

    def _read(self, path: str, globs: list[str]) -> tuple[int, dict[str, Any]]:
        mount, _, below = path.partition("/")
        version = self.versions.get(mount)
        name = below.removeprefix("data/")
        if not any(fnmatchcase(name, glob) for glob in globs):
            return 403, _errors("1 error occurred:\n\t* permission denied\n\n")
        if version == 2 and not below.startswith("data/"):
            return 404, {"errors": [], "warnings": ["Invalid path for a versioned K/V secrets engine."]}
        if (mount, name) in self.deleted:
            times = {"deletion_time": "2026-01-29T10:30:00Z", "destroyed": False, "version": 3}
            return 404, {"data": {"data": None, "metadata": times}}
        fields = self.stored.get((mount, name))
        if fields is None:
            return 404, _errors()
        if version == 1:
            return 200, {"data": fields, "lease_duration": 2764800}
        return 200, {"data": {"data": fields, "metadata": {"deletion_time": "", "destroyed": False, "version": 1}}}


def _errors(*messages: str) -> dict[str, Any]:
    return {"errors": list(messages)}


def _handler(vault: VaultServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            vault.asked.append(f"{self.command} {self.path}")
            sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if vault.awry:
                status, content, headers = vault.awry.popleft()
            else:
                path = unquote(self.path.removeprefix("/v1/"))
                status, answer = vault.answer(self.command, path, self.headers, json.loads(sent or b"{}"))
                content, headers = json.dumps(answer).encode(), {"Content-Type": "application/json"}
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = serve  # noqa: N815 -- names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    return Handler
