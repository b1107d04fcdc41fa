"""The worker process of the soak: real workflow, log and final record, and agents that live as their prompts say."""

from __future__ import annotations

import asyncio
import json
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass

from temporalio import activity
from temporalio.client import Client

from activities.finish import Finish
from activities.machine.lease import agent_queue, host_queue
from benchmarks.stand_ins import StandIns
from foundation.engine import connect_engine
from foundation.logs import configure_logs
from foundation.settings import Settings
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.redaction import Redactor
from storage.runlog import RunLogWriter
from worker.main import SHARED_STEPS, polling
from worker.registry import WORKFLOWS, Activity, placed
from workflows import names, steps
from workflows.messages import Lease
from workflows.runs.messages import LiveProgress, TurnEnded
from workflows.runs.requests import AgentRequest, AgentResult, CloseRequest, ReserveRequest, StopAgentRequest
from workflows.runs.states import Cause

# Agents at once that one such worker follows.
_MOST_AGENTS = 2000
_MOST_STEPS = 64
_BEAT_SECONDS = 1.0
_LINE_BEATS = 10


@dataclass(frozen=True)
class Life:
    """What an agent is to do, as its prompt tells it: live for some seconds and leave with an exit code."""

    seconds: float
    exit_code: int = 0

    @property
    def prompt(self) -> str:
        return json.dumps(asdict(self))


class Agents:
    """Agents without machines: each writes to its run's log while it lives, and can be stopped."""

    def __init__(self, settings: Settings, client: Client, bucket: Bucket) -> None:
        self._settings = settings
        self._client = client
        self._bucket = bucket
        self._over: dict[str, asyncio.Event] = {}
        self._closed: dict[str, asyncio.Event] = {}

    def by_name(self) -> dict[str, Activity]:
        """The activities by the names of their steps."""
        return {
            steps.RESERVE.name: self.reserve,
            steps.RUN_AGENT.name: self.run_agent,
            steps.STOP_AGENT.name: self.stop_agent,
            steps.CLOSE.name: self.close,
        }

    @activity.defn(name=steps.RESERVE.name)
    async def reserve(self, request: ReserveRequest) -> Lease:
        """A lease of this host, whose agents are followed on a queue of their own."""
        queue, agents = host_queue(self._settings), agent_queue(self._settings)
        return Lease(machine_id=request.machine_id, host="here", task_queue=queue, agent_queue=agents)

    @activity.defn(name=steps.RUN_AGENT.name)
    async def run_agent(self, request: AgentRequest) -> AgentResult:
        """Live as long as the prompt says, or until stopped."""
        life = Life(**json.loads(request.claude.prompt))
        over = self._over.setdefault(request.machine_id, asyncio.Event())
        closed = self._closed.setdefault(request.machine_id, asyncio.Event())
        try:
            if await self._live(request, life.seconds, over):
                return AgentResult(exit_code=143)
            info = activity.info()
            run = self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)
            if not await run.execute_update(names.END_TURN, TurnEnded(results=1), result_type=bool):
                await closed.wait()
            if life.exit_code:
                error = f"Claude Code exited with code {life.exit_code}."
                return AgentResult(exit_code=life.exit_code, cause=Cause.AGENT_EXIT, error=error)
            return AgentResult(exit_code=0, result="Done.")
        finally:
            self._over.pop(request.machine_id, None)
            self._closed.pop(request.machine_id, None)

    @activity.defn(name=steps.STOP_AGENT.name)
    async def stop_agent(self, request: StopAgentRequest) -> None:
        """End the agent's life."""
        if over := self._over.get(request.machine_id):
            over.set()

    @activity.defn(name=steps.CLOSE.name)
    async def close(self, request: CloseRequest) -> None:
        """End the agent's session."""
        if closed := self._closed.get(request.machine_id):
            closed.set()

    async def _live(self, request: AgentRequest, seconds: float, over: asyncio.Event) -> bool:
        """Whether the agent was stopped before its time."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        writer = RunLogWriter(self._bucket, TASKS.place(request.task_id), Redactor({}))
        offset = (await asyncio.to_thread(writer.resume))["stdout"]
        beats = 0
        while not over.is_set() and (left := end - loop.time()) > 0:
            activity.heartbeat(LiveProgress(tool_calls=beats, current_tool="Bash"))
            if beats % _LINE_BEATS == 0:
                line = json.dumps({"type": "assistant", "beat": beats}).encode() + b"\n"
                await asyncio.to_thread(_write, writer, line, offset)
                offset += len(line)
            beats += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), min(left, _BEAT_SECONDS))
        return over.is_set()


def _write(writer: RunLogWriter, line: bytes, offset: int) -> None:
    writer.feed("stdout", line, offset)
    writer.flush(force=True)


async def work(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    client, bucket = await connect_engine(settings), Bucket(settings)
    stand_ins = StandIns(client, settings.host_name, host_queue(settings), held=False)
    agents = Agents(settings, client, bucket)
    real = {steps.FINISH.name: Finish(bucket).finish_run}
    work = placed(stand_ins.by_name() | agents.by_name() | real)
    async with (
        polling(client, settings.task_queue, SHARED_STEPS, work.shared, list(WORKFLOWS.values())),
        polling(client, host_queue(settings), _MOST_STEPS, work.host),
        polling(client, agent_queue(settings), _MOST_AGENTS, work.agents),
    ):
        await stopping.wait()


if __name__ == "__main__":
    _settings = Settings()
    configure_logs(_settings.log_format, "worker")
    asyncio.run(work(_settings))
