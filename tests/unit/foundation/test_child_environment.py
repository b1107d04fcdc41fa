"""Programs that are started see no key and no secret of this process, and its directories are its user's alone."""

from __future__ import annotations

import ast
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stack.embedded import bucket_part, temporal_part
from foundation.child_environment import NETWORK, child_environment
from foundation.settings import Settings
from machines.disks.confinement import Confinement
from machines.hypervisor import qemu
from machines.images.running import LoggedProcess
from machines.paths import MachinePaths

ROOT = Path(__file__).parents[3]
ROOMS = ("foundation", "workflows", "activities", "machines", "storage", "api", "worker", "client", "cli")
STARTING = {"run", "Popen", "check_output", "check_call", "call", "create_subprocess_exec", "create_subprocess_shell"}
CANARY = "canary-5f0c3e"
HARMLESS = ("PATH", "HOME", "LC_ALL")


@pytest.fixture(autouse=True)
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "TASKYARD_S3_SECRET_KEY", "AWS_SECRET_ACCESS_KEY", "SOME_TOKEN", "no_such_name"):
        monkeypatch.setenv(name, CANARY)
    for name in HARMLESS:
        monkeypatch.setenv(name, {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}.get(name, "C"))


def started(tree: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in STARTING:
            module = node.func.value
            name = module.id if isinstance(module, ast.Name) else ""
            if name == "subprocess" or (name == "asyncio" and node.func.attr != "run"):
                yield node


def test_every_program_that_the_product_starts_is_given_an_environment():
    inheriting = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for room in ROOMS
        for path in sorted((ROOT / room).rglob("*.py"))
        for call in started(ast.parse(path.read_text()))
        if "env" not in {keyword.arg for keyword in call.keywords}
    ]
    assert inheriting == []


@pytest.mark.parametrize("also", [(), NETWORK, ("XDG_RUNTIME_DIR",)])
def test_environment_of_a_child_holds_named_variables_only(also):
    made = child_environment(also, LC_ALL="C.UTF-8")
    assert made["LC_ALL"] == "C.UTF-8"
    assert set(made) <= {"PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", *also}
    assert CANARY not in made.values()


def test_servers_of_the_stack_see_nothing_secret(tmp_path):
    settings = Settings(home=tmp_path / "home")
    for part in (temporal_part(settings), bucket_part(settings)):
        assert CANARY not in part.environment.values()
        part.prepare()
        assert settings.s3_credentials()[1] not in " ".join(part.command)


def test_machine_process_sees_nothing_secret_and_makes_files_for_its_user_alone(tmp_path):
    directory, sockets = tmp_path / "machine", tmp_path / "run"
    directory.mkdir()
    paths = MachinePaths(directory, sockets, "vm-0123456789abcdef")
    program = "import sys; open('made', 'w').close(); print('ready', flush=True); sys.stdin.read()"
    child = qemu.start_child(paths, [sys.executable, "-c", f"{program}; import time; time.sleep(60)"])
    try:
        while b"ready" not in paths.output.read_bytes():
            assert child.poll() is None
        assert CANARY not in Path(f"/proc/{child.pid}/environ").read_text()
        assert stat.S_IMODE((sockets / "made").stat().st_mode) == 0o600
    finally:
        child.kill()
        child.wait()


def test_confined_program_and_its_keeper_see_nothing_secret(monkeypatch):
    seen: list[str] = []
    popen = subprocess.Popen

    def start(*arguments, **options):
        process = popen(*arguments, **options)
        seen.append(Path(f"/proc/{process.pid}/environ").read_text())
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    inside = Confinement().run(["env"]).stdout.decode()
    assert CANARY not in inside + "".join(seen)
    assert seen


def test_program_of_an_image_build_sees_nothing_secret(tmp_path):
    log = tmp_path / "log"
    with LoggedProcess("step", ["cat", "/proc/self/environ"], "advice", log=log, report=lambda _: None) as lines:
        shown = "".join(lines)
    assert CANARY not in shown + log.read_text()


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o700, 0o750, None])
def test_home_is_made_and_corrected_to_be_its_owners_alone(tmp_path, mode):
    settings = Settings(home=tmp_path / "a" / "home")
    if mode is not None:
        settings.home.mkdir(parents=True)
        settings.home.chmod(mode)
    settings.make_home()
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
