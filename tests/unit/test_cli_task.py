"""What `sandbox task` does by itself: where downloads go, how fast it starts."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.task import _local_path
from client import Artifact


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
    ],
)
def test_no_name_of_an_artifact_leaves_the_directory(name: str, path: str) -> None:
    assert _local_path(artifact(name), Path("out"), into_directory=True) == Path(path)
    assert _local_path(artifact(name), None, into_directory=False) == Path(Path(path).name)


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
