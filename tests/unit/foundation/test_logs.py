"""The processes' own logs: one handler, one format, nothing secret in tracebacks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from foundation.logs import configure_logs


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def test_json_lines_of_both_kinds_of_loggers(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("json", "worker")
    structlog.get_logger("worker").info("ready", machine="vm-1")
    logging.getLogger("uvicorn.error").warning("Started %s", "it", extra={"color_message": "x"})
    logging.getLogger("uvicorn.access").info("GET /")
    ours, foreign = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert ours | {"timestamp": ""} == {
        "event": "ready",
        "machine": "vm-1",
        "logger": "worker",
        "level": "info",
        "process": "worker",
        "timestamp": "",
    }
    assert (foreign["event"], foreign["level"], foreign["process"]) == ("Started it", "warning", "worker")
    assert "color_message" not in foreign


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_no_line_holds_credentials_that_a_client_has_sent(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(log_format, "server")  # type: ignore[arg-type]
    url = "https://someone:hush@host.invalid/?token=hush"
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "127.0.0.1:1", f"/stream?task_id={url}")
    structlog.get_logger("server").warning("request failed", path=url)
    try:
        int(url)
    except ValueError:
        structlog.get_logger("server").exception("it broke")
    shown = capsys.readouterr().err
    assert shown.count("host.invalid") >= 3
    assert "hush" not in shown


@pytest.mark.parametrize("log_format", ["json", "text"])
def test_a_traceback_shows_no_local_variable(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs(log_format, "server")  # type: ignore[arg-type]
    password = "canary" + "-5ce1"
    try:
        int(password[:0])
    except ValueError:
        structlog.get_logger("server").exception("it broke")
    shown = capsys.readouterr().err
    assert "ValueError" in shown
    assert "canary-5ce1" not in shown


def test_what_guests_and_clients_cause_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logs("text", "worker")
    logging.getLogger("paramiko.transport").error("Secsh channel 4 open FAILED: : Connect failed")
    logging.getLogger("uvicorn.error").error("ASGI callable returned without completing handshake.")
    logging.getLogger("uvicorn.error").info('%s - "WebSocket %s" [accepted]', "", "/v1/machines/vm-1/connect/80")
    logging.getLogger("uvicorn.error").info("connection open")
    logging.getLogger("paramiko.transport").error("Exception (client): it broke")
    assert len(capsys.readouterr().err.splitlines()) == 1
