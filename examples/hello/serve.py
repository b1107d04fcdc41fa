"""Serves a bare git repository over loopback HTTP, read-only, through git's own ``http-backend``."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

PORT = 8418  # the one that task.yaml names
_CGI = ("REQUEST_METHOD", "QUERY_STRING", "PATH_INFO", "CONTENT_TYPE", "CONTENT_LENGTH", "REMOTE_ADDR")

Start = Callable[[str, list[tuple[str, str]]], Any]


@contextmanager
def serve(repository: Path, port: int = 0) -> Iterator[str]:
    """Serve while the context lasts; gives the repository's URL. Port 0 takes a free one. Raises OSError if taken."""
    application = git_backend(repository)
    server = make_server("127.0.0.1", port, application, server_class=Server, handler_class=Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/{repository.name}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Server(ThreadingMixIn, WSGIServer):
    """Serves each connection in a thread of its own."""

    daemon_threads = True


class Handler(WSGIRequestHandler):
    """Serves the requests of one connection."""

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the name it has there
        """Says nothing: the git client tells what went wrong."""


def git_backend(repository: Path) -> Callable[[dict[str, Any], Start], Iterable[bytes]]:
    """The WSGI application that serves the repository, read-only, below its name."""

    def application(request: dict[str, Any], start: Start) -> Iterable[bytes]:
        environment = {
            **{name: request.get(name, "") for name in _CGI},
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_PROJECT_ROOT": str(repository.parent),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.get("HTTP_GIT_PROTOCOL", ""),
            "HTTP_CONTENT_ENCODING": request.get("HTTP_CONTENT_ENCODING", ""),
            # The owner check is for repositories of strangers; this one was made by this program.
            "GIT_CONFIG_COUNT": "2",
            "GIT_CONFIG_KEY_0": "safe.directory",
            "GIT_CONFIG_VALUE_0": str(repository),
            "GIT_CONFIG_KEY_1": "http.receivepack",
            "GIT_CONFIG_VALUE_1": "false",
        }
        body = request["wsgi.input"].read(int(request.get("CONTENT_LENGTH") or 0))
        done = subprocess.run(["git", "http-backend"], input=body, env=environment, check=False, capture_output=True)
        head, _, content = done.stdout.partition(b"\r\n\r\n")
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n"))]
        status = next((value for name, value in headers if name == "Status"), "200 OK")
        start(status, [(name, value) for name, value in headers if name not in {"Status", ""}])
        return [content]

    return application
