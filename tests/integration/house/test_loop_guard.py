"""The guard of the event loops: what it calls standing still, what it does not, and that it names the place."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
import time
from collections.abc import Callable

import pytest

from tests.loop_guard import LoopGuard

LONG = 0.4


def compute(seconds: float = LONG) -> None:
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(100))


def wait_for_a_lock() -> None:
    threading.Event().wait(LONG)


def wait_for_a_child() -> None:
    subprocess.run(["sleep", str(LONG)], check=True)


def wait_for_many_answers() -> None:
    one, other = socket.socketpair()
    with one, other:
        one.settimeout(LONG / 40)
        for _ in range(40):
            with pytest.raises(TimeoutError):
                one.recv(1)


def run_in_loop(*callbacks: Callable[[], None]) -> None:
    async def main() -> None:
        for callback in callbacks:
            asyncio.get_running_loop().call_soon(callback)
            await asyncio.sleep(0.01)

    asyncio.run(main())


@pytest.mark.parametrize("block", [compute, wait_for_a_lock, wait_for_a_child, wait_for_many_answers])
def test_a_callback_that_holds_its_loop_up_is_named(loop_guard: LoopGuard, block: Callable[[], None]) -> None:
    run_in_loop(block)
    (stall,) = loop_guard.take()
    assert f"in {block.__name__}\n" in str(stall)
    assert "_run_once" not in str(stall)


def test_threads_that_want_the_interpreter_too_are_no_fault_of_the_loop(loop_guard: LoopGuard) -> None:
    over = threading.Event()

    def compete() -> None:
        while not over.is_set():
            sum(range(10_000))

    others = [threading.Thread(target=compete) for _ in range(4)]
    for other in others:
        other.start()
    run_in_loop(*([lambda: compute(0.03)] * 5))
    over.set()
    for other in others:
        other.join()
    assert loop_guard.take() == []


def test_what_a_test_does_between_its_requests_is_no_loop_of_a_server(loop_guard: LoopGuard) -> None:
    async def a_test() -> None:
        wait_for_a_lock()

    asyncio.run(a_test())
    assert loop_guard.take() == []
