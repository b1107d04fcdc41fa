"""The agent's steps: run it (start once, follow to the end), stop it, speak to it, close its session."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Generic, Protocol, TypeVar

from temporalio import activity
from temporalio.client import Client, WorkflowHandle
from temporalio.exceptions import ApplicationError

from activities.agent.conversation import keeping
from activities.agent.follower import Follower
from activities.agent.guest_figures import GuestFigures
from activities.agent.output import AgentOutput
from activities.agent.session import AgentSession, Launch
from activities.agent.structured_output import judge
from activities.machine.network import MachineNetworks, WatchedNetwork
from activities.machine.secrets import RunSecrets
from activities.step.announcements import USER_MESSAGE, announce, announce_event, log_done
from activities.step.boundary import boundary, bounded_retries
from activities.step.heartbeat import beating
from foundation.errors import AgentNotStopped, GuestUnreachable, MachineLost
from foundation.settings import Settings
from foundation.units import parse_size
from guest.contract import MCP_CONFIG, MODEL_GATEWAY_URL, WORKSPACE
from machines.host import MachineHost
from machines.ssh import GuestShell
from storage.bucket import Bucket
from storage.layout import TASKS
from storage.live.host import open_log
from storage.redaction import Redactor
from storage.runlog import RunLogWriter, read_entries
from workflows import names, steps
from workflows.runs.budget import Budget
from workflows.runs.messages import AgentProgress, LiveProgress, TokenUsage, TurnEnded
from workflows.runs.requests import (
    AgentRequest,
    AgentResult,
    CloseRequest,
    DeliverRequest,
    SteerRequest,
    StopAgentRequest,
)
from workflows.runs.states import STATE_MESSAGES, Cause, TaskState
from workflows.runs.steering.messages import AgentSaid

# Settings of the engine that Claude Code is built on. Its compiler and its garbage collector run beside the program and
# meet it in memory all the time, which emulated processors pay for: without them the agent takes half of the time.
_EMULATED = {"BUN_JSC_useConcurrentGC": "0", "BUN_JSC_useDFGJIT": "0"}

# What an MCP server may take to start, within half of the silence that the run allows its agent.
_MCP_SECONDS = 300.0
_HEARTBEAT_SECONDS = 1.0
_UPDATE_SECONDS = 10.0

T = TypeVar("T")


class RunGateway(Protocol):
    """What the steps need of the model gateway."""

    def token(self, machine_id: str) -> str:
        """The run's token, worth nothing elsewhere."""

    def set_budget(self, machine_id: str, budget: Budget) -> None:
        """Hold the machine to a budget from now on."""

    def account(self, machine_id: str) -> tuple[TokenUsage, str | None]:
        """Tokens and costs counted so far, and the limits; and why the machine is refused, once it was: None if not."""


