"""What one process writes, one of another version reads: unknown fields do no harm, at whatever depth they stand."""

from __future__ import annotations

import json
import types
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import AwareDatetime, BaseModel, RootModel, TypeAdapter
from temporalio.api.common.v1 import Payload
from temporalio.contrib.pydantic import pydantic_data_converter

import client.tasks.replies
import machines.records
import storage.artifacts
import storage.hosts
import storage.segments
import workflows.messages
import workflows.runs.messages
import workflows.runs.requests
import workflows.specs.manifest
import workflows.specs.wire
from foundation.errors import InvalidManifest
from workflows.runs.messages import TaskStatus
from workflows.runs.states import Cause

NEWER = {"of a newer version": {"below it": [1, {"deeper": None}]}}
ENCODED = {"encoding": b"json/plain"}
AT = "2026-01-29T10:30:00Z"
PLAIN: dict[Any, Any] = {
    str: "x",
    int: 1,
    float: 1.0,
    bool: True,
    datetime: AT,
    AwareDatetime: AT,
    timedelta: "PT30S",
    Any: NEWER,
}


def models(*modules: types.ModuleType) -> list[type[BaseModel]]:
    found = [
        each
        for module in modules
        for each in vars(module).values()
        if isinstance(each, type) and issubclass(each, BaseModel) and each.__module__ == module.__name__
    ]
    # A mapping of whatever is told has no field that could be unknown.
    return [each for each in found if each.model_fields and not issubclass(each, RootModel)]


def sample(kind: Any, newer: dict[str, Any]) -> Any:
    """JSON data of the type with every field there, and in each model the ``newer`` ones."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: sample(field.annotation, newer) for name, field in kind.model_fields.items()} | newer
    if isinstance(kind, type) and issubclass(kind, Enum):
        return next(iter(kind)).value
    parts = [each for each in get_args(kind) if each not in {types.NoneType, Ellipsis}]
    origin = get_origin(kind)
    if origin in {tuple, list}:
        return [sample(each, newer) for each in parts]
    if origin is dict:
        return {str(sample(parts[0], newer)): sample(parts[1], newer)}
    if origin is Literal:
        return parts[0]
    # What is left in brackets is a union, of which the first will do, or an annotated type.
    return sample(parts[0], newer) if parts else PLAIN[kind]


MESSAGES = models(workflows.messages, workflows.runs.messages, workflows.runs.requests, workflows.specs.wire)
RECORDS = models(client.tasks.replies, storage.artifacts, storage.hosts, storage.segments, machines.records)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.__name__)
async def test_a_message_with_unknown_fields_at_every_level_is_read_as_without_them(message: type[BaseModel]) -> None:
    async def read(newer: dict[str, Any]) -> Any:
        payload = Payload(metadata=ENCODED, data=json.dumps(sample(message, newer)).encode())
        return (await pydantic_data_converter.decode([payload], type_hints=[message]))[0]

    assert await read(NEWER) == await read({})


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record.__module__}.{record.__name__}")
def test_a_record_or_a_reply_with_unknown_fields_at_every_level_is_read(record: type[BaseModel]) -> None:
    known = sample(record, {})
    read = TypeAdapter(record).validate_json(json.dumps(sample(record, NEWER)))
    expected = TypeAdapter(record).validate_json(json.dumps(known))
    assert read.model_dump(include=set(record.model_fields), mode="json").keys() == expected.model_dump().keys()


def test_the_user_s_form_has_the_fields_of_the_wire_and_takes_no_others() -> None:
    for strict in models(workflows.specs.manifest):
        tolerant = getattr(workflows.specs.wire, strict.__name__)
        assert issubclass(strict, tolerant)
        assert list(strict.model_fields) == list(tolerant.model_fields)
        assert strict.model_config["extra"] == "forbid"
    manifest = {
        "metadata": {"name": "x"},
        "repository": {"url": "https://a.invalid/b", "branch": "m"},
        "claude": {"prompt": "p"},
    }
    written = workflows.specs.manifest.parse(manifest).model_dump_json()
    assert workflows.specs.wire.Manifest.model_validate_json(written).model_dump_json() == written
    with pytest.raises(InvalidManifest):
        workflows.specs.manifest.parse(manifest | NEWER)


def test_a_cause_that_only_a_newer_process_knows_is_read_as_a_fault_of_ours() -> None:
    status = {"id": "a", "name": "a", "created_at": "2026-01-01T00:00:00Z", "state_changed_at": "2026-01-01T00:00:00Z"}
    assert TaskStatus.model_validate(status | {"cause": "struck_by_lightning"}).cause is Cause.INTERNAL
    assert TaskStatus.model_validate(status | {"cause": "agent_exit"}).cause is Cause.AGENT_EXIT


@pytest.mark.parametrize(
    "field",
    [
        {"repository": {"url": "gopher://somewhere", "branch": "no branch ..", "commit": "HEAD"}},
        {"metadata": {"name": "", "labels": {"a key": "x" * 5000}}},
        {"vm": {"cpus": 0, "memory": "much"}, "lifecycle": {"failure_action": "sell", "timeout": "9d"}},
    ],
)
def test_what_an_older_version_took_is_still_read(field: dict[str, Any]) -> None:
    manifest = {"metadata": {"name": "x"}, "repository": {"url": "u", "branch": "m"}, "claude": {"prompt": "p"}}
    workflows.specs.wire.Manifest.model_validate(manifest | field)
