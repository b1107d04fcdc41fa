"""``python -m examples.hello``: prepares the example's repository and serves it until Ctrl-C."""

from __future__ import annotations

import contextlib
import signal

from examples.hello.prepare import prepare
from examples.hello.serve import PORT, serve
from foundation.settings import Settings

repository = prepare(Settings(), print)
with serve(repository.path, PORT) as url, contextlib.suppress(KeyboardInterrupt):
    print(f"{url}, branch {repository.branch} at {repository.base_commit}; Ctrl-C ends")  # noqa: T201
    signal.pause()
