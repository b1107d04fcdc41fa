"""A manifest is taken whole or refused with every fault, each naming its field."""

from __future__ import annotations

import pytest

from foundation.errors import InvalidManifest
from workflows.manifest import parse, parse_json, parse_yaml

MINIMAL = """
version: "1"
kind: Task
metadata:
  name: "My Task"
repository:
  url: "https://github.com/org/repo.git"
  branch: "main"
claude:
  prompt: "Your instructions here"
"""


def faults(data: object) -> dict[str, str]:
    with pytest.raises(InvalidManifest) as refused:
        parse(data)
    return {fault["field"]: fault["message"] for fault in refused.value.details["errors"]}


def with_fields(**parts: dict[str, object]) -> dict[str, object]:
    data = parse_yaml(MINIMAL).model_dump(mode="json")
    for part, fields in parts.items():
        data[part] = {**data[part], **fields} if isinstance(fields, dict) else fields
    return data


def test_the_minimal_manifest_gets_the_documented_defaults() -> None:
    manifest = parse_yaml(MINIMAL)
    assert manifest.metadata.id is None
    vm, claude, lifecycle = manifest.vm, manifest.claude, manifest.lifecycle
    assert (vm.profile, vm.cpus, vm.memory, vm.disk, vm.network_mode) == ("agentic-dev", 4, "8G", "40G", "isolated")
    assert (claude.headless, claude.skip_permissions, claude.output_format) == (True, True, "stream-json")
    assert claude.model == "claude-sonnet-4-5-20250929"
    assert (lifecycle.timeout, lifecycle.failure_action, lifecycle.artifact_patterns) == ("24h", "destroy", [])


@pytest.mark.parametrize("task_id", ["", None])
def test_an_empty_id_is_no_id(task_id: str | None) -> None:
    assert parse(with_fields(metadata={"id": task_id})).metadata.id is None


def test_every_fault_is_told_at_once_with_its_field() -> None:
    found = faults(
        {
            "version": 1,
            "metadata": {"nam": "x"},
            "repository": {"url": "ftp://a/b", "branch": "-x"},
            "vm": {"cpu": 2, "memory": "big"},
            "secrets": [{"name": "1x", "source": "vault", "key": ""}],
            "lifecycle": {"timeout": "8d", "artifact_patterns": ["../x"]},
        }
    )
    assert set(found) == {
        "version",
        "metadata.name",
        "metadata.nam",
        "repository.url",
        "repository.branch",
        "claude",
        "vm.cpu",
        "vm.memory",
        "secrets[0].name",
        "secrets[0].source",
        "secrets[0].key",
        "lifecycle.timeout",
        "lifecycle.artifact_patterns[0]",
    }
    assert "did you mean 'cpus'?" in found["vm.cpu"]
    assert "did you mean 'name'?" in found["metadata.nam"]


@pytest.mark.parametrize(
    ("part", "fields", "field"),
    [
        ("metadata", {"id": "../../etc"}, "metadata.id"),
        ("metadata", {"id": "ends-with-newline\n"}, "metadata.id"),
        ("metadata", {"labels": {"a b": "c"}}, "metadata.labels"),
        ("repository", {"url": "https://user:secret@host/a.git"}, "repository.url"),
        ("repository", {"url": "--upload-pack=x"}, "repository.url"),
        ("repository", {"branch": "a..b"}, "repository.branch"),
        ("repository", {"commit": "HEAD~1"}, "repository.commit"),
        ("repository", {"subpath": "a/../../b"}, "repository.subpath"),
        ("claude", {"prompt": "  "}, "claude.prompt"),
        ("claude", {"max_turns": 0}, "claude.max_turns"),
        ("vm", {"cpus": 0}, "vm.cpus"),
        ("vm", {"memory": "64M"}, "vm.memory"),
        ("vm", {"disk": "1G"}, "vm.disk"),
        ("vm", {"network_mode": "open"}, "vm.network_mode"),
        ("lifecycle", {"timeout": "169h"}, "lifecycle.timeout"),
        ("lifecycle", {"failure_action": "keep"}, "lifecycle.failure_action"),
    ],
)
def test_what_would_not_work_later_is_refused_now(part: str, fields: dict[str, object], field: str) -> None:
    assert list(faults(with_fields(**{part: fields}))) == [field]


def test_a_secret_is_given_once_and_a_file_by_its_absolute_path() -> None:
    twice = {"name": "TOKEN", "source": "env", "key": "TOKEN"}
    assert "given twice" in faults(with_fields(secrets=[twice, twice]))["secrets"]
    assert "absolute" in faults(with_fields(secrets=[{**twice, "source": "file"}]))["secrets[0]"]


@pytest.mark.parametrize("url", ["https://h/a.git", "http://h/a", "ssh://git@h/a", "git@host.example:org/a.git"])
def test_the_usual_transports_are_taken(url: str) -> None:
    assert parse(with_fields(repository={"url": url})).repository.url == url


@pytest.mark.parametrize("text", ["- a", "a: [", "just words", "", "a: \x00"])
def test_what_is_no_mapping_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidManifest, match="manifest"):
        parse_yaml(text)
    with pytest.raises(InvalidManifest, match="manifest"):
        parse_json(text)
