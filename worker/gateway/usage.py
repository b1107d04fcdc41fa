"""Token counts: read from the model's answers on their way through the gateway, and kept for each machine in a file."""

from __future__ import annotations

import json
import shutil
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from foundation.durable import ORDINARY, write_whole

TOKEN_FIELDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
# An event or a whole answer beyond this is passed on, but not read.
_READ_LIMIT = 4 * 2**20
# No provider counts so far in one answer; what is larger is no count.
_MOST = 10**12
_COUNTS = "usage.json"

_log = structlog.get_logger(__name__)


class UsageReader:
    """Finds the usage in one answer, a JSON message or a stream of events, from its chunks."""

    def __init__(self, content_type: str) -> None:
        self.streamed = content_type.startswith("text/event-stream")
        self._pending = bytearray()
        self._skipping = False
        self._found: dict[str, int] = {}

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer."""
        self._pending += chunk
        if self.streamed:
            *lines, rest = self._pending.split(b"\n")
            self._pending = rest
            for line in lines:
                self._read_line(bytes(line))
                self._skipping = False
        if len(self._pending) > _READ_LIMIT:
            self._pending.clear()
            self._skipping = True

    def usage(self) -> dict[str, int]:
        """The counts found so far. Later events repeat the earlier counts or raise them, so the last one holds."""
        if not self.streamed and not self._skipping:
            self._take(_json_object(bytes(self._pending)))
        return dict(self._found)

    def _read_line(self, line: bytes) -> None:
        # Only two kinds of event carry usage; the text of the others is not worth parsing.
        if not self._skipping and line.startswith(b"data:") and b'"usage"' in line:
            event = _json_object(line[5:])
            if event.get("type") == "message_start":
                self._take(event.get("message"))
            elif event.get("type") == "message_delta":
                self._take(event)

    def _take(self, holder: Any) -> None:
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            for field in TOKEN_FIELDS:
                count = usage.get(field)
                if isinstance(count, int) and 0 <= count <= _MOST:
                    self._found[field] = count


class UsageLedger:
    """Counts of each machine in a file among its own, with which it goes; replaced as a whole, so a crash keeps them.

    ``directory`` holds the machines' directories.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()

    def read(self, machine_id: str) -> dict[str, int]:
        """``requests`` and the token counts; zeros for a machine that asked nothing."""
        counts = dict.fromkeys(("requests", *TOKEN_FIELDS), 0)
        with suppress(FileNotFoundError, ValueError):
            stored = json.loads(self._path(machine_id).read_bytes())
            counts.update({field: stored[field] for field in counts if isinstance(stored.get(field), int)})
        return counts

    def add(self, machine_id: str, usage: dict[str, int]) -> None:
        """Count one request with its usage."""
        with self._lock:
            counts = self.read(machine_id)
            for field, count in {"requests": 1, **usage}.items():
                counts[field] += count
            try:
                write_whole(self._path(machine_id), json.dumps(counts), ORDINARY)
            except OSError as error:
                # The machine is gone, or the disk is full: what is answered is worth more than its count.
                _log.warning("a request was not counted", machine=machine_id, error=str(error))

    def take_in(self, directory: Path) -> None:
        """Take the counts from where an earlier version kept them; those of machines that are gone go too."""
        for path in directory.glob("*.json"):
            with suppress(OSError):
                path.replace(self._path(path.stem))
        shutil.rmtree(directory, ignore_errors=True)

    def _path(self, machine_id: str) -> Path:
        return self._directory / machine_id / _COUNTS


def _json_object(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}
