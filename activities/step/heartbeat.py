"""Heartbeats of a step that blocks its thread, sent from beside it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from temporalio import activity

BEAT_SECONDS = 5.0


@contextmanager
def beating(*details: object) -> Iterator[None]:
    """Heartbeat every few seconds while the block runs, so that a dead worker is noticed within the step's limit."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(BEAT_SECONDS):
            activity.heartbeat(*details)

    activity.heartbeat(*details)
    # The activity is known to its context only, which a new thread does not inherit.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(beat,), name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
