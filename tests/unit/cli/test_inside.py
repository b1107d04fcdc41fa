"""The words of `sandbox task exec`: which are its own options, and which are the command's."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from cli.main import app
from cli.task import inside

READ: dict[str, tuple[list[str], dict[str, Any]]] = {
    "plain": (["x", "ls"], {"argv": ["ls"]}),
    "options of the command": (["x", "ls", "-l", "-t"], {"argv": ["ls", "-l", "-t"]}),
    "parted": (["x", "--", "ls", "-i"], {"argv": ["ls", "-i"]}),
    "options before": (["-i", "-u", "root", "x", "ls"], {"argv": ["ls"], "stdin": True, "user": "root"}),
    "options behind": (["x", "-i", "-w", "/tmp", "--", "ls"], {"argv": ["ls"], "stdin": True, "directory": "/tmp"}),
    "in one word": (["-iq", "x", "--", "ls"], {"argv": ["ls"], "stdin": True}),
    # Behind a command, the mark is the command's own.
    "a mark of the command": (["x", "git", "log", "--", "f"], {"argv": ["git", "log", "--", "f"]}),
    "two marks": (["x", "--", "git", "log", "--", "f"], {"argv": ["git", "log", "--", "f"]}),
    "options of ours behind the command": (["x", "tar", "-i", "--", "f"], {"argv": ["tar", "-i", "--", "f"]}),
    "variables": (["-e", "A=b=c", "-e", "FROM_HERE", "-e", "NOT_SET", "x", "ls"],
                  {"argv": ["ls"], "environment": {"A": "b=c", "FROM_HERE": "h"}}),
}  # fmt: skip


@pytest.mark.parametrize("kind", READ)
def test_words_are_read_as_docker_and_kubectl_read_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words, wanted = READ[kind]
    found: dict[str, Any] = {}

    def attached(_ctx: Any, task_id: str, fields: dict[str, Any], *, terminal: bool) -> int:
        found.update({name: value for name, value in fields.items() if value}, id=task_id, terminal=terminal)
        return 42

    monkeypatch.setattr(inside, "_attached", attached)
    monkeypatch.setenv("FROM_HERE", "h")
    monkeypatch.delenv("NOT_SET", raising=False)
    done = CliRunner().invoke(app, ["task", "exec", *words])
    assert done.exit_code == 42, done.output
    assert found == {"id": "x", "terminal": False} | wanted


@pytest.mark.parametrize(
    "words", [["x"], ["x", "--"], ["x", ""], ["-it", "x", "--", "ls"], ["-e", "1=2", "x", "ls"], []]
)
def test_what_is_no_command_is_refused_before_a_server_is_asked(words: list[str]) -> None:
    done = CliRunner().invoke(app, ["task", "exec", "--server", "http://127.0.0.1:9", *words])
    assert done.exit_code == 2, done.output
