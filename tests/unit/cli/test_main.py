"""The command `sandbox`: its table of commands, its errors and exit codes, `config` and `--version`."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cli.main import _COMMANDS, app
from foundation.errors import EngineUnavailable, TaskNotFound, TaskyardError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    """A runner whose command `config` raises what the test puts into ``failure``."""
    monkeypatch.setitem(_COMMANDS, "config", (f"{__name__}:fail", ""))
    return CliRunner()


failure: BaseException = RuntimeError()


def fail() -> None:
    raise failure


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_of_the_table_is_there_and_has_help(name: str) -> None:
    module, _, attribute = _COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(module), attribute)
    assert isinstance(found, typer.Typer) or callable(found)
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"sandbox {name}" in shown.output


def test_help_lists_every_command() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    for name, (_, summary) in _COMMANDS.items():
        assert name in shown.output
        assert summary.split()[0] in shown.output


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"sandbox {version('taskyard')}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TaskyardError("It broke; mend it."), 1),
        (TaskNotFound("No run 'x'."), 2),
        (EngineUnavailable("Temporal does not answer."), 5),
    ],
)
def test_an_error_is_one_sentence_on_stderr_and_its_exit_code(
    failing: CliRunner, monkeypatch: pytest.MonkeyPatch, error: TaskyardError, code: int
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "failure", error)
    shown = failing.invoke(app, ["config"])
    assert (shown.exit_code, shown.stdout, shown.stderr) == (code, "", f"Error: {error.message}\n")


def test_ctrl_c_ends_with_130(failing: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "failure", KeyboardInterrupt())
    assert failing.invoke(app, ["config"]).exit_code == 130


def test_a_mistyped_command_gets_a_suggestion() -> None:
    shown = CliRunner().invoke(app, ["doktor"])
    assert shown.exit_code == 2
    assert "Did you mean 'doctor'?" in shown.output


def test_a_bad_setting_is_named_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_API_PORT", "eighty")
    monkeypatch.setenv("TASKYARD_LOG_FORMAT", "xml")
    shown = CliRunner().invoke(app, ["config"])
    assert shown.exit_code == 2
    assert "TASKYARD_API_PORT: input should be a valid integer" in shown.stderr
    assert "TASKYARD_LOG_FORMAT: input should be 'text' or 'json'" in shown.stderr


def test_config_tells_sources_and_masks_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TASKYARD_HOME", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-canary")
    monkeypatch.delenv("TASKYARD_API_PORT", raising=False)
    shown = CliRunner().invoke(app, ["config", "--format", "json"])
    rows = {row["name"]: row for row in json.loads(shown.stdout)}
    assert rows["TASKYARD_HOME"]["source"] == "TASKYARD_HOME"
    assert rows["TASKYARD_HOME"]["value"] == str(tmp_path)
    assert rows["TASKYARD_API_PORT"] | {"description": ""} == {
        "name": "TASKYARD_API_PORT",
        "value": 8122,
        "shown": "8122",
        "source": "default",
        "description": "",
    }
    assert rows["TASKYARD_ANTHROPIC_API_KEY"]["source"] == "ANTHROPIC_API_KEY"
    text = CliRunner().invoke(app, ["config"]).stdout
    assert "sk-canary" not in shown.stdout + text
