"""The final record of a run: what remains readable when the workflow engine has forgotten it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from storage.bucket import ObjectStore
from storage.layout import Place


def write_record(bucket: ObjectStore, place: Place, record: Mapping[str, Any]) -> None:
    """Store the JSON-ready record of a run; a later one replaces it."""
    bucket.put(place.record_key, json.dumps(record, ensure_ascii=False).encode(), content_type="application/json")


def read_record(bucket: ObjectStore, place: Place) -> dict[str, Any] | None:
    """The record of a run; None when it has not ended or was never there."""
    body = bucket.get(place.record_key)
    return dict(json.loads(body)) if body else None
