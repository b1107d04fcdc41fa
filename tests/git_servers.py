"""Git servers for tests on loopback: git's own http-backend behind HTTP, and a real sshd."""

from __future__ import annotations

import base64
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import pytest

IDENTITY = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@t", "GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@t"}

# Answers a request itself: method, path, headers, body; None leaves it to git.
Answer = tuple[int, dict[str, str], bytes]
Beside = Callable[[str, str, dict[str, str], bytes], Answer | None]


def git(directory: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    done = subprocess.run(
        ["git", "-C", directory, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit(directory: Path, name: str, text: str) -> str:
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)
    git(directory, "add", "--all")
    git(directory, "commit", "--quiet", "--message", f"change {name}")
    return git(directory, "rev-parse", "HEAD")


def without_hosts_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have git read no configuration of whoever runs the tests, and go to its servers by no proxy of this host."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    for name in [name for name in os.environ if name.lower() in {"http_proxy", "https_proxy", "all_proxy"}]:
        monkeypatch.delenv(name)


@dataclass
class GitServer:
    """git http-backend behind a small HTTP server, with the repositories below ``root``.

    ``private`` has the ``user:password`` pairs that open a repository, ``moved`` the URLs that a repository's requests
    are sent to; ``slow`` holds packs back until it is set.
    """

    root: Path
    port: int = 0
    slow: threading.Event | None = None
    private: dict[str, set[str]] = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    beside: Beside | None = None
    asked: list[str] = field(default_factory=list)
    shown: list[tuple[str, str]] = field(default_factory=list)
    fetches: int = 0

    def __enter__(self) -> Self:
        self.root.mkdir()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.slow:
            self.slow.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def url(self, name: str, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}/{name}"

    def answer(self, request: BaseHTTPRequestHandler, path: str, query: str, body: bytes) -> Answer:
        """What a request gets: a refusal, the answer of what stands beside git, or git's own."""
        if refusal := self.refusal(path, query, request.headers.get("Authorization") or ""):
            return refusal
        if self.beside and (own := self.beside(request.command, path, dict(request.headers), body)):
            return own
        if b"command=fetch" in body:
            self.fetches += 1
            if self.slow:
                self.slow.wait(60)
        return _backend(self.root, request, path, query, body)

    def refusal(self, path: str, query: str, shown: str) -> Answer | None:
        """What is answered to a request that does not get as far as git."""
        repository, _, rest = path.strip("/").partition("/")
        name = repository.removesuffix(".git")
        if to := self.moved.get(name):
            return 302, {"Location": f"{to}/{rest}?{query}"}, b""
        wanted = self.private.get(name)
        if wanted is not None and shown not in {f"Basic {base64.b64encode(one.encode()).decode()}" for one in wanted}:
            return 401, {"WWW-Authenticate": 'Basic realm="git"'}, b""
        if "/forbidden" in path or "/broken" in path:
            return 403 if "/forbidden" in path else 503, {}, b""
        return None

    def credentials(self, path: str) -> set[str]:
        """The credentials that were shown in requests whose path begins so."""
        return {shown for asked, shown in self.shown if asked.startswith(path)}


def _handler(server: GitServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def serve(self) -> None:
            url = urlsplit(self.path)
            server.asked.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            shown = self.headers.get("Authorization") or ""
            if shown.startswith("Basic "):
                server.shown.append((url.path, base64.b64decode(shown.removeprefix("Basic ")).decode(errors="replace")))
            status, fields, payload = server.answer(self, url.path, url.query, body)
            self.send_response(status)
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(payload)

        do_GET = do_POST = do_PUT = serve  # noqa: N815 -- names that http.server calls

        def log_message(self, *_: object) -> None:
            pass

    return Handler


def _backend(root: Path, request: BaseHTTPRequestHandler, path: str, query: str, body: bytes) -> Answer:
    done = subprocess.run(
        ["git", "http-backend"],
        input=body,
        capture_output=True,
        check=False,
        env={
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": "*",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol") or "",
            "HTTP_CONTENT_ENCODING": request.headers.get("Content-Encoding") or "",
            "REQUEST_METHOD": request.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("Content-Type") or "",
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_ADDR": "127.0.0.1",
        },
    )
    head, _, payload = done.stdout.partition(b"\r\n\r\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
    return int(fields.pop("Status", "200")[:3]), fields, payload


# --- ssh


@cache
def sshd_program() -> Path | None:
    """The host's sshd, else the one in the host's package, which is not installed; None when there is none."""
    found = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    if found:
        return Path(found)
    place = Path(mkdtemp(prefix="taskyard-sshd-"))
    try:
        subprocess.run(
            ["apt-get", "download", "openssh-server"], cwd=place, check=True, capture_output=True, timeout=60
        )
        package = next(place.glob("*.deb"))
        subprocess.run(["dpkg", "-x", package, place / "x"], check=True, capture_output=True)
    except (OSError, subprocess.SubprocessError, StopIteration):
        return None
    return place / "x/usr/sbin/sshd"


@dataclass(frozen=True)
class SshServer:
    """An sshd whose one user is this test's. ``key`` is the private key that opens it, ``host_key`` its public one."""

    root: Path
    port: int
    key: str
    host_key: str

    def url(self, name: str) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.root / name}"

    @property
    def known_hosts(self) -> str:
        return f"[127.0.0.1]:{self.port} {self.host_key}"


@contextmanager
def ssh_server(directory: Path, root: Path, tools: Path | None = None) -> Iterator[SshServer]:
    """A real sshd on loopback while the block runs. What it starts finds the programs in ``tools`` too."""
    program = sshd_program()
    assert program is not None
    directory.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", directory / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (directory / "authorized").write_text((directory / "user.pub").read_text())
    (directory / "config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/authorized\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        "PermitRootLogin prohibit-password\nLogLevel VERBOSE\n"
        f"AcceptEnv GIT_PROTOCOL\nSetEnv PATH={tools or directory}:{os.environ['PATH']}\n"
    )
    command = [*_confined(directory), program, "-D", "-e", "-f", directory / "config"]
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        deadline = time.monotonic() + 20
        while "listening" not in (directory / "log").read_text():
            assert process.poll() is None, (directory / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        key = (directory / "user").read_text()
        yield SshServer(root, port, key, " ".join((directory / "host.pub").read_text().split()[:2]))
    finally:
        process.terminate()
        process.wait(10)


def _confined(directory: Path) -> list[str | Path]:
    """As root, sshd wants a user and a directory that only its installed package makes: here it sees them."""
    if os.getuid() != 0:
        return []
    users = Path("/etc/passwd").read_text()
    (directory / "passwd").write_text(users + "sshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n")
    return [
        *("bwrap", "--dev-bind", "/", "/", "--cap-add", "ALL", "--die-with-parent"),
        *("--ro-bind", directory / "passwd", "/etc/passwd", "--tmpfs", "/run", "--dir", "/run/sshd", "--"),
    ]
