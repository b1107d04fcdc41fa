"""A bucket in memory, for properties that need thousands of runs; a real S3 server shows elsewhere what it promises."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from storage.bucket import ObjectInfo
from storage.layout import TASKS
from storage.redaction import Redactor
from storage.runlog import LogEntry, RunLogWriter, read_entries

TASK = TASKS.place("task-1")
SECRETS = {"TOKEN": "tok-12345", "WORD": "äöüé", "LINES": "first line of it\nsecond line of it"}
REDACTOR = Redactor(SECRETS)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stored(bucket: MemoryBucket, stream: str) -> str:
    return "".join(entry.data for entry in read_entries(bucket, TASK) if entry.stream == stream)


def expected(source: bytes) -> str:
    return REDACTOR.redact(source).decode(errors="replace")


def check_ids(entries: list[LogEntry]) -> None:
    assert [entry.id for entry in entries] == list(range(1, len(entries) + 1))
    for stream in ("stdout", "stderr"):
        offsets = [entry.offset for entry in entries if entry.stream == stream]
        assert all(before < after for before, after in pairwise(offsets))


def writer_of(bucket: MemoryBucket, clock: Clock | None = None) -> RunLogWriter:
    writer = RunLogWriter(bucket, TASK, REDACTOR, clock=clock or Clock())
    writer.resume()
    return writer


def fill(bucket: MemoryBucket, count: int) -> list[LogEntry]:
    writer = writer_of(bucket)
    for number in range(count):
        writer.feed("stdout", b"%05d\n" % number, number * 6)
        writer.flush(force=True)
    return list(read_entries(bucket, TASK))


class MemoryBucket:
    """Objects in a dictionary. ``before`` and ``after`` surround each request and may raise, as a network does."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.before: Callable[[str, str], None] = lambda _action, _key: None
        self.after: Callable[[str, str], None] = lambda _action, _key: None
        self.reads = 0

    def put(self, key: str, data: bytes, *, if_absent: bool = False, content_type: str = "") -> bool:
        del content_type
        self.before("put", key)
        # Of two threads at once, one is the first.
        if if_absent and self.objects.setdefault(key, data) is not data:
            return False
        self.objects[key] = data
        self.after("put", key)
        return True

    def get(self, key: str) -> bytes | None:
        self.reads += 1
        self.before("get", key)
        return self.objects.get(key)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        self.reads += 1
        self.before("list", prefix)
        for key in sorted(self.objects):
            if key.startswith(prefix) and (start_after is None or key > start_after):
                yield ObjectInfo(key, len(self.objects[key]))

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.before("delete", key)
            self.objects.pop(key, None)
            self.after("delete", key)
