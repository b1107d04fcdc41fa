"""The structured output of an agent: what of its word can be kept, and whether that fits the schema of the run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from foundation.schemas.json_schema import misfit
from workflows.runs.messages import OUTPUT_BYTES
from workflows.runs.requests import AgentResult
from workflows.runs.states import Cause

#: How Claude Code ends when its model has not kept to the schema.
GAVE_UP = "error_max_structured_output_retries"

_DEPTH_MOST = 64
_INTEGER_MOST = 2**63


class Unkept(ValueError):
    """What cannot be kept as it is; the text is the rest of a sentence."""


def keep(value: Any, redact: Callable[[str], str]) -> Any:
    """JSON of a guest as it can go through messages, history and other programs' JSON. Raises Unkept.

    Known secrets are taken out of it.
    """
    kept = _plain(value, redact, _DEPTH_MOST)
    if (size := len(json.dumps(kept).encode())) > OUTPUT_BYTES:
        raise Unkept(f"has {size} bytes as JSON, and {OUTPUT_BYTES} are the most")
    return kept


def judge(result: AgentResult, schema: dict[str, Any] | None, unkept: str | None) -> None:
    """Hold an agent's success to the schema of its run: what it gave has to fit, or that is the cause of the end.

    ``unkept`` is why its output is not in the result, null when there was none.
    """
    if schema is None:
        result.output = None
        return
    if result.cause is not None:
        return
    if unkept is not None:
        reason = unkept
    elif result.output is None:
        reason = "is missing: Claude Code ended without one"
    elif (unfit := misfit(schema, result.output)) is not None:
        reason = f"does not fit claude.output_schema: {unfit}"
    else:
        return
    result.output = None
    result.cause, result.error = Cause.OUTPUT_INVALID, f"The run's output {reason}."


def _plain(value: Any, redact: Callable[[str], str], depth: int) -> Any:
    if depth == 0:
        raise Unkept(f"is nested deeper than {_DEPTH_MOST} levels")
    if isinstance(value, str):
        # Halves of characters, which JSON can name and no encoding can write.
        return redact(value).encode(errors="replace").decode()
    if isinstance(value, dict):
        return {_plain(key, redact, depth): _plain(item, redact, depth - 1) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, redact, depth - 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise Unkept("holds a number that JSON has not")
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _INTEGER_MOST:
        raise Unkept("holds a number of more than 63 bits")
    return value
