"""A followed log in the middle of which the worker is killed: every entry once, and the same that the bucket has."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import closing

import pytest

from client import LogLine
from tests.e2e.conftest import Entered, until

pytestmark = pytest.mark.timeout(300)


def test_who_follows_a_run_gets_every_entry_once_though_its_worker_is_killed(entered: Entered) -> None:
    client, stack = entered.site.client, entered.site.stack
    answered = sum('"type":"result"' in (line.data or "") for line in client.logs(entered.id))
    seen: list[LogLine] = []
    enough = threading.Event()

    def follow() -> None:
        with closing(client.logs(entered.id, follow=True)) as lines:
            for line in lines:
                seen.append(line)
                if enough.is_set() and said("fourth"):
                    return

    def said(word: str) -> bool:
        """Whether it was told that this message is with the agent."""
        return any(f"The {word} message." in str(line.event.get("message")) for line in list(seen))

    def answers() -> int:
        return sum('"type":"result"' in (line.data or "") for line in list(seen))

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    for word in ("first", "second", "third"):
        client.message(entered.id, f"The {word} message.")
        if word != "third":
            # With the event of the delivery: the answer is being written when the worker dies.
            until(lambda word=word: said(word), 120)
            worker = stack.pids()["worker"]
            os.kill(worker, signal.SIGKILL)
            until(lambda worker=worker: stack.pids().get("worker", worker) != worker, 60)
    until(lambda: answers() == answered + 3, 120)
    enough.set()
    client.message(entered.id, "The fourth message.")
    reader.join(120)
    assert not reader.is_alive()
    stored = {line.id: line for line in client.logs(entered.id)}
    assert [line.id for line in seen] == sorted({line.id for line in seen if line.id is not None})
    assert [stored[line.id] for line in seen] == seen
    assert {line.id for line in seen} == {each for each in stored if each is not None and each <= (seen[-1].id or 0)}
