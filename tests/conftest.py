"""What holds for every test."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.loop_guard import LoopGuard

# How long an example takes tells of the machine's load, not of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# A shell makes what it starts in the background deaf to Ctrl-C, and so every command that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def loop_guard() -> Iterator[LoopGuard]:
    """The one guard of this process's event loops."""
    guard = LoopGuard()
    guard.start()
    yield guard
    guard.stop()


@pytest.fixture(autouse=True)
def loops_go_on(loop_guard: LoopGuard) -> Iterator[None]:
    """Fail a test in which an event loop stood still."""
    yield
    if stalls := loop_guard.take():
        pytest.fail("\n".join(map(str, stalls)), pytrace=False)
