"""The real Claude Code CLI as a run steers it: over the session's stdin, by what its follower tells."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import uvicorn

from activities.agent.follower import Follower
from activities.agent.output import AgentOutput
from activities.agent.session import AgentSession, Ended, Launch
from machines.ssh import GuestShell
from storage.redaction import Redactor
from storage.runlog import RunLogWriter
from tests.integration.activities.claude_code import claude_program
from tests.stand_ins.local_guest import LocalGuest
from tests.stand_ins.memory_bucket import TASK, MemoryBucket
from worker.scripted_model.scenario import read_scenario
from worker.scripted_model.server import create_model_app
from workflows.runs.steering import control
from workflows.runs.steering.messages import AgentSaid, PermissionAnswer, PermissionDecision, PermissionRequest

SCENARIO = Path(__file__).parents[2] / "scenarios" / "steered.yaml"
OPTIONS = "--print --verbose --input-format=stream-json --output-format=stream-json --model=claude-sonnet-4-5-20250929"
ASKS = "--permission-prompt-tool=stdio --allow-dangerously-skip-permissions"


@pytest.fixture
def model() -> Iterator[str]:
    """A URL of the scripted model."""
    server = uvicorn.Server(uvicorn.Config(create_model_app([read_scenario(SCENARIO)]), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


class Steered:
    """What a run does with an agent: it answers each request twice, and goes on after an interrupt."""

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.asked: list[PermissionRequest] = []
        self.confirmed: dict[str, bool] = {}
        self.turns: list[bool] = []
        self._interrupted = False

    def hear(self, said: AgentSaid) -> None:
        self.confirmed |= {each.id: each.in_turn for each in said.answered}
        for request in said.asked:
            self.asked.append(request)
            for _ in range(2):
                self.session.steer(f"answer-{request.request_id}", [control.answer(request, _answer(request))])

    def tick(self, output: AgentOutput) -> None:
        """Interrupt the long turn that comes after the last request."""
        if len(self.asked) == 3 and not output.control.open and not self._interrupted:
            self._interrupted = True
            for name in ("interrupt-1", "interrupt-2"):
                self.session.steer(name, [control.interrupt(name)])

    def end_turn(self, _: int, interrupted: bool) -> bool:
        self.turns.append(interrupted)
        if interrupted:
            mode = "set-permission-mode-3"
            self.session.steer(mode, [control.set_permission_mode(mode, "bypassPermissions")])
            self.session.deliver("m", "That is all: finish now.")
        return not interrupted


def _answer(request: PermissionRequest) -> PermissionAnswer:
    if questions := request.questions():
        return PermissionAnswer(request_id=request.request_id, answers=dict.fromkeys(questions, "Blue"))
    denied = "denied" in str(request.input)
    decision = PermissionDecision.DENY if denied else PermissionDecision.ALLOW_ALWAYS
    return PermissionAnswer(request_id=request.request_id, decision=decision)


def test_claude_code_asks_is_interrupted_and_goes_on(model: str, tmp_path: Path) -> None:
    guest = LocalGuest(tmp_path / "guest")
    work, home = tmp_path / "work", tmp_path / "home"
    work.mkdir()
    home.mkdir()
    session = AgentSession(cast("GuestShell", guest))
    variables = (
        f"HOME={home} IS_SANDBOX=1 ANTHROPIC_BASE_URL={model} ANTHROPIC_AUTH_TOKEN=t DISABLE_AUTOUPDATER=1 "
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1"
    )
    command = guest.program(f"cd {work}; export {variables}; exec {claude_program()} {OPTIONS} {ASKS}")
    session.start(Launch(command=command, workdir=str(work), prompt="Scenario: steered", environment={}))
    steered, output = Steered(session), AgentOutput()
    writer = RunLogWriter(MemoryBucket(), TASK, Redactor({}))
    follower = Follower(
        writer,
        output,
        timedelta(seconds=60),
        10**8,
        steered.end_turn,
        lambda: steered.tick(output),
        on_control=steered.hear,
        permission_timeout=timedelta(seconds=60),
    )
    try:
        assert follower.follow(session, writer.resume()) == Ended(0)
    finally:
        guest.close()
    assert [request.tool for request in steered.asked] == ["Bash", "Bash", "AskUserQuestion"]
    # The second interrupt found an agent that waited already, or was just about to.
    assert steered.confirmed["interrupt-1"]
    assert {"interrupt-2", "set-permission-mode-3"} <= steered.confirmed.keys()
    assert steered.turns == [True, False]
    assert sorted(path.name for path in work.iterdir()) == ["finished.txt", "granted.txt"]
    assert output.progress.permission_mode == "bypassPermissions"
    assert output.outcome(0, None).cause is None
