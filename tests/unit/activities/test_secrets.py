"""Secret references against the host's allow-lists; no sentence and no failure ever holds a value."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import pytest
from temporalio.testing import ActivityEnvironment

from activities.machine.secrets import MAX_BYTES, RunSecrets, Secrets, environment_block, resolve_all
from foundation.errors import HostNotReady, SecretUnavailable
from foundation.settings import Settings
from machines.host import MachineHost
from machines.paths import volatile_file
from storage.bucket import Bucket
from storage.runlog import read_entries
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from workflows.runs.requests import SecretsRequest
from workflows.specs.manifest import SecretReference

VALUE = "hush-4711"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "home" / "secrets").mkdir(parents=True)
    (tmp_path / "mounted").mkdir()
    return Settings(home=tmp_path / "home", secret_file_roots=[tmp_path / "mounted"])


def one(settings: Settings, source: str, key: str | Path) -> str:
    return resolve_all(settings, [SecretReference(name="TOKEN", source=source, key=str(key))])["TOKEN"]


def refused(settings: Settings, source: str, key: str | Path) -> str:
    with pytest.raises(SecretUnavailable) as caught:
        one(settings, source, key)
    error = caught.value
    assert error.message.startswith("Secret TOKEN: ")
    assert str(key) in error.message
    assert VALUE not in f"{error.message} {error.details} {error.__cause__!r}"
    assert not error.retryable
    return error.message


def test_an_environment_variable(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", f" {VALUE}\n ")

    assert one(settings, "env", "DEPLOY_TOKEN") == f" {VALUE}\n "


@pytest.mark.parametrize("name", ["TASKYARD_S3_SECRET_KEY", "ANTHROPIC_API_KEY", "taskyard_x", "Anthropic_Y"])
def test_credentials_of_the_installation_are_never_given(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, VALUE)

    assert "never" in refused(settings, "env", name)


def test_only_allowed_variables_are_given(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    allowing = settings.model_copy(update={"secret_env_names": ["CI_*", "TOKEN"]})
    for name in ("CI_KEY", "TOKEN", "OTHER"):
        monkeypatch.setenv(name, VALUE)

    assert one(allowing, "env", "CI_KEY") == one(allowing, "env", "TOKEN") == VALUE
    assert "TASKYARD_SECRET_ENV_NAMES" in refused(allowing, "env", "OTHER")


@pytest.mark.parametrize(
    ("value", "reason"),
    [(None, "not set"), ("", "empty"), ("x" * (MAX_BYTES + 1), "larger"), ("\udcff" + VALUE, "UTF-8")],
)
def test_unusable_variables(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, value: str | None, reason: str
) -> None:
    monkeypatch.delenv("MINE", raising=False)
    if value is not None:
        monkeypatch.setenv("MINE", value)

    assert reason in refused(settings, "env", "MINE")


@pytest.mark.parametrize(
    ("content", "value"),
    [(f"{VALUE}\n", VALUE), (f"{VALUE}\r\n", VALUE), (f"{VALUE}\n\n", f"{VALUE}\n"), (f"a\n{VALUE}", f"a\n{VALUE}")],
)
def test_a_file_loses_one_newline_at_its_end(settings: Settings, tmp_path: Path, content: str, value: str) -> None:
    for root in (tmp_path / "home" / "secrets", tmp_path / "mounted"):
        (root / "key").write_bytes(content.encode())
        assert one(settings, "file", root / "key") == value


def test_files_outside_the_allowed_directories(settings: Settings, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(VALUE)
    (tmp_path / "mounted" / "link").symlink_to(outside)
    (tmp_path / "home" / "credentials.json").write_text(VALUE)
    (tmp_path / "mounted-too").mkdir()
    (tmp_path / "mounted-too" / "key").write_text(VALUE)

    for path in (
        outside,
        tmp_path / "mounted" / "link",
        f"{tmp_path}/mounted/../outside",
        tmp_path / "home" / "credentials.json",
        tmp_path / "mounted-too" / "key",
        "/etc/shadow",
        "/proc/self/environ",
    ):
        assert "not allowed" in refused(settings, "file", path)


def test_the_state_of_the_installation_is_closed_even_below_an_allowed_root(settings: Settings, tmp_path: Path) -> None:
    wide = settings.model_copy(update={"secret_file_roots": [tmp_path]})
    (tmp_path / "home" / "credentials.json").write_text(VALUE)
    (tmp_path / "home" / "secrets" / "key").write_text(VALUE)

    assert "not allowed" in refused(wide, "file", tmp_path / "home" / "credentials.json")
    assert one(wide, "file", tmp_path / "home" / "secrets" / "key") == VALUE


def test_unusable_files(settings: Settings, tmp_path: Path) -> None:
    root = tmp_path / "mounted"
    (root / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    (root / "binary").write_bytes(b"\xff\xfe" + VALUE.encode())
    (root / "nul").write_text(f"{VALUE}\0{VALUE}")
    (root / "empty").write_text("\n")
    (root / "directory").mkdir()
    os.mkfifo(root / "pipe")

    for name, reason in {
        "large": "larger than 64 KiB",
        "binary": "UTF-8",
        "nul": "NUL",
        "empty": "empty",
        "directory": "no regular file",
        "pipe": "no regular file",
        "absent": "No such file",
    }.items():
        assert reason in refused(settings, "file", root / name)


def test_the_block_that_the_guest_reads() -> None:
    assert environment_block({"A": "1\n2", "B": "ä=b"}) == "A=1\n2\0B=ä=b\0".encode()
    assert environment_block({}) == b""


# --- resolved once for a run


MACHINE = "vm-00112233445566aa"
REFERENCES = [SecretReference(name="TOKEN", source="env", key="DEPLOY_TOKEN")]


@pytest.fixture
def machine(settings: Settings) -> Iterator[str]:
    yield MACHINE
    MachineHost(settings).destroy(MACHINE)
    assert not volatile_file(settings, MACHINE).exists()


@pytest.mark.parametrize("becomes", [None, "", "another-value", "x" * (MAX_BYTES + 1)])
def test_a_run_keeps_the_value_that_its_guest_got(
    settings: Settings, machine: str, monkeypatch: pytest.MonkeyPatch, becomes: str | None
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", VALUE)
    assert RunSecrets(settings).resolve(machine, REFERENCES) == {"TOKEN": VALUE}
    if becomes is None:
        monkeypatch.delenv("DEPLOY_TOKEN")
    else:
        monkeypatch.setenv("DEPLOY_TOKEN", becomes)

    # Another attempt, step or process of the same host.
    later = RunSecrets(settings)
    assert later.resolve(machine, REFERENCES) == later.known(machine, REFERENCES) == {"TOKEN": VALUE}
    assert later.redactor(machine).redact_text(f"it is {VALUE}") == "it is [redacted:TOKEN]"


def test_the_values_of_a_run_are_for_its_user_alone_and_below_no_home(settings, machine, monkeypatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", VALUE)
    RunSecrets(settings).resolve(machine, REFERENCES)
    held = volatile_file(settings, machine)
    assert held.stat().st_mode & 0o777 == 0o600
    assert not held.is_relative_to(settings.home)
    held.unlink()
    # Nobody's link leads elsewhere.
    held.symlink_to(settings.home / "secrets.json")
    (settings.home / "secrets.json").write_text('{"TOKEN": "forged"}')
    assert RunSecrets(settings).known(machine, REFERENCES) == {"TOKEN": VALUE}


@pytest.mark.parametrize("squat", [os.mkfifo, Path.mkdir, lambda place: place.symlink_to("/dev/zero")])
def test_what_somebody_else_put_there_neither_holds_a_run_up_nor_takes_its_secrets(
    settings, machine, monkeypatch, squat
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", VALUE)
    place = volatile_file(settings, machine)
    squat(place)
    try:
        with pytest.raises(HostNotReady, match=str(place)):
            RunSecrets(settings).resolve(machine, REFERENCES)
    finally:
        place.rmdir() if place.is_dir() else place.unlink()


def test_a_value_too_short_to_be_redacted_is_told(settings, machine, monkeypatch) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "abc")
    bucket = MemoryBucket()
    host = Mock()
    step = Secrets(settings, host, cast("Bucket", bucket)).inject_secrets
    request = SecretsRequest(machine_id=machine, task_id=TASK.id, secrets=REFERENCES)
    result = ActivityEnvironment().run(step, request)
    assert ["TOKEN" in note and "abc" not in note for note in result.notes] == [True]
    assert [json.loads(entry.data)["message"] for entry in read_entries(bucket, TASK)] == result.notes
