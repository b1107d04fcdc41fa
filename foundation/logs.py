"""The processes' own logs: one set-up for structlog, uvicorn and temporalio, as text or as JSON lines."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

import structlog

from foundation.urls import without_credentials

# Chatty at INFO about things that say nothing to an operator.
_QUIET = ("httpx", "httpcore", "paramiko", "asyncio", "urllib3", "qemu.qmp", "uvicorn.access", "hpack")

# What libraries say of each case, at whatever level, though whoever asked is told: how often, a guest or a client
# decides. Of connections to machines there are notes of their own.
_SAID_TO_THE_ASKER = (
    ("paramiko.transport", "Secsh channel "),
    ("uvicorn.error", "ASGI callable returned without completing "),
    ("uvicorn.error", ' - "WebSocket /v1/machines/'),
    # These say not even whose connection it is.
    ("uvicorn.error", "connection open"),
    ("uvicorn.error", "connection closed"),
)


def configure_logs(log_format: Literal["text", "json"], process: str, level: int = logging.INFO) -> None:
    """Send every record of this process to stderr, in one format and with the process's name.

    ``structlog.get_logger()`` and the standard library's loggers (uvicorn's and temporalio's among them) end in the
    same handler. Colours only where stderr is a terminal.
    """
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _named(process),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(log_format)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.captureWarnings(capture=True)
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] in {"uvicorn", "temporalio"}:
            # Their own handlers would print every line twice.
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True
    for name in {name for name, _ in _SAID_TO_THE_ASKER}:
        logging.getLogger(name).addFilter(_is_news)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _is_news(record: logging.LogRecord) -> bool:
    said = record.getMessage()
    return not any(record.name == name and part in said for name, part in _SAID_TO_THE_ASKER)


def _renderers(log_format: Literal["text", "json"]) -> list[structlog.types.Processor]:
    # Tracebacks as text: the structured form holds local variables, and those hold secrets.
    bare: list[structlog.types.Processor] = [structlog.processors.format_exc_info, _without_credentials]
    if log_format == "json":
        return [*bare, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [*bare, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _without_credentials(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    """What clients send is in uvicorn's lines and in tracebacks, before anything has refused it."""
    return {key: without_credentials(value) if isinstance(value, str) else value for key, value in event.items()}


def _named(process: str) -> structlog.types.Processor:
    def add_name(_logger: Any, _method: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        event.setdefault("process", process)
        event.pop("color_message", None)  # uvicorn says everything twice
        return event

    return add_name
