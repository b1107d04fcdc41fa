"""The main job as a newcomer sees it: one command, from an empty home to the artifacts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stack.embedded import process_environment
from examples.hello.prepare import prepare
from foundation.settings import Settings
from tests.e2e.conftest import processes_of
from tests.stack_settings import isolated_settings

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def settings() -> Iterator[Settings]:
    home = Path(tempfile.mkdtemp(prefix="ty-demo-"))
    settings = isolated_settings(home, image_dir=Settings().images, anthropic_api_key=None)
    yield settings
    shutil.rmtree(home)
    shutil.rmtree(settings.sockets, ignore_errors=True)


def test_the_demo_mends_the_package_and_leaves_nothing_running(settings: Settings, tmp_path: Path) -> None:
    sandbox = Path(sys.executable).parent / "sandbox"
    environment = process_environment(settings)
    done = subprocess.run(
        [sandbox, "demo"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "scripted" in done.stdout.splitlines()[0]
    assert "completed" in done.stdout
    assert processes_of(settings.home) == []
    assert not list(settings.machines.glob("vm-*"))

    (artifacts,) = (tmp_path / "taskyard-demo").iterdir()
    metadata = json.loads((artifacts / "metadata.json").read_text())
    assert metadata["exit_code"] == 0
    assert "TTLCache" in (artifacts / "REPORT.md").read_text()

    # The patch applies to the base commit, whose tests fail, and makes them pass.
    repository = prepare(settings, lambda _line: None)
    tree = tmp_path / "tree"
    subprocess.run(["git", "clone", "-q", repository.path, tree], check=True)
    subprocess.run(["git", "checkout", "-q", repository.base_commit], cwd=tree, check=True)

    def the_packages_own_tests() -> int:
        command = [sys.executable, "-W", "ignore", "-m", "unittest", "-q"]
        return subprocess.run(
            command, cwd=tree, env={**os.environ, "PYTHONPATH": "src"}, capture_output=True, check=False
        ).returncode

    assert the_packages_own_tests() != 0
    patch = artifacts / f"{artifacts.name}.patch"
    subprocess.run(["git", "apply", patch], cwd=tree, check=True)
    assert the_packages_own_tests() == 0
