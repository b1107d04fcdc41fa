"""The final record of a run: what remains readable when the workflow engine has forgotten it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from storage.bucket import ObjectStore
from storage.layout import RUNS


def write_record(bucket: ObjectStore, task_id: str, record: Mapping[str, Any]) -> None:
    """Store the JSON-ready record of a run; a later one replaces it."""
    bucket.put(
        RUNS.record_key(task_id), json.dumps(record, ensure_ascii=False).encode(), content_type="application/json"
    )


def read_record(bucket: ObjectStore, task_id: str) -> dict[str, Any] | None:
    """The record of a run; None when it has not ended or was never there."""
    body = bucket.get(RUNS.record_key(task_id))
    return dict(json.loads(body)) if body else None
