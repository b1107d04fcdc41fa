"""Token counts and costs: read from the model's answers on their way, and kept for each machine in a file."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import structlog

from foundation.durable import ORDINARY, write_whole
from worker.gateway.prices import PriceTable

TOKEN_FIELDS = ("input_tokens", "output_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
_AMOUNTS = ("requests", *TOKEN_FIELDS, "cost_usd", "unpriced_tokens", "unpriced_usd")
_MODELS = "unpriced_models"
# Models without a price that are named; a guest may ask for as many as it likes.
_MODELS_MOST = 8
_MODEL_CHARS = 200
# An event or a whole answer beyond this is passed on, but not read.
_READ_LIMIT = 4 * 2**20
# No provider counts so far in one answer; what is larger is no count.
_MOST = 10**12
_COUNTS = "usage.json"
# Of a text of which no count is known: so many bytes are a token, and so many of its event are the event's own.
TOKEN_BYTES = 4
_EVENT_BYTES = 100

_log = structlog.get_logger(__name__)


class UsageReader:
    """Finds the usage in one answer, a JSON message or a stream of events, from its chunks.

    ``asked_bytes`` is the size of the request, by which it counts when the answer does not say what it came to.
    """

    def __init__(self, content_type: str, model: str = "", asked_bytes: int = 0) -> None:
        self.streamed = content_type.startswith("text/event-stream")
        #: The model that answers by its own word; until it is known, the one that was asked for.
        self.model = model
        #: How many of the tokens that were written to the cache stay there for an hour.
        self.hour_tokens = 0
        #: True once the counts of the request are known; those of the answer follow at its end.
        self.begun = False
        self._asked_bytes = asked_bytes
        self._answer_bytes = 0
        self._pending = bytearray()
        self._skipping = False
        self._found: dict[str, int] = {}
        self._told = 0
        self._ended = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the answer."""
        self._answer_bytes += len(chunk)
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
        """The counts found so far. Later events repeat the earlier counts or raise them, so the last one holds.

        What is not said, as in an answer that was left before its end, is counted by the length of what had come.
        """
        if not self.streamed and not self._skipping:
            self._take(_json_object(bytes(self._pending)))
        found = dict(self._found)
        if not self._ended and self._told > found.get("output_tokens", 0):
            found["output_tokens"] = self._told
        if "input_tokens" not in found:
            found["input_tokens"] = self._asked_bytes // TOKEN_BYTES
        if "output_tokens" not in found:
            found["output_tokens"] = self._answer_bytes // TOKEN_BYTES
        return found

    def _read_line(self, line: bytes) -> None:
        # Only two kinds of event carry usage; the text of the others is not worth parsing.
        if self._skipping or not line.startswith(b"data:"):
            return
        if b'"usage"' in line:
            event = _json_object(line[5:])
            if event.get("type") == "message_start":
                self._take(event.get("message"))
                self.begun = True
                return
            if event.get("type") == "message_delta":
                self._take(event)
                self._ended = True
                return
        if b"content_block_delta" in line:
            self._told += max(1, (len(line) - _EVENT_BYTES) // TOKEN_BYTES)

    def _take(self, holder: Any) -> None:
        if not isinstance(holder, dict):
            return
        if isinstance(model := holder.get("model"), str) and model:
            self.model = model[:_MODEL_CHARS]
        usage = holder.get("usage")
        if isinstance(usage, dict):
            for field in TOKEN_FIELDS:
                count = usage.get(field)
                if isinstance(count, int) and _is_count(count):
                    self._found[field] = count
            kept = usage.get("cache_creation")
            hour = kept.get("ephemeral_1h_input_tokens") if isinstance(kept, dict) else None
            if isinstance(hour, int) and _is_count(hour):
                self.hour_tokens = hour


class Bill:
    """What one answer comes to, as far as it is known: entered in the ledger step by step."""

    def __init__(self, ledger: UsageLedger, prices: PriceTable, machine_id: str) -> None:
        self._ledger = ledger
        self._prices = prices
        self._machine_id = machine_id
        self._entered: dict[str, float] = {}

    def enter(self, reader: UsageReader) -> dict[str, float]:
        """Enter what has come since the last time, and give it."""
        usage = reader.usage()
        cost = self._prices.cost(reader.model, usage, reader.hour_tokens)
        amounts: dict[str, float] = {"requests": 1, **usage}
        if cost is not None:
            amounts["cost_usd"] = cost
        else:
            amounts["unpriced_tokens"] = sum(usage.values())
            amounts["unpriced_usd"] = self._prices.most(usage, reader.hour_tokens)
        news = {field: amount - self._entered.get(field, 0) for field, amount in amounts.items()}
        # The model's own name may be another than the one that was asked for, and have another price.
        news |= {field: -amount for field, amount in self._entered.items() if field not in amounts}
        self._ledger.add(self._machine_id, news, unpriced=reader.model if cost is None and usage else None)
        self._entered = amounts
        return news

    def enter_unanswered(self, size: int) -> None:
        """Enter a request of ``size`` bytes whose answer nobody waited for: the provider has read it all the same."""
        usage = {"input_tokens": size // TOKEN_BYTES}
        self._ledger.add(self._machine_id, {**usage, "unpriced_usd": self._prices.most(usage)})


class UsageLedger:
    """Counts of each machine in a file among its own, with which it goes; replaced as a whole, so a crash keeps them.

    ``directory`` holds the machines' directories. What a full disk does not take is counted in memory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._unwritten: dict[str, dict[str, Any]] = {}

    def read(self, machine_id: str) -> dict[str, Any]:
        """``requests``, the token counts and the costs; zeros for a machine that asked nothing, or that is gone."""
        counts: dict[str, Any] = {**dict.fromkeys(_AMOUNTS, 0), _MODELS: []}
        path = self._path(machine_id)
        if not path.parent.is_dir():
            self._unwritten.pop(machine_id, None)
            return counts
        stored: Any = {}
        with suppress(OSError, ValueError):
            stored = json.loads(path.read_bytes())
        # No count ever falls: of two places, the larger number is the later one.
        for source in (stored, self._unwritten.get(machine_id, {})):
            if not isinstance(source, dict):
                continue
            for field in _AMOUNTS:
                if isinstance(source.get(field), int | float):
                    counts[field] = max(counts[field], source[field])
            if isinstance(source.get(_MODELS), list):
                counts[_MODELS] += [str(name) for name in source[_MODELS] if name not in counts[_MODELS]]
        return counts

    def add(self, machine_id: str, amounts: Mapping[str, float], unpriced: str | None = None) -> None:
        """Add to the counts; ``unpriced`` names a model that has no price."""
        with self._lock:
            counts = self.read(machine_id)
            for field, amount in amounts.items():
                counts[field] += amount
            named = counts[_MODELS]
            if unpriced is not None and unpriced not in named and len(named) < _MODELS_MOST:
                named.append(unpriced)
            try:
                write_whole(self._path(machine_id), json.dumps(counts), ORDINARY)
                self._unwritten.pop(machine_id, None)
            except OSError as error:
                # The machine is gone, or the disk is full: what is answered is worth more than its count.
                if self._path(machine_id).parent.is_dir():
                    self._unwritten[machine_id] = counts
                _log.warning("counts of a request are not on disk", machine=machine_id, error=str(error))

    def take_in(self, directory: Path) -> None:
        """Take the counts from where an earlier version kept them; those of machines that are gone go too."""
        for path in directory.glob("*.json"):
            with suppress(OSError):
                path.replace(self._path(path.stem))
        shutil.rmtree(directory, ignore_errors=True)

    def _path(self, machine_id: str) -> Path:
        return self._directory / machine_id / _COUNTS


def _is_count(value: int) -> bool:
    return not isinstance(value, bool) and 0 <= value <= _MOST


def _json_object(text: bytes) -> dict[str, Any]:
    with suppress(ValueError):
        value = json.loads(text)
        if isinstance(value, dict):
            return value
    return {}
