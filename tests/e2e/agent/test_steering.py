"""A run whose agent is steered, in a real machine with the real Claude Code."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from client import PermissionRequest
from foundation.errors import Conflict, TaskAlreadyTerminal
from tests.e2e.conftest import Site, until

pytestmark = pytest.mark.timeout(600)


@pytest.mark.usefixtures("begun_ended")
def test_an_agent_is_permitted_denied_answered_interrupted_and_told_to_go_on(site: Site, tmp_path: Path) -> None:
    asking = {"skip_permissions": False, "permission_timeout": "5m"}
    task_id = site.submit("steered", claude=asking)

    def asked(seconds: float = 300) -> PermissionRequest:
        (request,) = until(lambda: site.client.permission_requests(task_id), seconds)
        return request

    def logged(text: str) -> bool:
        return any(text in (line.data or "") for line in site.client.logs(task_id))

    first = asked()
    assert (first.tool, first.input["command"]) == ("Bash", "echo granted > granted.txt")
    assert [option.id for option in first.options] == ["allow", "allow_always", "deny"]
    # Whoever kills the worker between question and answer has the question stand again.
    worker = site.stack.pids()["worker"]
    os.kill(worker, signal.SIGKILL)
    until(lambda: site.stack.pids().get("worker") not in {None, worker})
    assert asked() == first
    assert site.client.answer(task_id, first.request_id).delivered
    assert site.client.answer(task_id, first.request_id).delivered
    with pytest.raises(Conflict):
        site.client.answer(task_id, first.request_id, "deny")

    second = asked()
    assert second.input["command"] == "echo denied > denied.txt"
    site.client.answer(task_id, second.request_id, "deny", message="Leave that out.")
    question = asked()
    assert question.questions() == ["Which colour?"]
    site.client.answer(task_id, question.request_id, answers={"Which colour?": "Blue"})
    # What comes then is told once it has been said whole: until then, the answer is the last thing in the log.
    until(lambda: logged('\\"Which colour?\\"=\\"Blue\\"'), 300)
    assert site.client.interrupt(task_id)
    assert not site.client.interrupt(task_id)

    # It waits for what comes next, although it is headless; what is confirmed holds from then on.
    assert site.client.configure(task_id, permission_mode="bypassPermissions").permission_mode == "bypassPermissions"
    site.client.message(task_id, "That is all: finish now.")
    task = site.client.wait(task_id, poll_seconds=0.5)
    assert (task.state, task.cause, task.result) == ("completed", None, "Finished.")
    assert task.progress.permission_mode == "bypassPermissions"
    with pytest.raises(TaskAlreadyTerminal):
        site.client.interrupt(task_id)

    patch = site.artifact(task_id, f"{task_id}.patch", tmp_path).read_text()
    assert "+granted" in patch
    assert "+finished" in patch
    assert "denied.txt" not in patch
    for said in ("Leave that out.", '\\"Which colour?\\"=\\"Blue\\"', "[Request interrupted by user]"):
        assert logged(said)
    events = [line.event for line in site.client.logs(task_id) if line.stream == "event"]
    requests = [event["request_id"] for event in events if event["type"] == "permission_request"]
    assert requests == [first.request_id, second.request_id, question.request_id]
    resolved = {e["request_id"]: e["decision"] for e in events if e["type"] == "permission_resolved"}
    assert resolved == dict(zip(requests, ["allow", "deny", "allow"], strict=True))
