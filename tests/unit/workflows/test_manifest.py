"""A manifest is taken whole or refused with every fault, each naming its field.

Above 400 lines: most of it is tables with a row for each rule.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError, create_model

from foundation.errors import InvalidManifest
from foundation.faults import MOST_FAULTS
from tests.manifests import parse_json, parse_yaml
from workflows.specs import mcp
from workflows.specs.faults import of_rules
from workflows.specs.manifest import (
    MAX_BYTES,
    MAX_ENTRIES,
    MAX_LABELS,
    MAX_NAME,
    MAX_SECRETS,
    MAX_URL,
    parse,
)
from workflows.specs.wire import NetworkMode, NetworkPolicy

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


def with_fields(**parts: Any) -> dict[str, Any]:
    data = parse_yaml(MINIMAL).model_dump(mode="json")
    for part, fields in parts.items():
        data[part] = {**(data[part] or {}), **fields} if isinstance(fields, dict) else fields
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
            "secrets": [{"name": "1x", "source": "safe", "key": ""}],
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
        ("metadata", {"labels": {"a b": "c"}}, "metadata.labels.a b"),
        ("repository", {"url": "https://user:secret@host/a.git"}, "repository.url"),
        ("repository", {"url": "--upload-pack=x"}, "repository.url"),
        ("repository", {"branch": "a..b"}, "repository.branch"),
        ("repository", {"commit": "HEAD~1"}, "repository.commit"),
        ("repository", {"subpath": "a/../../b"}, "repository.subpath"),
        ("claude", {"prompt": "  "}, "claude.prompt"),
        ("claude", {"max_turns": 0}, "claude.max_turns"),
        ("claude", {"max_turns": True}, "claude.max_turns"),
        ("claude", {"max_turns": 1_000_001}, "claude.max_turns"),
        *(
            ("claude", {"max_budget_usd": value}, "claude.max_budget_usd")
            for value in (0, -1, 0.0, True, "5", float("nan"), float("inf"), 1e10)
        ),
        *(("claude", {"max_tokens_total": value}, "claude.max_tokens_total") for value in (0, -1, 1.5, True, 10**16)),
        *(("claude", {"effort": value}, "claude.effort") for value in ("ultra", "", 3, True)),
        *(("claude", {"permission_mode": value}, "claude.permission_mode") for value in ("ask", "PLAN", 1)),
        ("claude", {"permission_mode": "plan", "skip_permissions": True}, "claude"),
        ("claude", {"permission_mode": "bypassPermissions", "skip_permissions": False}, "claude"),
        *(
            ("claude", {"output_schema": value}, "claude.output_schema")
            for value in (
                "object",
                [],
                {"type": "array"},
                {"type": "object", "required": "all"},
                {"type": "object", "properties": {"at": {"$ref": "https://example.org/at.json"}}},
                {"type": "object", "properties": {"at": {"$ref": "file:///etc/hostname"}}},
                {"type": "object", "properties": {"at": {"pattern": "(?=a)b"}}},
                {"type": "object", "properties": {"at": {"pattern": "((a{99}){99}){99}"}}},
                {"type": "object", "title": "x" * 70_000},
            )
        ),
        *(("resume", {"run": value}, "resume.run") for value in ("", "../x", "a b", 7, None, "x" * 64)),
        ("resume", {"run": "a", "conversation": "maybe"}, "resume.conversation"),
        ("resume", {"run": "a", "files": True}, "resume.files"),
        ("resume", {}, "resume.run"),
        ("lifecycle", {"budget_action": "wait"}, "lifecycle.budget_action"),
        ("lifecycle", {"decision_timeout": "8d"}, "lifecycle.decision_timeout"),
        ("lifecycle", {"decision_timeout": "169h"}, "lifecycle.decision_timeout"),
        ("vm", {"cpus": True}, "vm.cpus"),
        ("repository", {"url": "https://"}, "repository.url"),
        ("repository", {"url": "https://:80/a"}, "repository.url"),
        ("repository", {"url": "https://[::1/a"}, "repository.url"),
        ("repository", {"url": "ssh://git@git.example.org:org/a.git"}, "repository.url"),
        ("repository", {"url": "ssh://-oProxyCommand=x/a"}, "repository.url"),
        ("repository", {"url": "-oProxyCommand=x@git.example.org:a"}, "repository.url"),
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


PIN = "h ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIL0sNqQHYVQpJFWfNmwFWxzBTvoZ7ZTQwZxLkqYPc3Mb"
TOKEN = {"name": "GIT_TOKEN", "source": "vault", "key": "ci/git:token"}


@pytest.mark.parametrize(
    "fields",
    [
        {"url": "https://h/a.git"},
        {"url": "http://127.0.0.1:3000/a.git"},
        {"url": "ssh://git@h/a.git", "known_hosts": PIN},
        {"url": "git@h:a.git", "known_hosts": f"# a comment\n{PIN} note\n\n@cert-authority *.{PIN}\n[h]:22,{PIN}\n"},
    ],
)
def test_a_secret_opens_the_repository_and_the_guest_gets_the_others(fields: dict[str, str]) -> None:
    other = {"name": "OTHER", "source": "env", "key": "OTHER"}
    manifest = parse(with_fields(repository={**fields, "credentials": "GIT_TOKEN"}, secrets=[TOKEN, other]))
    opening = manifest.credentials()
    assert opening is not None
    assert opening.key == "ci/git:token"
    assert [secret.name for secret in manifest.guest_secrets()] == ["OTHER"]
    injected = {**TOKEN, "inject": {"hosts": ["git.example.org"]}}
    vm = {"network_mode": "outbound", "allowed_hosts": ["git.example.org"]}
    asked_for = parse(with_fields(repository={**fields, "credentials": "GIT_TOKEN"}, secrets=[injected], vm=vm))
    assert [secret.name for secret in asked_for.guest_secrets()] == ["GIT_TOKEN"]


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"credentials": "GIT_TOKN"}, "credentials", "no secret of this manifest"),
        ({"credentials": ""}, "credentials", "empty"),
        ({"credentials": "GIT_TOKEN", "url": "http://h/a"}, "credentials", "unencrypted"),
        ({"credentials": "GIT_TOKEN", "url": "http://127.0.0.1.example.org/a"}, "credentials", "unencrypted"),
        ({"credentials": "GIT_TOKEN", "url": "file:///a"}, "credentials", "opens nothing"),
        ({"known_hosts": PIN, "url": "git@h:a"}, "known_hosts", "repository.credentials"),
        ({"known_hosts": PIN, "credentials": "GIT_TOKEN"}, "known_hosts", "SSH URL"),
        ({"known_hosts": "h ssh-ed25519", "credentials": "GIT_TOKEN"}, "known_hosts", "line 1"),
        ({"known_hosts": f"{PIN}\nh ssh-rsa AAAA", "credentials": "GIT_TOKEN"}, "known_hosts", "line 2"),
        ({"known_hosts": PIN.replace("ed25519", "rsa"), "credentials": "GIT_TOKEN"}, "known_hosts", "line 1"),
        ({"known_hosts": "# nothing", "credentials": "GIT_TOKEN"}, "known_hosts", "no key"),
        ({"known_hosts": f"{PIN}\n" * 300, "credentials": "GIT_TOKEN"}, "known_hosts", "too long"),
    ],
)
def test_credentials_that_open_nothing(fields: dict[str, str], field: str, words: str) -> None:
    told = faults(with_fields(repository=fields, secrets=[TOKEN]))
    assert words in told[f"repository.{field}"]


@pytest.mark.parametrize("key", ["app", "team/deploy:token", "a b/ü%41:x-y", "a:b:c", "v1.2/x..y"])
def test_keys_in_vault(key: str) -> None:
    assert parse(with_fields(secrets=[{"name": "A", "source": "vault", "key": key}])).secrets[0].key == key


@pytest.mark.parametrize(
    "key", ["/a", "a/", "a//b", "a/../b", "..", "./a", "a/ b", "a?version=1", "a#b", "a\\b", "a:", ":b", ": "]
)
def test_keys_that_could_lead_elsewhere_in_vault(key: str) -> None:
    told = faults(with_fields(secrets=[{"name": "A", "source": "vault", "key": key}]))
    assert "path or path:field" in told["secrets[0]"]


@pytest.mark.parametrize("url", ["https://h/a.git", "http://h/a", "ssh://git@h/a", "git@host.example:org/a.git"])
def test_the_usual_transports_are_taken(url: str) -> None:
    assert parse(with_fields(repository={"url": url})).repository.url == url


@pytest.mark.parametrize("text", ["- a", "a: [", "just words", "", "a: \x00"])
def test_what_is_no_mapping_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidManifest, match="manifest"):
        parse_yaml(text)
    with pytest.raises(InvalidManifest, match="manifest"):
        parse_json(text)


CANARY = "hush0123456789abcdef"
CREDENTIALS = [
    f"https://{CANARY}@git.example.org/a.git",
    f"https://:{CANARY}@git.example.org/a.git",
    f"https://someone%3A{CANARY}@git.example.org/a.git",
    f"https://{CANARY}%40git.example.org/a.git",
    f"ssh://git:{CANARY}@git.example.org/a.git",
    f"git:{CANARY}@git.example.org:a.git",
    f"https://git.example.org/a.git?private_token={CANARY}",
    f"https://git.example.org/a.git#access%5Ftoken={CANARY}",
    f"https://git.example.org/glpat-{CANARY}/a.git",
    f"https://git.example.org/x-token-auth:{CANARY}/a.git",
    f"ghp_{CANARY}@git.example.org:org/a.git",
    f"npm_{CANARY}",
]
PLACES: dict[str, Any] = {
    "repository.url": lambda url: {"repository": {"url": url}},
    "repository.branch": lambda url: {"repository": {"branch": url}},
    "metadata.labels.from": lambda url: {"metadata": {"labels": {"from": url}}},
    "secrets[0].key": lambda url: {"secrets": [{"name": "A", "source": "env", "key": url}]},
    "lifecycle.artifact_patterns[0]": lambda url: {"lifecycle": {"artifact_patterns": [url]}},
    "vm.allowed_hosts[1]": lambda url: {"vm": {"allowed_hosts": ["a", url]}},
    "vm.unknown": lambda url: {"vm": {"unknown": url}},
    "claude.mcp_config.mcpServers.a.url": lambda url: server(url=url, type="http"),
    "claude.mcp_config.mcpServers.a.args[1]": lambda url: server(command="x", args=["--from", f"--url={url}"]),
    "claude.mcp_config.mcpServers.a.env.FROM": lambda url: server(command="x", env={"FROM": url}),
    "claude.mcp_config.mcpServers.a.headers.From": lambda url: server(url="https://a.b", headers={"From": url}),
    "claude.mcp_config.mcpServers.a.other.deep[0]": lambda url: server(command="x", other={"deep": [url]}),
}


def server(**fields: Any) -> dict[str, Any]:
    return {"claude": {"mcp_config": {"mcpServers": {"a": fields}}}}


@pytest.mark.parametrize("url", CREDENTIALS)
@pytest.mark.parametrize("field", PLACES)
def test_credentials_in_a_url_are_refused_wherever_they_stand_and_are_not_repeated(field: str, url: str) -> None:
    with pytest.raises(InvalidManifest) as refused:
        parse(with_fields(**PLACES[field](url)))
    found = [fault for fault in refused.value.details["errors"] if fault["validation"] == "credentials"]
    assert [fault["field"] for fault in found] == [field]
    assert CANARY not in json.dumps(refused.value.details) + refused.value.message


def test_refusals_are_in_words_of_the_manifest() -> None:
    labels = {f"k{number}": "" for number in range(MAX_LABELS + 1)}
    told = faults(with_fields(metadata={"labels": labels}))["metadata.labels"]
    assert f"more entries than the {MAX_LABELS}" in told
    form = create_model("Form", reason=(str, ...))
    with pytest.raises(ValidationError) as refused:
        form.model_validate({"reason": "a", "reson": "b"}, extra="forbid")
    (fault,) = of_rules(refused.value.errors(), form)
    assert "manifest" not in fault.message
    assert "did you mean 'reason'?" in fault.message


def test_the_refusal_of_credentials_says_what_to_use() -> None:
    url = CREDENTIALS[0]
    assert "git on the VM host" in faults(with_fields(repository={"url": url}))["repository.url"]
    told = faults(with_fields(**server(url=url, type="http")))["claude.mcp_config.mcpServers.a.url"]
    assert "${NAME}" in told
    assert "secrets" in told


@pytest.mark.parametrize("field", ["url", "env", "headers", "args"])
def test_references_in_an_mcp_server_are_the_way_to_give_it_secrets(field: str) -> None:
    url = "https://x-access-token:${TOKEN}@mcp.example.org/?key=${TOKEN}"
    fields: dict[str, Any] = {
        "url": {"url": url, "type": "http"},
        "env": {"command": "x", "env": {"TOKEN": "${TOKEN}", "URL": url}},
        "headers": {"url": "https://a.b", "type": "sse", "headers": {"Authorization": "Bearer ${TOKEN}"}},
        "args": {"command": "x", "args": ["--token", "${TOKEN}"]},
    }
    secrets = [{"name": "TOKEN", "source": "env", "key": "TOKEN"}]
    manifest = parse(with_fields(secrets=secrets, **server(**fields[field])))
    assert manifest.claude.mcp_config is not None
    assert list(mcp.warnings(manifest.claude.mcp_config, {"TOKEN"}, "m", NetworkPolicy(mode=NetworkMode.FULL))) == []


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"args": ["--token", "hush"]}, ["args[1]"]),
        ({"args": ["-v", "--api-key=hush"]}, ["args[1]"]),
        ({"args": ["-H", "Authorization: Bearer hush"]}, ["args[1]"]),
        ({"args": ["run", "-e", "GITHUB_TOKEN=hush", "tool"]}, ["args[2]"]),
        ({"env": {"PASSWORD": "hush", "MODE": "fast"}}, ["env.PASSWORD"]),
        ({"env": {"PASSWORD": "${PASSWORD:-hush}"}}, ["env.PASSWORD"]),
        ({"env": {"PASSWORD": "${PASSWORD:-}"}}, []),
        ({"args": ["--token", "--verbose", "--max-tokens=5", "a:b=c", "--header", "Authorization: Bearer ${T}"]}, []),
        ({"args": []}, []),
    ],
)
def test_secrets_that_are_written_out_in_an_mcp_server_are_told(fields: dict[str, Any], where: list[str]) -> None:
    manifest = parse(with_fields(**server(command="x", **fields)))
    assert manifest.claude.mcp_config is not None
    told = list(mcp.warnings(manifest.claude.mcp_config, {"T", "PASSWORD"}, "m", NetworkPolicy(mode=NetworkMode.FULL)))
    assert [fault.field for fault in told] == [f"m.mcpServers.a.{field}" for field in where]
    assert "hush" not in str(told)


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"a": {"command": "x"}}, "mcpServers"),
        ({"mcpServers": {"a": {"url": "http://[::1/x", "type": "http"}}}, "mcpServers.a.url"),
        ({"mcpServers": {"a": {"url": "https://a\\b", "type": "http"}}}, "mcpServers.a.url"),
        ({"mcpServers": {"a": {"url": "https://a\t.b", "type": "http"}}}, "mcpServers.a.url"),
        ({"mcpServers": None}, "mcpServers"),
        ({"mcpServers": ["a"]}, "mcpServers"),
        ({"mcpServers": {"": {"command": "x"}}}, "mcpServers."),
        ({"mcpServers": {"a": "x"}}, "mcpServers.a"),
        ({"mcpServers": {"a": {}}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"type": "stdio"}}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"command": " "}}}, "mcpServers.a.command"),
        ({"mcpServers": {"a": {"command": ["x"]}}}, "mcpServers.a.command"),
        ({"mcpServers": {"a": {"command": "x", "args": "y"}}}, "mcpServers.a.args"),
        ({"mcpServers": {"a": {"command": "x", "args": ["y", 1]}}}, "mcpServers.a.args[1]"),
        ({"mcpServers": {"a": {"command": "x", "env": {"PORT": 8080}}}}, "mcpServers.a.env.PORT"),
        ({"mcpServers": {"a": {"command": "x", "env": ["A=b"]}}}, "mcpServers.a.env"),
        ({"mcpServers": {"a": {"url": "https://a.b"}}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"url": "a.b", "type": "http"}}}, "mcpServers.a.url"),
        ({"mcpServers": {"a": {"url": "https://a.b", "type": "soap"}}}, "mcpServers.a.type"),
        ({"mcpServers": {"a": {"url": "https://a.b", "command": "x"}}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"command": "x", "type": "http"}}}, "mcpServers.a"),
        ({"mcpServers": {"a": {"url": "https://a.b", "type": "http", "headers": {"A": 1}}}}, "mcpServers.a.headers.A"),
    ],
)
def test_mcp_servers_that_claude_code_would_leave_out_are_refused(config: dict[str, Any], field: str) -> None:
    assert list(faults(with_fields(claude={"mcp_config": config}))) == [f"claude.mcp_config.{field}"]


LIMITS: dict[str, tuple[Any, Any, str]] = {
    "name": ({"metadata": {"name": "n" * MAX_NAME}}, {"metadata": {"name": "n" * (MAX_NAME + 1)}}, "metadata.name"),
    "labels": (
        {"metadata": {"labels": {f"k{n}": "" for n in range(MAX_LABELS)}}},
        {"metadata": {"labels": {f"k{n}": "" for n in range(MAX_LABELS + 1)}}},
        "metadata.labels",
    ),
    "label key": (
        {"metadata": {"labels": {"k" * 63: ""}}},
        {"metadata": {"labels": {"k" * 64: ""}}},
        f"metadata.labels.{'k' * 64}",
    ),
    "url": (
        {"repository": {"url": "https://a/".ljust(MAX_URL, "x")}},
        {"repository": {"url": "https://a/".ljust(MAX_URL + 1, "x")}},
        "repository.url",
    ),
    "branch": ({"repository": {"branch": "b" * 255}}, {"repository": {"branch": "b" * 256}}, "repository.branch"),
    "subpath": ({"repository": {"subpath": "s" * 1024}}, {"repository": {"subpath": "s" * 1025}}, "repository.subpath"),
    "model": ({"claude": {"model": "m" * 200}}, {"claude": {"model": "m" * 201}}, "claude.model"),
    "tools": (
        {"claude": {"allowed_tools": ["t"] * MAX_ENTRIES}},
        {"claude": {"allowed_tools": ["t"] * (MAX_ENTRIES + 1)}},
        "claude.allowed_tools",
    ),
    "pattern": (
        {"lifecycle": {"artifact_patterns": ["p" * 500]}},
        {"lifecycle": {"artifact_patterns": ["p" * 501]}},
        "lifecycle.artifact_patterns[0]",
    ),
    "secrets": (
        {"secrets": [{"name": f"S{n}", "source": "env", "key": "A"} for n in range(MAX_SECRETS)]},
        {"secrets": [{"name": f"S{n}", "source": "env", "key": "A"} for n in range(MAX_SECRETS + 1)]},
        "secrets",
    ),
    "prompt": (
        {"claude": {"prompt": "p" * (MAX_BYTES - 2000)}},
        {"claude": {"prompt": "p" * MAX_BYTES}},
        "claude.prompt",
    ),
    "prompt of what JSON writes longer": (
        {"claude": {"prompt": "\x1b[31m" * (MAX_BYTES // 10 - 200)}},
        {"claude": {"prompt": "\x1b[31m" * (MAX_BYTES // 10)}},
        "claude.prompt",
    ),
}


@pytest.mark.parametrize("limit", LIMITS)
def test_every_limit_is_one_of_ours_and_names_its_field(limit: str) -> None:
    largest, too_large, field = LIMITS[limit]
    parse(with_fields(**largest))
    assert list(faults(with_fields(**too_large))) == [field]


@given(st.sampled_from("\n\r\t\x00\x07\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066"), st.text("ab", max_size=3))
def test_what_is_shown_in_one_line_is_one_line(control: str, around: str) -> None:
    text = f"x{around}{control}{around}y"
    for field, parts in {
        "metadata.name": {"metadata": {"name": text}},
        "metadata.labels.a": {"metadata": {"labels": {"a": text}}},
        "repository.url": {"repository": {"url": f"https://a/{text}"}},
        "repository.subpath": {"repository": {"subpath": text}},
        "claude.allowed_tools[0]": {"claude": {"allowed_tools": [text]}},
        "secrets[0].key": {"secrets": [{"name": "A", "source": "env", "key": text}]},
    }.items():
        found = faults(with_fields(**parts))
        assert list(found) == [field]
        assert control not in found[field]


def test_names_and_labels_may_hold_what_people_write() -> None:
    name = "🚀 O'Brien's “50 %” fix: zürich/日本 👩\u200d💻"
    labels = {"who": "O'Brien", "uni": "zürich/日本", "pr": "1.10", "empty": ""}
    metadata = parse(with_fields(metadata={"name": name, "labels": labels})).metadata
    assert (metadata.name, metadata.labels) == (name, labels)


@pytest.mark.parametrize(
    "branch",
    [
        "-x",
        "a b",
        "a..b",
        "/a",
        "a/",
        "a//b",
        ".a",
        "a/.b",
        "a.lock",
        "a.lock/b",
        "a.",
        "@",
        "a@{b",
        "a~1",
        "a:b",
        "a\x7f",
    ],
)
def test_branches_that_git_takes_for_no_name_are_refused(branch: str) -> None:
    assert list(faults(with_fields(repository={"branch": branch}))) == ["repository.branch"]


@pytest.mark.parametrize(
    "name", ["PATH", "HOME", "LD_PRELOAD", "ANTHROPIC_API_KEY", "BASH_ENV", "UID", "9A", "A-B", "A" * 129]
)
def test_secrets_that_would_not_arrive_or_harm_the_session_are_refused(name: str) -> None:
    assert list(faults(with_fields(secrets=[{"name": name, "source": "env", "key": "A"}]))) == ["secrets[0].name"]


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("vm", {"memory": "9" * 5000 + "G"}), ("vm", {"disk": "9" * 20 + "T"}), ("vm", {"memory": "٣G"}),
        ("lifecycle", {"timeout": "9" * 5000 + "s"}), ("lifecycle", {"hang_timeout": "³s"}),
    ],
)  # fmt: skip
def test_sizes_and_durations_of_any_digits_are_refused_in_words(part: str, fields: dict[str, str]) -> None:
    (field,) = fields
    found = faults(with_fields(**{part: fields}))
    assert list(found) == [f"{part}.{field}"]
    assert len(found[f"{part}.{field}"]) < 200


def test_processors_are_the_hosts_to_give_or_not() -> None:
    assert parse(with_fields(vm={"cpus": 4096})).vm.cpus == 4096


def test_of_very_many_faults_some_are_told() -> None:
    with pytest.raises(InvalidManifest) as refused:
        parse(with_fields(vm={f"f{n}": 1 for n in range(5000)}))
    assert len(refused.value.details["errors"]) == MOST_FAULTS + 1
    assert len(refused.value.message) < 20_000
