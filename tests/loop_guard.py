"""Watches the event loops of this process: names the code that kept one of them from going on, and for how long.

Counted is what a callback of a loop costs that loop, not what the machine costs the callback: the processor time of its
thread, without the garbage collector's, and the time in which the thread slept in a system call. Time in which it was
ready to run and other processes had the processors is no fault of the callback, nor is waiting for the interpreter
while another thread holds it, or for a page of memory from the disk.

Sleep is sampled, so a loaded machine, which samples less often, shows too little of it rather than too much. Processor
time is divided by how much slower than at its best the machine is at that moment.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import inspect
import re
import sys
import tempfile
import threading
import time
from asyncio.events import Handle
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

LIMIT_SECONDS = 0.1

_TICK_SECONDS = 0.01
_LOOKED_AT_SECONDS = 0.02
_FUTEX = "202" if sys.maxsize > 2**32 else "240"
_TESTS = str(Path(__file__).parent)
_COROUTINES = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$', re.MULTILINE)
_PACE_TURNS = 20_000

# What faulthandler has for all threads of the process at once. Of one that some library is just making, as Temporal's
# does beside the interpreter, it would find half, and end the process; so it is asked for one thread that is known.
_state_of_this_thread = ctypes.pythonapi.PyThreadState_Get
_state_of_this_thread.restype = ctypes.c_void_p
_write_stack = ctypes.pythonapi._Py_DumpTraceback
_write_stack.argtypes, _write_stack.restype = (ctypes.c_int, ctypes.c_void_p), None


@dataclass(frozen=True)
class Stall:
    """One time that a loop stood still: what its thread computed and slept, in seconds, and where it was meanwhile."""

    computed: float
    slept: float
    stack: str

    def __str__(self) -> str:
        return (
            f"an event loop stood still: {1000 * self.computed:.0f} ms of computing and "
            f"{1000 * self.slept:.0f} ms asleep in one callback, most of it here:\n{self.stack}"
        )


class _Frame(NamedTuple):
    """One place in a stack."""

    file: str
    line: int
    function: str


class _Turn:
    """A callback that a loop runs now. Most are over before anybody looks at them, so making one costs little."""

    __slots__ = ("begun", "collected", "looks", "native_id", "sleep", "slept", "state", "thread")

    def __init__(self, thread: int) -> None:
        self.thread = thread
        self.state = _state_of_this_thread()
        self.native_id = threading.get_native_id()
        self.begun = time.monotonic()
        self.collected = self.slept = 0.0
        self.sleep = ""
        # Where the thread was, each from the innermost frame to the loop's callback.
        self.looks: Counter[tuple[_Frame, ...]] | None = None


class LoopGuard:
    """Watches every loop of asyncio's own kinds from ``start`` to ``stop``. Stalls are kept until they are taken."""

    def __init__(self, limit: float = LIMIT_SECONDS) -> None:
        self._limit = limit
        self._turns: dict[int, _Turn] = {}
        # Held while a turn is looked at, so that its thread is there meanwhile.
        self._looking = threading.Lock()
        self._stalls: list[Stall] = []
        self._stopping = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="loop-guard", daemon=True)
        self._run: Callable[[Handle], None] = Handle._run
        self._collecting = threading.local()
        self._stacks = tempfile.TemporaryFile()  # noqa: SIM115 -- closed when nobody watches any more
        self._best_pace = min(_pace() for _ in range(5))

    def start(self) -> None:
        """Begin to watch."""
        guard, run = self, self._run

        def watched(handle: Handle) -> None:
            # Workflows of Temporal run in loops of another kind, which stand still between the events of their history.
            if isinstance(handle._loop, asyncio.BaseEventLoop):
                guard._measure(handle, run)
            else:
                run(handle)

        Handle._run = watched  # type: ignore[method-assign]
        gc.callbacks.append(self._collected)
        self._watcher.start()

    def stop(self) -> None:
        """Watch no more."""
        Handle._run = self._run  # type: ignore[method-assign]
        gc.callbacks.remove(self._collected)
        self._stopping.set()
        self._watcher.join()
        self._stacks.close()

    def take(self) -> list[Stall]:
        """The stalls since they were last taken."""
        taken, self._stalls = self._stalls, []
        return taken

    def _measure(self, handle: Handle, run: Callable[[Handle], None]) -> None:
        thread = threading.get_ident()
        before = self._turns.get(thread)
        turn = self._turns[thread] = _Turn(thread)
        begun = time.thread_time()
        try:
            run(handle)
        finally:
            computed = time.thread_time() - begun - turn.collected
            with self._looking:
                if before is None:
                    del self._turns[thread]
                else:
                    self._turns[thread] = before
            if computed + turn.slept > self._limit:
                self._judge(turn, computed)

    def _judge(self, turn: _Turn, computed: float) -> None:
        computed /= max(1.0, _pace() / self._best_pace)
        stack = turn.looks.most_common(1)[0][0] if turn.looks else ()
        # What a test itself does between its requests is no loop of a server's.
        if computed + turn.slept > self._limit and not _caller_is_a_test(stack):
            self._stalls.append(Stall(computed, turn.slept, _written(stack)))

    def _collected(self, phase: str, _: dict[str, Any]) -> None:
        turn = self._turns.get(threading.get_ident())
        if turn is None:
            return
        if phase == "start":
            self._collecting.begun = time.thread_time()
        else:
            turn.collected += time.thread_time() - getattr(self._collecting, "begun", time.thread_time())

    def _watch(self) -> None:
        while not self._stopping.wait(_TICK_SECONDS):
            now = time.monotonic()
            for turn in list(self._turns.values()):
                if now - turn.begun > _LOOKED_AT_SECONDS:
                    self._look_at(turn)

    def _look_at(self, turn: _Turn) -> None:
        sleep = _sleep_of(turn.native_id)
        with self._looking:
            stack = self._stack_of(turn) if self._turns.get(turn.thread) is turn else ()
        if not stack:
            return
        if sleep and (not sleep.startswith(_FUTEX) or sleep == turn.sleep):
            # Who waits for the interpreter wakes every few milliseconds: only a sleep that goes on is one.
            turn.slept += _TICK_SECONDS
        turn.sleep = sleep
        turn.looks = turn.looks or Counter()
        turn.looks[stack] += 1

    def _stack_of(self, turn: _Turn) -> tuple[_Frame, ...]:
        """The frames of a turn's thread, from the innermost to the callback of the loop.

        The interpreter writes them in one go. Frames that are walked from here end meanwhile, since their thread goes
        on between two steps of the walk, and that can end the whole process.
        """
        self._stacks.seek(0)
        self._stacks.truncate()
        _write_stack(self._stacks.fileno(), turn.state)
        self._stacks.seek(0)
        written = self._stacks.read().decode(errors="replace")
        found = [_Frame(file, int(line), name) for file, line, name in _FRAME.findall(written)]
        last = next((place for place, frame in enumerate(found) if frame.function == "_measure"), len(found))
        return tuple(found[:last])


