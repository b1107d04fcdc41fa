"""Threads for calls into a machine: those whose callers have left are counted as long as they run."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tests.waiting import until
from worker.service.machine import Threads


async def test_a_call_that_nobody_waits_for_keeps_its_thread() -> None:
    threads, go_on = Threads(), threading.Event()
    begun: list[int] = []

    def hang() -> None:
        begun.append(1)
        go_on.wait(20)

    hanging = [asyncio.ensure_future(threads.abandonable(threads.short, hang)) for _ in range(20)]
    await until(lambda: len(begun) == 16, "the calls to begin")
    await until(lambda: threads.short.statistics().tasks_waiting == 4, "those that have no thread to wait")
    for each in hanging:
        each.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    assert all(each.cancelled() for each in hanging)
    assert threads.short.borrowed_tokens == 16
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await threads.abandonable(threads.short, lambda: None)
    go_on.set()
    await until(lambda: threads.short.borrowed_tokens == 0, "the threads to end")
    assert await threads.abandonable(threads.short, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await threads.abandonable(threads.short, lambda: 1 // 0)
