"""`sandbox demo`: one task run before your eyes, from an empty host to artifacts in your hands."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foundation.errors import HostNotReady

if TYPE_CHECKING:
    from types import FrameType

    from rich.console import Console

    from cli.stack.supervisor import PartEvent
    from client import Task, TaskClient
    from foundation.settings import Settings

_EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "hello"
_INTERRUPTED = 130
_SERVERS = ("temporal", "weed")
_CANCEL_SECONDS = 60.0


def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the artifacts go, below the run's id.")
    ] = Path("taskyard-demo"),
) -> None:
    """Watch one task run from submission to artifacts.

    Builds the guest image if it is not there, starts the stack, has Claude Code mend a seeded fault in a real package,
    and stops the stack again. A stack that runs already is used and left running.
    """
    from rich.console import Console

    from foundation.settings import Settings

    # The stack's own view of its start writes markup.
    console = Console(highlight=False, emoji=False, soft_wrap=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    _Demo(Settings(), console, output).run()


@dataclass
class _Demo:
    settings: Settings
    console: Console
    output: Path
    began: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        from client import TaskClient

        self._say_who_answers()
        data = self._manifest()
        self._head("Guest image")
        self._build_image(data["vm"]["profile"])
        self._head("Repository")
        with self._repository() as url:
            data["repository"]["url"] = url
            self._head("Stack")
            with self._stack(), TaskClient(self._server) as client:
                ended = self._run_task(client, data)
                self._show(client, ended)
        self._check_left(ended)
        if ended.state != "completed":
            raise typer.Exit(1)
        self.console.print(f"\nDone in {self._since(self.began)}.", style="bold green")

    @property
    def _server(self) -> str:
        host = self.settings.api_host
        host = "127.0.0.1" if host in {"0.0.0.0", "::", ""} else host  # noqa: S104 -- asked, not bound
        return f"http://[{host}]:{self.settings.api_port}" if ":" in host else f"http://{host}:{self.settings.api_port}"

    def _say_who_answers(self) -> None:
        if self.settings.model_is_scripted:
            self.console.print(
                "No ANTHROPIC_API_KEY is set, so a scripted model plays the example's scenario. "
                "Claude Code, its tools, the machine and the workflow are real."
            )
        else:
            self.console.print(f"The model at {self.settings.anthropic_base_url} answers; it is paid by your key.")

    def _manifest(self) -> dict[str, Any]:
        import yaml

        try:
            data: dict[str, Any] = yaml.safe_load((_EXAMPLE / "task.yaml").read_text())
        except FileNotFoundError:
            raise HostNotReady(f"The demo needs {_EXAMPLE}; run it from a checkout of Taskyard.") from None
        return data

    def _build_image(self, profile: str) -> None:
        from machines.images.store import build_image

        with self._busy("Building the guest image") as report:
            build_image(self.settings, profile, report)

    @contextmanager
    def _repository(self) -> Iterator[str]:
        from examples.hello.prepare import prepare
        from examples.hello.serve import serve

        with self._busy("Preparing the repository") as report:
            prepared = prepare(self.settings, report)
        with serve(prepared.path) as url:
            self.console.print(f"  {url}, {prepared.branch} at {prepared.base_commit[:12]}")
            self.console.print(f"  The fault in it: {prepared.fault}.")
            yield url

    @contextmanager
    def _stack(self) -> Iterator[None]:
        from cli.stack.up import Stack, stack_holder
        from cli.stack.view import StackView

        if (holder := stack_holder(self.settings)) is not None:
            self.console.print(f"  A stack runs already, as process {holder.pid}; it is used, and left running.")
            yield
            return
        view = StackView(self.console)

        def report(event: PartEvent) -> None:
            view.report(event)

        stack = Stack(self.settings, report=report)
        try:
            with view:
                stack.start()
            yield
        finally:
            # The view of the start is over; a second Ctrl-C would leave the order of the stop to chance.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            self._head("Stopping the stack")
            view = StackView(self.console)
            with view:
                stack.stop()

    def _run_task(self, client: TaskClient, data: dict[str, Any]) -> Task:
        from cli.task.view import show_log

        task_id = client.submit(data)
        self._head(f"Task {task_id}")
        self.console.print(f"  In the Temporal UI while it runs: {self._ui(task_id)}", style="dim")
        try:
            show_log(client.logs(task_id, follow=True), waiting=True)
            return client.wait(task_id)
        except KeyboardInterrupt:
            self._cancel(client, task_id)
            raise typer.Exit(_INTERRUPTED) from None

    def _cancel(self, client: TaskClient, task_id: str) -> None:
        """End the run before the stack, or its machine would run on and wait for the next stack."""
        self.console.print("\nCancelling the task, so that its machine is torn down ...")
        client.cancel(task_id, "The demo was interrupted", force=True)
        deadline = time.monotonic() + _CANCEL_SECONDS
        while not client.get(task_id).terminal and time.monotonic() < deadline:
            time.sleep(0.5)

    def _show(self, client: TaskClient, ended: Task) -> None:
        from cli.task.reading import fetch_all
        from cli.task.view import print_artifacts, print_outcome, states_of
        from foundation.units import format_seconds

        self._head("Outcome")
        print_outcome(self.console, ended)
        for state, seconds in states_of(ended):
            if seconds is not None:
                self.console.print(f"  {state:<14} {format_seconds(seconds):>8}")
        if ended.usage:
            counted = ended.usage
            self.console.print(
                f"  Tokens counted by the gateway: {counted.input_tokens} in, "
                f"{counted.output_tokens} out, {counted.requests} requests"
            )
        artifacts = client.artifacts(ended.id)
        self._head("Artifacts")
        print_artifacts(artifacts)
        directory = self.output / ended.id
        for fetched in fetch_all(client, ended.id, directory):
            if fetched.error is not None:
                raise fetched.error
        self.console.print(f"\n  Downloaded to {directory}/")
        self.console.print(f"  The run's history: {self._ui(ended.id)}\n  (while a stack runs: sandbox up)")

    def _check_left(self, ended: Task) -> None:
        """Look for what the run should not have left: its machine, and processes of a stack that has stopped."""
        from cli.stack.up import stack_holder
        from machines.host import MachineHost
        from workflows.names import RUNS

        host = MachineHost(self.settings)
        records = host.records()
        owner = RUNS.workflow_id(ended.id)
        left = [f"machine {record.id}" for record in records if record.owner_workflow == owner]
        if stack_holder(self.settings) is None:
            others = [record.id for record in records if record.owner_workflow != owner]
            left += [f"process {line}" for line in _processes_of(self.settings, others)]
        if left and not ended.ssh_command:
            raise HostNotReady("The demo left something behind: " + "; ".join(left))
        if not left:
            self.console.print("  Nothing of the run is left running.")

    def _ui(self, task_id: str) -> str:
        settings = self.settings
        if not settings.embedded_temporal:
            return f"workflow task-{task_id} in namespace {settings.temporal_namespace}"
        address = f"http://127.0.0.1:{settings.temporal_ui_port}"
        return f"{address}/namespaces/{settings.temporal_namespace}/workflows/task-{task_id}"

    def _head(self, text: str) -> None:
        self.console.print(f"\n{text}", style="bold")

    @contextmanager
    def _busy(self, what: str) -> Iterator[Callable[[str], None]]:
        """Lines for the steps of something long; on a terminal something moves meanwhile."""

        def report(line: str) -> None:
            self.console.print(f"  {line}", markup=False)

        if not self.console.is_terminal:
            yield report
            return
        with self.console.status(what):
            yield report

    @staticmethod
    def _since(began: float) -> str:
        from foundation.units import format_seconds

        return format_seconds(time.monotonic() - began)


def _processes_of(settings: Settings, others: list[str]) -> list[str]:
    """Servers and machines of this home, except the machines of other runs. Another home may use this one's images."""
    import psutil

    from machines.hypervisor.qemu import processes_of

    machines = processes_of(settings.machines.resolve())
    found = [f"{process.pid} (machine {name})" for name, process in machines.items() if name not in others]
    data = (str(settings.home / "temporal"), str(settings.home / "bucket"))
    for process in psutil.process_iter(["pid", "cmdline"]):
        arguments = process.info["cmdline"] or [""]
        words = " ".join(arguments)
        if Path(arguments[0]).name in _SERVERS and any(f"{place}/" in words for place in data):
            found.append(f"{process.info['pid']} ({words[:80]})")
    return found


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
