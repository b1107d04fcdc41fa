"""Programs that an image build runs: each line in the log, a word now and then for who waits, and no child left."""

from __future__ import annotations

import os
import queue
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from foundation.child_environment import child_environment
from foundation.errors import ImageBuildFailed
from foundation.units import format_seconds

Report = Callable[[str], None]

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# A step that prints nothing is still reported this often; one that prints much, no more often than that.
_SILENCE_SECONDS = 5.0
_COUNT_SECONDS = 5.0
_LOG_TAIL_LINES = 15
_STAGES = {
    "I: running apt-get update": "reading the mirror's lists",
    "I: extracting archives": "unpacking the base system",
    "I: installing essential packages": "setting up the base system",
    "I: installing remaining packages": "the profile's own",
    "I: running special hook: tar-in": "adding the agent and the guest's own files",
    "I: cleaning package lists": "cleaning up",
}
_COUNTED = {"Get": "fetched", "Unpacking": "unpacked", "Setting": "set up"}
_PACKAGE_TOTAL = re.compile(r"^0 upgraded, (\d+) newly installed")
_PACKAGE_SIZE = re.compile(r"^Need to get ([\d.,]+ [kMG]?B)")


class LoggedProcess:
    """A child process whose lines go to the log and to the caller; it never outlives the ``with`` block.

    Entering gives the lines; a silence is reported under ``label``. Leaving raises ImageBuildFailed with ``advice`` and
    the end of the log when the process failed. When this process is killed, the child is ended too.
    """

    def __init__(
        self,
        label: str,
        command: Sequence[str],
        advice: str,
        *,
        log: Path,
        report: Report,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._label = label
        self._command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
        self._advice = advice
        self._log = log
        self._report = report
        self._cwd = cwd
        self._env = env or child_environment(PATH=search_path())
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def __enter__(self) -> Iterator[str]:
        with self._log.open("a") as log:
            log.write(f"$ {shlex.join(self._command)}\n")
        # A session of its own: Ctrl-C in the terminal reaches this process alone, which then ends the child in order.
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        return self._each()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is not None:
            self._stop()
            return
        code = self._process.wait()
        self._reader.join()
        if code != 0:
            tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
            raise ImageBuildFailed(
                f"The image was not built: {self._advice}. The whole log is in {self._log}; it ends with:\n{tail}",
                log=str(self._log),
                exit_code=code,
            )

    def _each(self) -> Iterator[str]:
        begun = time.monotonic()
        while True:
            try:
                line = self._lines.get(timeout=_SILENCE_SECONDS)
            except queue.Empty:
                self._report(f"{self._label}: still at work after {format_seconds(time.monotonic() - begun)}")
                continue
            if line is None:
                return
            yield line

    def _read(self, stream: IO[str]) -> None:
        with self._log.open("a") as log:
            for line in stream:
                log.write(line)
                log.flush()
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _stop(self) -> None:
        for order, patience in ((signal.SIGTERM, 20), (signal.SIGKILL, 5)):
            try:
                os.killpg(self._process.pid, order)
                self._process.wait(patience)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
            break
        self._reader.join(timeout=5)


def follow_packages(lines: Iterator[str], report: Report) -> None:
    """Turn the output of mmdebstrap, apt and dpkg into lines about the stage and, now and then, the count in it."""
    total = 0
    counts = dict.fromkeys(_COUNTED, 0)
    last = time.monotonic()
    for line in lines:
        if (stage := next((text for start, text in _STAGES.items() if line.startswith(start)), None)) is not None:
            report(f"packages: {stage}")
        elif match := _PACKAGE_TOTAL.match(line):
            total = int(match[1])
            counts = dict.fromkeys(_COUNTED, 0)
        elif match := _PACKAGE_SIZE.match(line):
            report(f"packages: fetching {match[1]} for {total} packages")
        word = line.partition(":" if line.startswith("Get:") else " ")[0]
        if word in counts:
            counts[word] += 1
            if total and time.monotonic() - last > _COUNT_SECONDS:
                last = time.monotonic()
                report(f"packages: {min(counts[word], total)} of {total} {_COUNTED[word]}")


def search_path() -> str:
    """The caller's PATH with the directories of system programs, which an ordinary user's PATH often lacks."""
    return f"{os.environ.get('PATH', '')}:{_SYSTEM_PATH}"
