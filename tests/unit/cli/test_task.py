"""What `sandbox task` does by itself: where downloads go, how fast it starts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import completion
from cli.task.reading import _target, pause_seconds
from cli.task.view import print_artifacts, print_task, print_tasks
from cli.task.watch import repeat
from client import Artifact, Task
from client.tasks.download import local_path
from foundation.errors import UsageError
from foundation.settings import Settings
from machines.host import MachineHost, Reservation
from machines.images.store import _FACTS as IMAGE_FACTS


def artifact(name: str) -> Artifact:
    return Artifact(
        name=name,
        path=name,
        size_bytes=1,
        content_type="text/plain",
        checksum="sha256:00",
        created_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.txt", "out/a.txt"),
        ("deep/a.txt", "out/deep/a.txt"),
        ("../../a.txt", "out/a.txt"),
        ("/etc/passwd", "out/etc/passwd"),
        ("..", "out/artifact"),
        ("a\nb\x1b.txt", "out/a%0Ab%1B.txt"),
    ],
)
def test_no_name_of_an_artifact_leaves_the_directory(name: str, path: str) -> None:
    assert "out" / local_path(name) == Path(path)
    assert _target(artifact(name), None) == Path(Path(path).name)


@given(st.text(max_size=300))
def test_every_name_has_a_path_that_a_file_can_have(name: str) -> None:
    parts = local_path(name).parts
    assert parts
    assert not local_path(name).is_absolute()
    for part in parts:
        assert part not in {"", ".", ".."}
        assert 1 <= len(part.encode()) <= 255
        assert not any(ord(letter) < 32 or letter == "/" for letter in part)


def test_help_is_shown_without_loading_what_commands_need() -> None:
    program = (
        "import sys, contextlib, cli.main\n"
        "sys.argv = ['sandbox', 'task', '--help']\n"
        "with contextlib.suppress(SystemExit): cli.main.run()\n"
        "print([name for name in ('httpx', 'temporalio', 'minio', 'fastapi', 'paramiko') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "submit" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes standard output a terminal of so many columns."""

    def set_width(columns: int) -> None:
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")

    return set_width


@pytest.mark.parametrize("columns", [30, 50, 80, 200])
def test_tables_fit_the_terminal_and_never_cut_an_id(
    capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None], columns: int
) -> None:
    terminal(columns)
    now = datetime.now(UTC)
    print_tasks(
        [Task(id="1ssrg4b-k3f9q", name="a long name " * 9, state="running", created_at=now, state_changed_at=now)]
    )
    print_artifacts([artifact("results/report.md")])
    written = capsys.readouterr().out
    # Of styles, NO_COLOR takes the colours away only.
    assert not re.search("\x1b\\[[34]", written)
    lines = re.sub("\x1b\\[[0-9;]*m", "", written).splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith("1ssrg4b-k3f9q")
    assert "running" in lines[1]
    assert "results/report.md" in "".join(lines)
    assert ("CREATED" in lines[0]) is (columns >= 80)


@pytest.mark.parametrize("columns", [20, 40, 80])
def test_the_command_that_enters_a_machine_is_whole_on_any_terminal(
    capsys: pytest.CaptureFixture[str], terminal: Callable[[int], None], columns: int
) -> None:
    terminal(columns)
    now = datetime.now(UTC)
    command = "ssh -i '/a home/machines/vm-0/key' -p 2222 -o UserKnownHostsFile=/a/long/way/known_hosts agent@127.0.0.1"
    print_task(
        Task(
            id="1ssrg4b-k3f9q",
            name="a name",
            state="failed_preserved",
            created_at=now,
            state_changed_at=now,
            error="words " * 30,
            ssh_command=command,
        )
    )
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert [line.endswith(f" {command}") for line in lines].count(True) == 1
    if columns >= 80:
        assert [line for line in lines if command not in line and len(line) > columns] == []


def test_a_pipe_gets_everything(capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)
    print_tasks([Task(id="a", name="name " * 99, state="running", created_at=now, state_changed_at=now)])
    assert "name " * 99 in capsys.readouterr().out


def test_a_list_is_shown_anew_until_ctrl_c() -> None:
    shown = []

    def show() -> None:
        shown.append(len(shown))
        if len(shown) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repeat(show, 0.01)
    assert shown == [0, 1, 2]


@pytest.mark.parametrize(("text", "seconds"), [("500ms", 0.5), ("2", 2), ("1.5h", 5400), (" 1d ", 86400)])
def test_lengths_of_time(text: str, seconds: float) -> None:
    assert pause_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "-1s", "soon", "1w", "9" * 400, "4000d"])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a length of time"):
        pause_seconds(text)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("sandbox ta", "task"),
        ("sandbox task sub", "submit"),
        ("sandbox task logs --fo", "--follow"),
        ("sandbox config use", "use-context"),
        ("sandbox task list --format ta", "table"),
    ],
)
def test_the_shell_completes_commands_options_and_values(words: str, completed: str) -> None:
    environment = {
        **os.environ,
        "_SANDBOX_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "import sys; from cli.main import app; sys.argv = ['sandbox']; app(prog_name='sandbox')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert completed in done.stdout.split()


def test_machines_images_and_runs_of_this_host_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASKYARD_HOME", str(tmp_path))
    monkeypatch.delenv("TASKYARD_IMAGE_DIR", raising=False)
    assert completion.machine_ids("") == completion.image_digests("") == []
    settings = Settings(home=tmp_path)
    machine_id, digest = "vm-0123456789abcdef", "ab12" * 16
    hour = timedelta(hours=1)
    MachineHost(settings).reserve(
        Reservation(machine_id, "task-my-run", "r", 1, 2**28, 2**30, datetime.now(UTC) + hour)
    )
    image = settings.images / digest
    image.mkdir(parents=True)
    facts = {"profile": "base", "digest": digest, "versions": {}, "size_bytes": 1, "virtual_size": 1}
    built = {"built_at": datetime.now(UTC).isoformat(), "build_seconds": 1.0, "command_line": ""}
    (image / IMAGE_FACTS).write_text(json.dumps(facts | built))
    assert completion.machine_ids("vm-01") == [(machine_id, "reserved")]
    assert completion.machine_ids("my") == [("my-run", machine_id)]
    assert completion.image_digests("ab") == [(digest[:12], "base")]
    assert completion.image_digests("x") == []
    (settings.machines / machine_id / "machine.json").write_text("{")
    assert completion.machine_ids("") == []