class Agent:
    """Steps that run Claude Code in the guest of a lease.

    ``client`` and ``loop`` let the follower's thread reach its workflow; ``on_result`` gets each agent's result.
    """

    def __init__(
        self,
        settings: Settings,
        host: MachineHost,
        bucket: Bucket,
        gateway: RunGateway,
        networks: MachineNetworks,
        client: Client,
        loop: asyncio.AbstractEventLoop,
        on_result: Callable[[AgentResult], None] = lambda _: None,
    ) -> None:
        self._settings = settings
        self._host = host
        self._bucket = bucket
        self._gateway = gateway
        self._networks = networks
        self._client = client
        self._loop = loop
        self._on_result = on_result
        self._secrets = RunSecrets(settings)

    @activity.defn(name=steps.RUN_AGENT.name)
    @bounded_retries()
    @boundary
    def run_agent(self, request: AgentRequest) -> AgentResult:
        """Start the agent if no attempt did, and follow it to its end."""
        machine_id = request.machine_id
        token = self._gateway.token(machine_id)
        secrets = {**self._secrets.known(machine_id, request.secrets), "GATEWAY_TOKEN": token}
        redactor = Redactor(secrets)
        with open_log(self._bucket, TASKS.place(request.task_id), redactor) as writer:
            return self._follow(request, token, writer, redactor, self._networks.watched(machine_id, secrets))

    def _follow(
        self, request: AgentRequest, token: str, writer: RunLogWriter, redactor: Redactor, network: WatchedNetwork
    ) -> AgentResult:
        machine_id = request.machine_id
        output = AgentOutput(redactor.redact_text)
        budget = request.budget or Budget()
        account = _Seldom(lambda: self._gateway.account(machine_id))
        ticker = _Ticker(output.progress, network, writer, lambda: account()[0])
        most = parse_size(self._settings.log_limit)
        follower = Follower(
            writer,
            output,
            request.hang_timeout,
            most,
            self._turn_end_report(),
            ticker,
            on_control=self._control_report(),
            permission_timeout=request.claude.permission_wait(),
            used_up=lambda: account()[1],
            may_sleep=budget.pause,
        )
        with beating(output.progress):
            offsets = writer.resume()
            follower.read_back(read_entries(self._bucket, TASKS.place(request.task_id)))
            network.recall(follower.decisions)
            follower.open_log(STATE_MESSAGES[TaskState.RUNNING], request.claude.prompt)
            # Before there is an agent: it is never without its limits.
            self._gateway.set_budget(machine_id, budget)
            shell = self._started(request, token, follower) if follower.verdict is None else None
        ended = None
        if shell is not None:
            with GuestFigures(shell) as ticker.figures:
                ended = follower.follow(AgentSession(shell), offsets)
        usage, spent = self._gateway.account(machine_id)
        result = output.outcome(ended.exit_code if ended else None, usage)
        result.network = network.use()
        if ended is None:
            # The workflow keeps it, and stops the agent.
            result.running, result.cause, result.error = True, follower.verdict, follower.judgement
        elif result.cause is not None and spent is not None:
            result.cause, result.error = Cause.BUDGET_EXCEEDED, spent
        judge(result, request.claude.output_schema, output.unkept)
        self._on_result(result)
        return result

    def _started(self, request: AgentRequest, token: str, follower: Follower) -> GuestShell | None:
        """The way to the agent, which is started unless it was before; None when the guest is given up."""
        try:
            shell = self._host.connect(request.machine_id)
            AgentSession(shell).start(_launch(request, token, emulated=self._is_emulated(request.machine_id)))
        except GuestUnreachable:
            if follower.silent_for() < request.hang_timeout.total_seconds():
                raise
            follower.give_up()
            return None
        return shell

    @activity.defn(name=steps.STOP_AGENT.name)
    @boundary
    def stop_agent(self, request: StopAgentRequest) -> None:
        """TERM, 30 s of grace, KILL; with ``force`` KILL at once. The follower sees the end.

        Fails when the guest does not do that. With ``machine``, its host ends the machine's process: no guest is asked.
        """
        with beating():
            if request.machine:
                self._host.kill(request.machine_id)
                return
            if self._host.record(request.machine_id).state == "paused":
                return  # it does nothing, and is never woken again
            try:
                stopped = AgentSession(self._host.connect(request.machine_id)).stop(force=request.force)
            except MachineLost:
                return
            if not stopped:
                raise AgentNotStopped("The guest did not end its agent in time; end the machine's process instead.")

    @activity.defn(name=steps.DELIVER.name)
    @boundary
    def deliver_message(self, request: DeliverRequest) -> None:
        """Hand a message to the agent, once for each id."""
        with beating():
            AgentSession(self._host.connect(request.machine_id)).deliver(request.message_id, request.text)
            log_done(
                lambda: announce(
                    self._bucket,
                    request.task_id,
                    USER_MESSAGE,
                    request.text,
                    redactor=self._secrets.redactor(request.machine_id),
                    message_id=request.message_id,
                )
            )

    @activity.defn(name=steps.STEER.name)
    @boundary
    def steer_agent(self, request: SteerRequest) -> None:
        """Write a line of the control protocol to the agent, once for each id; its follower sees the answer."""
        with beating():
            AgentSession(self._host.connect(request.machine_id)).steer(request.control_id, [request.line])
            if (event := request.event) is not None:
                redactor = self._secrets.redactor(request.machine_id)
                log_done(lambda: announce_event(self._bucket, request.task_id, event, redactor, request.since))

    @activity.defn(name=steps.CLOSE.name)
    @boundary
    def close_session(self, request: CloseRequest) -> None:
        """Close the agent's session."""
        with beating():
            AgentSession(self._host.connect(request.machine_id)).close()

    def _is_emulated(self, machine_id: str) -> bool:
        return self._host.record(machine_id).acceleration == "tcg"

    def _turn_end_report(self) -> Callable[[int, bool], bool]:
        workflow = self._workflow()

        def report(results: int, interrupted: bool) -> bool:
            ended = TurnEnded(results=results, interrupted=interrupted)
            # Another attempt with the same turn gets the same answer.
            update = workflow.execute_update(names.END_TURN, ended, id=f"turn-{results}", result_type=bool)
            closed: bool = asyncio.run_coroutine_threadsafe(update, self._loop).result(_UPDATE_SECONDS)
            return closed

        return report

    def _control_report(self) -> Callable[[AgentSaid], None]:
        workflow = self._workflow()

        def report(said: AgentSaid) -> None:
            signal = workflow.signal(names.AGENT_SAID, said)
            asyncio.run_coroutine_threadsafe(signal, self._loop).result(_UPDATE_SECONDS)

        return report

    def _workflow(self) -> WorkflowHandle[Any, Any]:
        info = activity.info()
        return self._client.get_workflow_handle(info.workflow_id or "", run_id=info.workflow_run_id)


