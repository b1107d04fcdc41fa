"""Careful runs of git: no prompts, no hooks, only allowed transports, progress reported, all processes ended."""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from foundation.errors import HostNotReady
from foundation.settings import Settings
from foundation.urls import without_credentials

Report = Callable[[str], None]

_CONNECT_SECONDS = 10
# How ssh is to connect, whoever it is.
CONNECTION = (
    f"-o BatchMode=yes -o ConnectTimeout={_CONNECT_SECONDS} -o ServerAliveInterval=10 -o ServerAliveCountMax=3 "
    "-o ControlPath=none"
)
_STALL_SECONDS = 30
_STALL_BYTES_PER_SECOND = 1000
_POLL_SECONDS = 0.5
_WORDS_KEPT = 200
_LINE_BYTES = 16 * 1024
# What git adds after ssh has named the reason.
_SAYS_NOTHING = (
    "fatal: Could not read from remote",
    "Please make sure you have the correct",
    "and the repository exist",
    "error: failed to fetch some objects from",
)
_PROGRESS = re.compile(r"^(?:remote: )?[A-Z][A-Za-z ]+: +\d+% ?\(")
# Of git's own variables only those by which a host configures credentials, certificates and proxies for itself.
_KEPT = re.compile(r"^GIT_(?:ASKPASS|SSL_.*|PROXY_.*|CONFIG_(?:GLOBAL|SYSTEM|NOSYSTEM|COUNT|KEY_\d+|VALUE_\d+))$")
_DROPPED = re.compile(r"^(?:GIT_.*|TASKYARD_.*|ANTHROPIC_.*|VAULT_.*|SSH_ASKPASS.*|DISPLAY|LC_.*|LANG|LANGUAGE)$")


class GitFailed(Exception):
    """Git ended with an error; ``words`` is what it said, without credentials."""

    def __init__(self, command: str, exit_code: int, words: str) -> None:
        super().__init__(f"git {command} failed with exit code {exit_code}")
        self.exit_code = exit_code
        self.words = words

    @property
    def last_words(self) -> str:
        """The line that says most: the last one that git marks as fatal or an error, else the last."""
        lines = [line for line in self.words.splitlines() if line.strip() and not line.startswith(_SAYS_NOTHING)]
        marked = [line for line in lines if line.startswith(("fatal:", "error:", "remote: fatal:"))]
        words = (marked or lines or [str(self)])[-1].removeprefix("fatal: ").removeprefix("error: ")
        # The host's git configuration may have put its own into the URL.
        return without_credentials(words)


class GitStopped(Exception):
    """Git did not end within its time and was stopped."""


def host_configuration() -> dict[str, str]:
    """The variables by which this host configures git for itself."""
    return {name: value for name, value in os.environ.items() if _KEPT.match(name) or name == "XDG_CONFIG_HOME"}


def remote_environment(settings: Settings) -> dict[str, str]:
    """Environment for talking to servers: the host's git configuration counts, since it names the credentials.

    Nothing asks a person, nothing but https, http and ssh (and file, by setting) is spoken.
    """
    environment = {name: value for name, value in os.environ.items() if _KEPT.match(name) or not _DROPPED.match(name)}
    ssh = os.environ.get("GIT_SSH_COMMAND") or _configured_ssh(environment) or "ssh"
    return environment | {
        "GIT_ALLOW_PROTOCOL": ":".join(allowed_protocols(settings)),
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_SSH_COMMAND": f"{ssh} {CONNECTION}",
        "SSH_ASKPASS_REQUIRE": "never",
        "GCM_INTERACTIVE": "never",
        "GIT_OPTIONAL_LOCKS": "0",
        "LC_ALL": "C",
    }


def local_environment() -> dict[str, str]:
    """Environment for work between directories of this host: no configuration, no credentials, no network."""
    return {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": "/nonexistent",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_ALLOW_PROTOCOL": "file",
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }


def allowed_protocols(settings: Settings) -> list[str]:
    """Transports that repositories may use on this host."""
    return ["https", "http", "ssh", *(["file"] if settings.allow_file_repositories else [])]


