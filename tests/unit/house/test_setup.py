"""The set-up script and the files that it reads."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
REQUIREMENTS = (ROOT / "requirements.txt").read_text()

# What the script itself is written with; everything else it must find missing.
SHELL_TOOLS = (
    *("bash", "cat", "cp", "dirname", "env", "find", "flock", "grep", "head", "mkdir", "printf", "rm"),
    *("sha256sum", "sleep", "sort", "tail", "tr"),
)

# Stands for a Python: answers questions with yes, makes an environment of itself, and notes each call.
FAKE_PYTHON = """#!/bin/bash
case "$1 $2" in
"-m venv")
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python"
    echo "#!$3/bin/python" >"$3/bin/pip"
    ;;
esac
[ "$1" = -c ] || echo "$*" >>"$CALLS"
"""


class Checkout:
    """A copy of what the script reads, on a host with exactly the given commands."""

    def __init__(self, directory: Path, commands: list[str], *, uid: int = 0) -> None:
        self.root = directory / "checkout"
        self.path = directory / "bin"
        self.calls = directory / "calls.txt"
        shutil.copytree(ROOT / "setup", self.root / "setup")
        for name in ("requirements.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.root)
        self.path.mkdir()
        for name in SHELL_TOOLS:
            if (found := shutil.which(name)) is not None:
                (self.path / name).symlink_to(found)
        for name in commands:
            self.script(name, "#!/bin/bash\n")
        self.script("id", f"#!/bin/bash\necho {uid}\n")
        self.script("python3.11", FAKE_PYTHON)

    def script(self, name: str, text: str) -> None:
        path = self.path / name
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def install(self) -> tuple[int, str, list[str]]:
        """Exit code, output, and the calls of Python that it made."""
        self.calls.write_text("")
        done = subprocess.run(
            ["bash", self.root / "setup" / "install"],
            env={"PATH": str(self.path), "CALLS": str(self.calls), "HOME": os.environ["HOME"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, self.calls.read_text().splitlines()


def listed_commands() -> list[str]:
    lines = (ROOT / "setup" / "os-packages.txt").read_text().splitlines()
    return [line.split()[0] for line in lines if not line.startswith("#")]


def test_it_installs_once_and_again_only_when_the_pins_change(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, listed_commands())
    code, output, calls = checkout.install()
    assert code == 0, output
    assert [call.split()[1] for call in calls] == ["venv", "pip", "pip"]
    assert "--require-hashes -r requirements.txt" in calls[1]
    assert checkout.install() == (0, "", [])
    with (checkout.root / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    code, output, calls = checkout.install()
    assert code == 0, output
    assert [call.split()[1] for call in calls] == ["pip", "pip"]


def test_a_failed_installation_shows_why_and_is_tried_again(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, listed_commands())
    broken = FAKE_PYTHON.replace('"-m venv")', '"-m pip")\n    echo no such release; exit 7 ;;\n"-m venv")')
    checkout.script("python3.11", broken)
    code, output, _ = checkout.install()
    assert code == 1
    assert "no such release" in output
    assert "failed (exit code 7)" in output
    assert "venv" not in checkout.install()[2]


def test_missing_packages_are_installed_by_name(tmp_path: Path) -> None:
    commands = [name for name in listed_commands() if name not in {"bwrap", "qemu-img", "qemu-system-x86_64"}]
    checkout = Checkout(tmp_path, [*commands, "apt-cache"])
    checkout.script("apt-get", '#!/bin/bash\necho "apt-get $*" >>"$CALLS"\n')
    code, output, calls = checkout.install()
    assert code == 0, output
    assert "apt-get install -y -q --no-install-recommends bubblewrap qemu-system-x86 qemu-utils" in calls


def test_without_root_and_sudo_it_says_what_to_run_as_root(tmp_path: Path) -> None:
    commands = [name for name in listed_commands() if name != "fakeroot"]
    checkout = Checkout(tmp_path, [*commands, "apt-get"], uid=1000)
    code, output, calls = checkout.install()
    assert code == 1
    assert output == (
        "These OS packages are missing: fakeroot. Run as root: apt-get install --no-install-recommends fakeroot\n"
    )
    assert calls == []


def test_every_pin_has_hashes_and_names_no_place() -> None:
    logical = [
        line for line in REQUIREMENTS.replace("\\\n", " ").splitlines() if line and not line.startswith(("#", " "))
    ]
    assert len(logical) > 50
    for line in logical:
        assert re.match(r"[\w.-]+==\S+ +(--hash=sha256:[0-9a-f]{64} *)+$", line), line[:80]
    assert not re.search(r"https?://|file://|--index|--find-links|(^|\s)/", REQUIREMENTS)


@pytest.mark.parametrize("group", ["dependencies", "dev"])
def test_every_dependency_is_pinned_as_the_project_names_it(group: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] if group == "dependencies" else project["optional-dependencies"]["dev"]
    pinned = {normal(line.split()[0]) for line in REQUIREMENTS.splitlines() if "==" in line}
    assert {normal(requirement) for requirement in wanted} <= pinned


def normal(requirement: str) -> str:
    name, _, pin = requirement.partition("==")
    return f"{re.sub(r'[-_.]+', '-', name).lower()}=={pin}"
