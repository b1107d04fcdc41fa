"""Token counts: read from the model's answers on their way through the gateway, and kept for each machine in a file."""

from __future__ import annotations

import json
import os
import secrets
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

TOKEN_FIELDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
# An event or a whole answer beyond this is passed on, but not read.
_READ_LIMIT = 4 * 2**20


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
                if isinstance(count, int) and count >= 0:
                    self._found[field] = count


class UsageLedger:
    """Counts of each machine in ``<directory>/<machine id>.json``, replaced as a whole so that a crash keeps them."""

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
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            draft = self._directory / f".{machine_id}.{os.getpid()}.{secrets.token_hex(4)}"
            draft.write_text(json.dumps(counts))
            draft.replace(self._path(machine_id))

    def remove(self, machine_id: str) -> None:
        """Drop the counts of a machine; nothing happens when there are none."""
        self._path(machine_id).unlink(missing_ok=True)

    def _path(self, machine_id: str) -> Path:
        return self._directory / f"{machine_id}.json"


def _json_object(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}
