"""The attempts of ``proxy.yaml`` as the bytes that a guest sends, and what it reads as their outcome."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_TABLE = Path(__file__).with_name("proxy.yaml")
_ESTABLISHED = re.compile(rb"HTTP/1\.1 200 [^\n]*\r\n\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
#: What an origin says, in the body of an answer or by itself.
GREETING = b"you have reached the origin"
LOCATION = b"http://169.254.169.254/latest/"


@dataclass(frozen=True)
class Attempt:
    """One row."""

    name: str
    sent: bytes
    answer: tuple[str, ...]
    log: tuple[str, ...]
    policy: dict[str, Any]
    slow: bool = False
    #: Whether a part of what is sent may be at the origin before the rest is refused.
    partly: bool = False
    #: Words that the origin must not have got.
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """All of it: the attempts, and the world that they are made in."""

    attempts: Sequence[Attempt]
    names: dict[str, list[str]]
    policy: dict[str, Any] = field(default_factory=dict)
    denied: list[str] = field(default_factory=list)


def read_table(**places: str) -> Table:
    """The table with its places filled in: port, origin, named, private."""
    loaded = _filled(yaml.safe_load(_TABLE.read_text()), {**places, "huge": "x" * 100_000, "fields": "a: b\r\n" * 300})
    attempts = [
        Attempt(
            name=row["name"],
            sent=_sent(row),
            answer=tuple(map(str, row["answer"] if isinstance(row["answer"], list) else [row["answer"]])),
            log=tuple(row.get("log", ())),
            policy=row.get("policy", loaded["policy"]),
            slow=row.get("slow", False),
            partly=row.get("partly", False),
            without=tuple(row.get("without", ())),
        )
        for row in loaded["rows"]
    ]
    return Table(attempts, loaded["names"], loaded["policy"], loaded["denied"])


def outcome(read: bytes) -> tuple[str, ...]:
    """What a guest has read, in the words of the table."""
    rest = _ESTABLISHED.sub(b"", read, count=1) if _ESTABLISHED.match(read) and GREETING not in read[:60] else read
    found = []
    for match in re.finditer(rb"HTTP/1\.1 (\d{3}) |" + GREETING, rest):
        if match[1] in {None, b"200"}:
            found += ["reached"] if match[1] is None else []
        elif match[1] == b"302" and LOCATION in rest:
            found.append("redirected")
        else:
            found.append(match[1].decode())
    if found:
        return tuple(found)
    return ("alert",) if rest.startswith(b"\x15\x03") else ("closed",)


def client_hello(names: Sequence[str]) -> bytes:
    """The first message of a client of TLS that names these servers."""
    listed = b"".join(b"\0" + _vector(2, name.encode("latin-1")) for name in names)
    extensions = b"\0\0" + _vector(2, _vector(2, listed)) if names else b""
    # Versions, as a client of TLS 1.3 has them.
    extensions += b"\0\x2b" + _vector(2, b"\x02\x03\x04")
    hello = b"\x03\x03" + bytes(32) + _vector(1, b"") + _vector(2, b"\x13\x01") + _vector(1, b"\0")
    return b"\x16\x03\x01" + _vector(2, b"\x01" + _vector(3, hello + _vector(2, extensions)))


def _vector(size: int, content: bytes) -> bytes:
    return len(content).to_bytes(size) + content


def _sent(row: dict[str, Any]) -> bytes:
    sent = b""
    if "connect" in row:
        sent += _head([f"CONNECT {row['connect']} HTTP/1.1", f"Host: {row['connect']}"])
    if "hello" in row:
        names = row["hello"] or []
        sent += client_hello([names] if isinstance(names, str) else names)
    if "head" in row:
        sent += _head(row["head"])
    return sent + row.get("bytes", "").encode("latin-1")


def _head(lines: list[str]) -> bytes:
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def _filled(value: Any, places: dict[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\{(\w+)\}", lambda match: places[match[1]], value)
    if isinstance(value, list):
        return [_filled(each, places) for each in value]
    if isinstance(value, dict):
        return {key: _filled(each, places) for key, each in value.items()}
    return value
