"""Contexts: which server a command talks to, and how servers get their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cli.config.contexts import Context, choose, contexts_file, load_contexts
from cli.main import app
from foundation.errors import NotFound, UsageError


@pytest.fixture(autouse=True)
def _own_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("TASKYARD_SERVER", "AGENTIC_SERVER"):
        monkeypatch.delenv(name, raising=False)


def config(*arguments: str, stdin: str = "") -> str:
    shown = CliRunner().invoke(app, ["config", *arguments], input=stdin)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def test_the_option_wins_then_the_environment_then_the_current_context_then_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert choose(None, None) == Context("http://localhost:8122")
    config("set-context", "lab", "--server", "http://lab:8122/", "--token", "-", stdin="s3cret\n")
    config("set-context", "home", "--server", "http://home:8122")
    assert choose(None, None) == Context("http://localhost:8122")
    config("use-context", "lab")
    assert choose(None, None) == Context("http://lab:8122", "s3cret")
    assert choose(None, "home") == Context("http://home:8122")
    monkeypatch.setenv("AGENTIC_SERVER", "http://agentic")
    assert choose(None, None) == Context("http://agentic")
    monkeypatch.setenv("TASKYARD_SERVER", "http://taskyard")
    assert choose(None, None) == Context("http://taskyard")
    assert choose("http://option", "home") == Context("http://option")
    assert choose("http://lab:8122", None) == Context("http://lab:8122", "s3cret")


def test_contexts_are_listed_without_their_tokens_and_can_be_forgotten() -> None:
    config("set-context", "lab", "--server", "http://lab:8122", "--token", "s3cret")
    config("set-context", "home", "--server", "https://home")
    config("use-context", "home")
    assert contexts_file().stat().st_mode & 0o777 == 0o600
    text = config("get-contexts")
    assert [line.split() for line in text.splitlines()] == [
        ["NAME", "SERVER", "TOKEN"],
        ["*", "home", "https://home", "-"],
        ["lab", "http://lab:8122", "set"],
    ]
    rows = json.loads(config("get-contexts", "--format", "json"))
    assert rows[1] == {"name": "lab", "server": "http://lab:8122", "token": True, "current": False}
    config("delete-context", "home")
    assert (list(load_contexts().by_name), load_contexts().current) == (["lab"], None)
    assert "s3cret" not in text + json.dumps(rows)
    assert "TASKYARD_HOME" in config()


@pytest.mark.parametrize(
    ("arguments", "words", "code"),
    [
        (["set-context", "a b", "--server", "http://x"], "no name for a context", 2),
        (["set-context", "a", "--server", "x:8122"], "not the URL", 2),
        (["set-context", "a", "--server", "http://x", "--token", "\n"], "The token", 2),
        (["use-context", "never"], "there are: none yet", 2),
        (["delete-context", "never"], "No context 'never'", 2),
    ],
)
def test_what_cannot_be_a_context_is_refused(arguments: list[str], words: str, code: int) -> None:
    shown = CliRunner().invoke(app, ["config", *arguments])
    assert (shown.exit_code, words in shown.stderr) == (code, True)
    assert not contexts_file().exists()


def test_files_that_hold_no_contexts_are_named() -> None:
    contexts_file().parent.mkdir()
    contexts_file().write_text("contexts = 3")
    with pytest.raises(UsageError, match="mend it or remove it"):
        choose(None, None)
    contexts_file().write_text('current_context = "gone"')
    with pytest.raises(NotFound, match="No context 'gone'"):
        choose(None, None)


@pytest.mark.parametrize(
    "server", ["no url", "http://", "http://[", "http://x:99999", "http://x:y", "ftp://x", "http://\udc80", "x:8122"]
)
def test_what_is_no_address_of_a_server_is_refused_wherever_it_comes_from(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="is not the URL of a server"):
        choose(server, None)
    monkeypatch.setattr(
        "cli.config.contexts.os.environ", {"TASKYARD_SERVER": server, "XDG_CONFIG_HOME": "/nonexistent"}
    )
    with pytest.raises(UsageError, match="is not the URL of a server"):
        choose(None, None)