def _caller_is_a_test(stack: tuple[_Frame, ...]) -> bool:
    """Whether the coroutine that made the call which takes so long is a test's own, or a fixture's."""
    of_coroutines = (frame for frame in stack if _is_of_coroutine(frame))
    return next((frame.file.startswith(_TESTS) for frame in of_coroutines), False)


def _is_of_coroutine(frame: _Frame) -> bool:
    return (frame.function, frame.line) in _lines_of_coroutines(frame.file)


@cache
def _lines_of_coroutines(file: str) -> frozenset[tuple[str, int]]:
    """The lines of all coroutines in a file, each with its function's name; none in what is no file."""
    try:
        left = [compile(Path(file).read_bytes(), file, "exec", dont_inherit=True)]
    except (OSError, ValueError, SyntaxError):
        return frozenset()
    found = set()
    while left:
        code = left.pop()
        left += [each for each in code.co_consts if isinstance(each, CodeType)]
        if code.co_flags & _COROUTINES:
            found |= {(code.co_name, line) for _, _, line in code.co_lines() if line is not None}
    return frozenset(found)


def _written(stack: tuple[_Frame, ...]) -> str:
    """A stack as Python writes one, without the lines themselves."""
    lines = [f'  File "{frame.file}", line {frame.line}, in {frame.function}\n' for frame in reversed(stack)]
    return "".join(lines) or "(it was over before anybody looked)\n"


def _sleep_of(native_id: int) -> str:
    """The system call in which a thread sleeps, and how often it went to sleep; empty when it does not, or unknown."""
    task = Path(f"/proc/self/task/{native_id}")
    try:
        state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        if state != "S":
            return ""
        call = (task / "syscall").read_text().split()[0]
        if call in {"running", "-1"}:
            return ""
        switches = next(
            line for line in (task / "status").read_text().splitlines() if line.startswith("voluntary_ctxt_switches")
        )
    except (OSError, IndexError, StopIteration):
        return ""
    return f"{call} {switches}"


def _pace() -> float:
    """Processor seconds of a small fixed piece of work."""
    begun = time.thread_time()
    total = 0
    for number in range(_PACE_TURNS):
        total += number
    return time.thread_time() - begun
