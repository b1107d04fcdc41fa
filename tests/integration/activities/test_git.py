"""Runs of git itself: progress, cancellation, credentials kept out of words and environment."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import psutil
import pytest
from temporalio.exceptions import CancelledError
from temporalio.testing import ActivityEnvironment

from activities.repository.git import (
    GitFailed,
    GitStopped,
    local_environment,
    remote_environment,
    run_git,
    without_credentials,
)
from foundation.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path)


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git alias whose child ignores TERM; it writes its pid to the file given back."""
    pid = tmp_path / "pid"
    script = tmp_path / "stubborn"
    script.write_text(f"#!/bin/sh\ntrap '' TERM\necho $$ > {pid}.draft && mv {pid}.draft {pid}\nsleep 600\n")
    script.chmod(0o755)
    config = tmp_path / "gitconfig"
    config.write_text(f"[alias]\n\tstubborn = !{script}\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    return pid


def until(condition: object, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_cancelled_step_ends_git_and_all_its_children(settings: Settings, trapped: Path) -> None:
    environment = ActivityEnvironment()
    ended: list[BaseException] = []

    def step() -> None:
        run_git(["stubborn"], remote_environment(settings))

    def run() -> None:
        try:
            environment.run(step)
        except BaseException as error:  # noqa: BLE001 -- the test looks at it
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(trapped.exists)
    children = [int(trapped.read_text()), *(child.pid for child in psutil.Process(int(trapped.read_text())).children())]
    environment.cancel()
    thread.join(10)

    assert not thread.is_alive()
    assert isinstance(ended[0], CancelledError)
    until(lambda: all(gone(pid) for pid in children))


def test_a_limit_in_seconds_is_kept(settings: Settings, trapped: Path) -> None:
    with pytest.raises(GitStopped):
        run_git(["stubborn"], remote_environment(settings), seconds=1)

    if trapped.exists():
        until(lambda: gone(int(trapped.read_text())))


def test_a_helper_that_stays_does_not_hold_the_call_up(settings: Settings, tmp_path: Path, trapped: Path) -> None:
    """As the credential cache does, which keeps git's standard error open."""
    (tmp_path / "gitconfig").write_text(f'[alias]\n\tleave = "!{tmp_path}/stubborn & echo done"\n')

    assert run_git(["leave"], remote_environment(settings)) == "done\n"
    until(trapped.exists)
    os.killpg(os.getpgid(int(trapped.read_text())), signal.SIGKILL)
    until(lambda: gone(int(trapped.read_text())))


def test_progress_is_told_and_kept_out_of_errors(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", tmp_path / "a"], check=True)
    heard: list[str] = []
    for number in range(20):
        (tmp_path / "a" / str(number)).write_bytes(os.urandom(1000))
    environment = local_environment() | {
        f"GIT_{who}_{what}": "t" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    run_git(["-C", str(tmp_path / "a"), "add", "--all"], environment)
    run_git(["-C", str(tmp_path / "a"), "commit", "--quiet", "--message", "x"], environment)

    run_git(
        ["clone", "--no-local", "--progress", "--", str(tmp_path / "a"), str(tmp_path / "b")],
        environment,
        report=heard.append,
    )

    assert any(line.startswith("Receiving objects: 100%") for line in heard)
    assert any(line.startswith("Counting objects: ") for line in heard)


def test_what_git_said_is_kept_without_credentials(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://user:hush@127.0.0.1:{taken.getsockname()[1]}/x"

    with pytest.raises(GitFailed) as caught:
        run_git(["ls-remote", "--", url], remote_environment(settings))

    assert "hush" not in f"{caught.value} {caught.value.words} {caught.value.last_words}"
    assert "127.0.0.1" in caught.value.last_words


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("https://token@host/x", "https://host/x"),
        ("at 'http://u:p@host/x' and https://host/y", "at 'http://host/x' and https://host/y"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:pw@host/x", "ssh://host/x"),
        ("git@host:x/y", "git@host:x/y"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_credentials_in_urls(text: str, plain: str) -> None:
    assert without_credentials(text) == plain


def test_git_gets_neither_the_installations_keys_nor_a_foreign_repository(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ANTHROPIC_API_KEY", "TASKYARD_S3_SECRET_KEY", "GIT_DIR", "GIT_EXEC_PATH", "GIT_TEMPLATE_DIR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("GIT_SSH_COMMAND", "ssh -i key")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    monkeypatch.setenv("https_proxy", "http://proxy")

    environment = remote_environment(settings)

    assert not {"ANTHROPIC_API_KEY", "TASKYARD_S3_SECRET_KEY", "GIT_DIR", "GIT_EXEC_PATH"} & environment.keys()
    assert environment["GIT_SSH_COMMAND"].startswith("ssh -i key -o BatchMode=yes -o ConnectTimeout=")
    assert (environment["SSH_AUTH_SOCK"], environment["https_proxy"]) == ("/agent", "http://proxy")
    assert environment["GIT_ALLOW_PROTOCOL"] == "https:http:ssh"


def test_a_server_that_says_something_without_an_end_is_kept_in_part() -> None:
    endless = "alias.endless=!f() { head -c 20000000 /dev/zero | tr '\\0' x >&2; exit 1; }; f"

    with pytest.raises(GitFailed) as raised:
        run_git(["-c", endless, "endless"], local_environment())

    assert len(raised.value.words) < 100_000
