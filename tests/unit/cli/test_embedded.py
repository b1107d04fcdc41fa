"""How the stack knows that its parts are up."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.stack.embedded import server_part
from tests.stack_settings import isolated_settings


class _Well(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def answering(port: int) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), _Well) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def test_the_server_is_up_when_both_of_its_ports_answer(tmp_path: Path) -> None:
    settings = isolated_settings(tmp_path)
    probe = server_part(settings).probe
    assert probe(0, 0) == "its answer"
    with answering(settings.api_port):
        assert probe(0, 0) == "its WebSocket port"
        with answering(settings.ws_port):
            assert probe(0, 0) is None
