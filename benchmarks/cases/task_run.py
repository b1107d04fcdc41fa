"""A whole task: the hello example from submission to ``completed``, beside the same steps done one by one by hand."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import yaml

from benchmarks import event_loop
from benchmarks.case import Case, Figure, Run, Sides
from benchmarks.cases.machine_stand import Size, restoring
from benchmarks.lab import Lab, free_port
from benchmarks.step_times import StepTime, step_times
from benchmarks.stopwatch import Stopwatch
from cli.stack.up import Stack
from client import TaskClient
from examples.hello.prepare import prepare
from examples.hello.serve import serve
from foundation.errors import TaskyardError
from guest.contract import ROUTER_ADDRESS
from worker.scripted_model.scenario import load_scenarios
from worker.scripted_model.server import create_model_app
from workflows import steps
from workflows.specs.manifest import Manifest

_MANIFEST = Path(__file__).parents[2] / "examples" / "hello" / "task.yaml"


@contextmanager
def _open(lab: Lab) -> Iterator[Sides]:
    data: dict[str, Any] = yaml.safe_load(_MANIFEST.read_text())
    # The package's source is fetched once for this host, as the example itself does it.
    prepared = prepare(lab.own, lab.report, lab.directory / "examples")
    with serve(prepared.path) as url, _model() as model_port:
        data["repository"] = {**data["repository"], "url": url}
        manifest = Manifest.model_validate(data)
        vm = manifest.vm
        environment = {
            "REPOSITORY": url,
            "BRANCH": manifest.repository.branch,
            "PROMPT": manifest.claude.prompt,
            "MODEL": manifest.claude.model,
            "MODEL_URL": f"http://{ROUTER_ADDRESS}:{model_port}",
            "PATTERNS": " ".join(manifest.lifecycle.artifact_patterns),
        }
        with restoring(lab, Size(vm.cpus, vm.memory, vm.disk)) as stand:

            def by_hand() -> Run:
                watch = stand.by_hand("task.sh", GUEST_USER="agent", **environment)
                return Run(
                    {"first-line": watch.moments["first line"], "completed": sum(watch.laps.values())}, watch.laps
                )

            with _stack(lab) as client:
                yield Sides(lambda: _ours(client, data, lab), by_hand)


def _ours(client: TaskClient, data: dict[str, Any], lab: Lab) -> Run:
    submitted = time.time()
    task_id = client.submit(data)
    first_line = last_line = 0.0
    for line in client.logs(task_id, follow=True):
        if line.stream == "stdout":
            last_line = time.time()
            first_line = first_line or last_line
        elif line.stream == "event":
            lab.report(str(line.event.get("message") or line.type))
    ended = time.time()
    task = client.get(task_id)
    if task.state != "completed" or not first_line:
        raise TaskyardError(f"The task of the benchmark ended as '{task.state}': {task.error}")
    times = event_loop.run(step_times(lab.settings, task_id))
    return Run(
        {"first-line": first_line - submitted, "completed": ended - submitted},
        _phases(submitted, first_line, last_line, ended, times),
    )


def _phases(
    submitted: float, first_line: float, last_line: float, ended: float, times: list[StepTime]
) -> dict[str, float]:
    """Seconds of each step, of which the agent's is told in three; between them, the engine's and the workflow's."""
    watch = Stopwatch(submitted)
    for step in times:
        watch.lap("between the steps", step.began)
        if step.name == steps.RUN_AGENT.name:
            # Lines reach the client while the step is still under way, as a rule.
            watch.lap("run_agent, to the first line", min(first_line, step.ended))
            watch.lap("run_agent, to the last line", min(last_line, step.ended))
            watch.lap("run_agent, to its end", step.ended)
        else:
            # The last step has told the client before it is over.
            watch.lap(step.name, min(step.ended, ended))
    watch.lap("told to the client", ended)
    return watch.laps


@contextmanager
def _stack(lab: Lab) -> Iterator[TaskClient]:
    lab.report("starting the stack")
    with Stack(lab.settings), TaskClient(f"http://127.0.0.1:{lab.settings.api_port}") as client:
        yield client


@contextmanager
def _model() -> Iterator[int]:
    """The scripted model on a port of loopback, for the runs by hand."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(create_model_app(load_scenarios(None)), host="127.0.0.1", port=port, log_config=None)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join()


CASE = Case(
    name="task-run",
    title="The hello task with the scripted model",
    by_hand="git clone, `qemu -loadvm`, tar over ssh, Claude Code over ssh, git diff, tar over ssh "
    "(`benchmarks/by_hand/task.sh`)",
    figures=(
        Figure("first-line", "from submission to the first line of Claude Code"),
        Figure("completed", "from submission to `completed`, artifacts stored", ratio_limit=1.15, label="Whole task"),
    ),
    open=_open,
    repeat=5,
    warm_up=True,
)