def run_git(
    arguments: Sequence[str],
    environment: dict[str, str],
    *,
    seconds: float | None = None,
    report: Report = lambda _: None,
    file_bytes: int | None = None,
    input: bytes = b"",  # noqa: A002 -- the name subprocess gives it
) -> str:
    """Run git to its end and give its standard output. Lines of progress go to ``report``.

    ``file_bytes`` is the most that it may write into one file. Raises GitFailed, GitStopped after ``seconds``,
    HostNotReady when git is missing. Whatever ends the call early (a cancellation too), git and its helpers are killed.
    """
    limit = [] if file_bytes is None else ["prlimit", f"--fsize={file_bytes}", "--"]
    command = [*limit, "git", *_guards(), *arguments]
    with (
        tempfile.TemporaryFile() as output,
        _input(input) as stdin,
        _started(command, environment, stdin, output) as process,
    ):
        words = _listen(process, seconds, report)
        if process.returncode:
            raise GitFailed(arguments[0], process.returncode, without_credentials("\n".join(words)))
        output.seek(0)
        return output.read().decode("utf-8", "surrogateescape")


def _guards() -> list[str]:
    """Configuration that outranks the host's and the repository's own."""
    settings = {
        "core.hooksPath": "/dev/null",
        "core.fsmonitor": "false",
        "init.templateDir": "",
        "gc.auto": "0",
        "maintenance.auto": "false",
        "submodule.recurse": "false",
        "fetch.recurseSubmodules": "false",
        "http.lowSpeedLimit": str(_STALL_BYTES_PER_SECOND),
        "http.lowSpeedTime": str(_STALL_SECONDS),
        "advice.detachedHead": "false",
        # Without reflogs, no host path or name is left in what a guest gets to see.
        "core.logAllRefUpdates": "false",
    }
    return [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]


def _configured_ssh(environment: dict[str, str]) -> str | None:
    command = ["git", "config", "--get", "core.sshCommand"]
    try:
        found = subprocess.run(command, env=environment, cwd="/", capture_output=True, check=False)
    except FileNotFoundError:
        raise _git_missing() from None
    return found.stdout.decode().strip() or None


def _git_missing() -> HostNotReady:
    return HostNotReady("git is not installed on this host; install it ('sandbox doctor' names the package).")


@contextmanager
def _input(content: bytes) -> Iterator[IO[bytes] | int]:
    if not content:
        yield subprocess.DEVNULL
        return
    with tempfile.TemporaryFile() as file:
        file.write(content)
        file.seek(0)
        yield file


@contextmanager
def _started(
    command: Sequence[str], environment: dict[str, str], stdin: IO[bytes] | int, output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A git process that leads a session of its own, gone with its group when the block ends."""
    try:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd=Path("/"),
        )
    except FileNotFoundError:
        raise _git_missing() from None
    try:
        yield process
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stderr:
            process.stderr.close()


def _listen(process: subprocess.Popen[bytes], seconds: float | None, report: Report) -> deque[str]:
    """What git prints until it ends, without its progress, which is reported. Waits in short turns, to be cancellable.

    A helper that lives on (a credential cache) may hold the pipe open; so the end of git counts, not the pipe's.
    """
    stderr = process.stderr
    if stderr is None:
        return deque()
    deadline = time.monotonic() + seconds if seconds is not None else None
    words: deque[str] = deque(maxlen=_WORDS_KEPT)
    rest = b""
    os.set_blocking(stderr.fileno(), False)
    with selectors.DefaultSelector() as selector:
        selector.register(stderr, selectors.EVENT_READ)
        open_ = True
        while True:
            ended = process.poll() is not None
            if open_:
                selector.select(0 if ended else _POLL_SECONDS)
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
            chunk = stderr.read() if open_ else None
            if chunk == b"":
                selector.unregister(stderr)
                open_ = False
            *lines, rest = re.split(rb"[\r\n]", rest + (chunk or b""))
            # A server may say something without an end.
            rest = rest[-_LINE_BYTES:]
            for line in [*lines, rest] if ended and not chunk else lines:
                _sort_line(line[-_LINE_BYTES:].decode("utf-8", "replace").rstrip(), words, report)
            if ended and not chunk:
                return words
            if deadline is not None and time.monotonic() > deadline:
                raise GitStopped


def _sort_line(line: str, words: deque[str], report: Report) -> None:
    if _PROGRESS.match(line):
        report(re.sub(r" +", " ", line.removeprefix("remote: ")))
    elif line:
        words.append(line)
