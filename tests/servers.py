"""Real servers for tests, as the product starts them, each with a home of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cli.stack.embedded import bucket_part
from foundation.settings import Settings
from tests.stack_settings import isolated_settings

PATIENCE_SECONDS = 60


class S3Server:
    """The embedded S3 server on free loopback ports. It ends with the test process, however that ends."""

    def __init__(self, home: Path, **fields: Any) -> None:
        self.settings: Settings = isolated_settings(home, **fields)
        self._part = bucket_part(self.settings)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._part.prepare()
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        with (self.settings.logs / "bucket.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", "--", *self._part.command],
                env=self._part.environment,
                cwd=self._part.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        started = time.time()
        while (awaited := self._part.probe(self._process.pid, started)) is not None:
            assert self._process.poll() is None, "the S3 server ended while it started"
            assert time.time() - started < PATIENCE_SECONDS, f"waited for {awaited}"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it without a chance to tidy up, as a power cut would."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in order; harmless when it does not run."""
        self._end(signal.SIGTERM)
        self._part.cleanup()

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        os.kill(self._process.pid, how)
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
