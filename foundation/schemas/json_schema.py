"""JSON Schemas that users write, and whether a value fits one: within limits, and with no look at anything elsewhere.

A small schema can ask for more comparisons than a host will ever make, and a value may come from a guest. So patterns
are read by an engine that takes linear time, and values are compared in a process of their own, which is ended when its
time is over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import jsonschema_rs

from foundation.child_environment import child_environment

#: A schema as JSON.
SCHEMA_BYTES = 64 * 1024

_SECONDS = 10.0
_MEMORY_BYTES = 2**30
_REASON_CHARS = 400
_PLACE_PARTS = 8


def fault(schema: Any) -> str | None:
    """Why this is no JSON Schema that can be used here, as the rest of a sentence; None when it is one."""
    if not isinstance(schema, dict):
        return "must be a mapping: a JSON Schema"
    try:
        size = len(json.dumps(schema).encode())
    except (ValueError, TypeError, RecursionError):
        return "is nothing that JSON can say"
    if size > SCHEMA_BYTES:
        return f"is too large: {size} bytes as JSON, and {SCHEMA_BYTES} are the most"
    try:
        _validator(schema)
    except ValueError as error:
        return f"is no JSON Schema that can be used here: {_reason(error)}"
    return None


def misfit(schema: Any, value: Any) -> str | None:
    """Why a value does not fit the schema, as a sentence without its end; None when it fits. Takes 10 s at most."""
    try:
        asked = json.dumps({"schema": schema, "value": value}).encode()
        done = subprocess.run(
            [sys.executable, "-I", "-m", "foundation.schemas.json_schema"],
            input=asked,
            env=child_environment(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"whether it fits the schema could not be told within {_SECONDS:.0f} s; make the schema simpler"
    except (ValueError, TypeError, RecursionError):
        return "it is nothing that JSON can say"
    if done.returncode:
        return "whether it fits the schema could not be told; make the schema simpler"
    return done.stdout.decode() or None


def _validator(schema: Any) -> jsonschema_rs.Validator:
    return jsonschema_rs.validator_for(schema, offline=True, pattern_options=jsonschema_rs.RegexOptions())


def _reason(error: ValueError) -> str:
    """What the library says, in one line: it may quote the value, which may be long."""
    said = str(getattr(error, "message", error)).split("\n", 1)[0]
    place = "".join(f"[{json.dumps(part)}]" for part in list(getattr(error, "instance_path", ()))[:_PLACE_PARTS])
    text = f"{said} (at {place})" if place else said
    return text if len(text) <= _REASON_CHARS else text[: _REASON_CHARS - 1] + "…"


def _compare() -> None:
    """The process of its own: takes schema and value from stdin, and prints what does not fit."""
    import resource  # noqa: PLC0415 -- for this process alone

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    asked = json.load(sys.stdin.buffer)
    try:
        _validator(asked["schema"]).validate(asked["value"])
    except ValueError as error:
        sys.stdout.buffer.write(_reason(error).encode(errors="replace"))


if __name__ == "__main__":
    _compare()