class _Ticker:
    """Heartbeats with the live progress and what the guest does, and ends when the worker is stopping.

    With each, what was decided about the guest's network goes into the log.
    """

    def __init__(
        self,
        progress: AgentProgress,
        network: WatchedNetwork,
        writer: RunLogWriter,
        usage: Callable[[], TokenUsage],
    ) -> None:
        self.figures: GuestFigures | None = None
        self._progress = progress
        self._network = network
        self._writer = writer
        self._usage = usage
        self._due = 0.0

    def __call__(self) -> None:
        """Called by the follower several times a second."""
        if activity.is_worker_shutdown():
            raise ApplicationError(
                "The worker is stopping; the next one goes on with the run.",
                type="worker_stopping",
                next_retry_delay=timedelta(seconds=1),
            )
        if time.monotonic() >= self._due:
            machine = self.figures.latest() if self.figures else None
            progress = self._progress.model_dump()
            live = LiveProgress(**progress, machine=machine, network=self._network.use(), usage=self._usage())
            activity.heartbeat(live)
            self._network.write(self._writer)
            self._due = time.monotonic() + _HEARTBEAT_SECONDS


class _Seldom(Generic[T]):
    """Asks once a second, and gives the last answer in between."""

    def __init__(self, ask: Callable[[], T]) -> None:
        self._ask = ask
        self._answer: T | None = None
        self._due = 0.0

    def __call__(self) -> T:
        if self._answer is None or time.monotonic() >= self._due:
            self._answer, self._due = self._ask(), time.monotonic() + _HEARTBEAT_SECONDS
        return self._answer


def _launch(request: AgentRequest, token: str, *, emulated: bool) -> Launch:
    claude = request.claude
    command = [
        "claude",
        "--print",
        "--verbose",
        "--input-format=stream-json",
        f"--output-format={claude.output_format}",
        f"--model={claude.model}",
    ]
    if claude.skip_permissions:
        command.append("--dangerously-skip-permissions")
    else:
        # It asks over its own stdout, and its mode may be changed to any other.
        command += ["--permission-prompt-tool=stdio", "--allow-dangerously-skip-permissions"]
        if claude.permission_mode is not None:
            command.append(f"--permission-mode={claude.permission_mode}")
    if claude.effort is not None:
        command.append(f"--effort={claude.effort}")
    if claude.output_schema is not None:
        command.append(f"--json-schema={json.dumps(claude.output_schema)}")
    if claude.allowed_tools:
        command.append("--allowedTools=" + ",".join(claude.allowed_tools))
    if claude.max_turns is not None:
        command.append(f"--max-turns={claude.max_turns}")
    patience: dict[str, str] = {}
    if claude.mcp_config is not None:
        command += [f"--mcp-config={MCP_CONFIG}", "--strict-mcp-config"]
        # Servers are waited for, so that the model has their tools from its first turn on: npx fetches them first.
        # Claude Code itself gives up on one whose first answer takes a minute.
        seconds = min(_MCP_SECONDS, request.hang_timeout.total_seconds() / 2)
        patience = {"MCP_CONNECTION_NONBLOCKING": "0"} | dict.fromkeys(
            ("MCP_TIMEOUT", "MCP_CONNECT_TIMEOUT_MS"), str(round(seconds * 1000))
        )
    return Launch(
        command=keeping(command, request.machine_id, request.conversation),
        workdir=f"{WORKSPACE}/{request.subpath}" if request.subpath else WORKSPACE,
        prompt=claude.prompt,
        environment={
            "ANTHROPIC_BASE_URL": MODEL_GATEWAY_URL,
            "ANTHROPIC_AUTH_TOKEN": token,
            # The guest reaches what its task names: what nobody asked for is switched off.
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "IS_SANDBOX": "1",
            **patience,
            **(_EMULATED if emulated else {}),
        },
        mcp_config=claude.mcp_config,
    )
