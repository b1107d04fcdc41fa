"""The rooms of the house depend on one another in one direction only."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_rooms_import_in_one_direction() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert command is not None
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "6 kept, 0 broken" in done.stdout


def test_the_command_line_starts_without_what_its_commands_need() -> None:
    script = "import sys, cli.main; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    heavy = {"temporalio", "fastapi", "pydantic", "pydantic_settings", "paramiko", "httpx", "minio", "uvicorn", "rich"}
    assert heavy.isdisjoint(loaded.stdout.split())
